"""From data on one machine to the sites of a simulation: natural centres, virtual sites or one folder a site."""

import csv
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from echofed.client.index_file import IndexRow, read_index
from echofed.client.settings import Columns, SiteSettings
from echofed.client.site import create_site, open_site
from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.errors import SitesError
from echofed.simulations.progress import Report, silent


@dataclass(frozen=True)
class DataSource:
    """Where a simulation's patients come from and how they are spread over sites.

    Args:
        path: a CSV index, a folder with `index.csv`, or a folder of such folders (one a site).
        site_column: the column whose value names a row's site; for a CSV or a single folder.
        virtual_sites: spread patients over this many sites instead.
        label_skew: concentration of the Dirichlet distribution that spreads each label over virtual sites, the smaller
            the more uneven (Hsu et al. (2019)); None spreads patients evenly.
        columns: names of the index's columns.
    """

    path: Path
    site_column: str | None = None
    virtual_sites: int | None = None
    label_skew: float | None = None
    columns: Columns = field(default_factory=Columns)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the source's settings and indices, not with its images."""
        content = {
            **asdict(self),
            "path": str(self.path.absolute()),
            "columns": self.columns.model_dump(),
            "indices": [sha256_of_file(index) for index in self.indices],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def indices(self) -> list[Path]:
        """The CSV files that list the images; none if the path holds none."""
        if self.path.is_dir() and not (self.path / "index.csv").exists():
            return sorted(index for part in self.path.absolute().iterdir() if (index := part / "index.csv").is_file())
        index = self.path.absolute() / "index.csv" if self.path.is_dir() else self.path.absolute()
        return [index] if index.is_file() else []


def make_sites(source: DataSource, folder: Path, seed: int, report: Report = silent) -> list[Path]:
    """Register one site for each part of the source and return the sites' state folders, in the order of their names.

    Sites registered before are brought up to date: only new and changed images are read.

    Args:
        source: the data and how to spread them.
        folder: where the state folders go, under a name of their own for each source and seed.
        report: told how far the work is.
        seed: of the spread and of each site's split into training, validation and test patients.

    Raises:
        SitesError: the source cannot be read or has no site.
        RegistrationError: an index cannot be read or lacks a column.
    """
    folder = folder / f"{source.fingerprint}-{seed}"
    settings = _settings(source, folder, seed)
    if not settings:
        raise SitesError(f"{source.path} holds no site.")
    states = []
    for number, one in enumerate(settings):
        report("Registering images", number, len(settings))
        state = folder / one.name
        if (state / "registry.sqlite").exists():
            site = open_site(state)
        else:
            key = hmac.digest(b"echofed simulation split", f"{seed}/{one.name}".encode(), "sha256")
            site = create_site(state, one, split_key=key)
        site.register()
        states.append(state)
    report("Registering images", len(settings), len(settings))
    return states


def _settings(source: DataSource, folder: Path, seed: int) -> list[SiteSettings]:
    path = source.path.absolute()
    if source.label_skew is not None and not source.virtual_sites:
        raise SitesError("A label skew is for virtual sites only.", "Add --virtual-sites, or leave out --label-skew.")
    if source.virtual_sites and source.site_column:
        raise SitesError("Sites are either virtual or named by a column.", "Leave out one of the two.")
    if path.is_dir() and not (path / "index.csv").exists():
        if source.virtual_sites or source.site_column:
            raise SitesError(
                f"{path} holds a folder for each site already.", "Name one CSV file to split it otherwise."
            )
        parts = sorted(index.parent for index in source.indices)
        _one_name_each(part.name for part in parts)
        return [SiteSettings(name=_name(part.name), data_folder=part, columns=source.columns) for part in parts]
    index = path / "index.csv" if path.is_dir() else path
    rows = _read(index, source.columns)
    groups = _virtual(rows, source, seed) if source.virtual_sites else _natural(rows, source)
    return [
        SiteSettings(
            name=name,
            data_folder=index.parent,
            index_file=_write(folder, name, group, source.columns),
            columns=source.columns,
        )
        for name, group in sorted(groups.items())
    ]


def _read(index: Path, columns: Columns) -> list[IndexRow]:
    rows = read_index(SiteSettings(name="all", data_folder=index.parent, index_file=index, columns=columns))
    if malformed := sum(row.malformed for row in rows):
        raise SitesError(
            f"{index} has {malformed} rows with another number of columns than its header; they belong to no site.",
            "Correct these rows or take them out.",
        )
    return rows


def _natural(rows: Sequence[IndexRow], source: DataSource) -> dict[str, list[IndexRow]]:
    column = source.site_column or "centre"
    if column not in rows[0].values:
        raise SitesError(
            f"The index has no column '{column}'; beside files and patients it has {', '.join(rows[0].values)}.",
            "Name the column of the sites with --site-column, or spread patients with --virtual-sites.",
        )
    if nowhere := sum(not row.values[column] for row in rows):
        raise SitesError(f"{nowhere} rows name no site in column '{column}'.", "Write their site or take them out.")
    _one_name_each(row.values[column] for row in rows)
    groups: dict[str, list[IndexRow]] = {}
    for row in rows:
        groups.setdefault(_name(row.values[column]), []).append(row)
    sites_of: dict[str, set[str]] = {}
    for site, group in groups.items():
        for row in group:
            sites_of.setdefault(row.patient, set()).add(site)
    if shared := sum(len(sites) > 1 for patient, sites in sites_of.items() if patient):
        raise SitesError(
            f"{shared} patients are at several sites; they could be trained on at one and tested at another.",
            "Write each patient's rows to one site, or other ids if they are other people.",
        )
    return groups


def _virtual(rows: Sequence[IndexRow], source: DataSource, seed: int) -> dict[str, list[IndexRow]]:
    assert source.virtual_sites is not None
    patients: dict[str, list[IndexRow]] = {}
    for row in rows:
        patients.setdefault(row.patient, []).append(row)
    number, rng = source.virtual_sites, np.random.default_rng([seed, 0x51735])
    order = rng.permutation(sorted(patients))
    label_of = {patient: group[0].label for patient, group in patients.items()}
    if source.label_skew is not None and len(set(label_of.values())) < 2:
        raise SitesError(
            "A label skew needs a column with labels.", "Name it with --column label=..., or leave the skew out."
        )
    shares = {
        label: rng.dirichlet(np.full(number, source.label_skew)) if source.label_skew else np.full(number, 1 / number)
        for label in sorted(set(label_of.values()))
    }
    groups: dict[str, list[IndexRow]] = {f"site-{site + 1:02d}": [] for site in range(number)}
    for label, share in shares.items():
        members = [patient for patient in order if label_of[patient] == label]
        ends = np.round(np.cumsum(share) * len(members)).astype(int)
        for site, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            for patient in members[start:end]:
                groups[f"site-{site + 1:02d}"].extend(patients[str(patient)])
    return {name: group for name, group in groups.items() if group}


def _write(folder: Path, name: str, rows: Sequence[IndexRow], columns: Columns) -> Path:
    path = folder.absolute() / "indices" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [columns.file, columns.patient, *rows[0].values])
        writer.writeheader()
        writer.writerows({columns.file: row.file, columns.patient: row.patient, **row.values} for row in rows)
    return path


def _one_name_each(texts: Iterable[str]) -> None:
    """Refuse sites whose names differ only in characters a site's name cannot have."""
    texts_of: dict[str, str] = {}
    for text in texts:
        if (other := texts_of.setdefault(_name(text), text)) != text:
            raise SitesError(f"'{other}' and '{text}' make the same site's name.", "Rename one of them.")


def _name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:64]
    if not name:
        raise SitesError(f"'{text}' does not make a site's name.")
    return name
