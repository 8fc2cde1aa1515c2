"""What a site sees of its own data: counts by reason, as text and as JSON. No patient id is in a report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from echofed.client.splits import SPLITS, Split


@dataclass(frozen=True)
class RegistrationReport:
    """What registering a folder found.

    Args:
        site: the site's name.
        rows: rows in the index.
        images: images that can be used.
        patients: patients with at least one of them.
        quarantined: images left out, by reason.
        noted: what was found and kept, by kind.
        files: up to three file names for each reason, for the site's own eyes; not part of `to_json`.
        unchanged: images known from before and not decoded again.
        seconds: time it took.
    """

    site: str
    rows: int
    images: int
    patients: int
    quarantined: dict[str, int]
    noted: dict[str, int]
    files: dict[str, tuple[str, ...]] = field(repr=False)
    unchanged: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the counts, without file names."""
        content = asdict(self)
        del content["files"]
        return content

    def text(self) -> str:
        """Return the report as plain text."""
        known = f", {self.unchanged:,} of them unchanged" if self.unchanged else ""
        lines = [
            f"{self.site}: {_count(self.rows, 'row')} read in {self.seconds:.1f} s{known}.",
            f"Usable: {_count(self.images, 'image')} of {_count(self.patients, 'patient')}.",
            *_table("Quarantined:", self.quarantined, self.files),
            *_table("Noted, and kept:", self.noted, {}),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class SiteReport:
    """What a site can bring to a study.

    Args:
        site: the site's name.
        study_hash: of the study.
        patients, images, items: by split; an item is what gets one answer, an image or an exam.
        labels: for each label of the study, patients and images; of a finding, those that have it.
        quarantined: images left out, by reason, from registration and for this study together.
        unknown_labels: labels at the site that the study does not mention, by number of images.
        missing_columns: columns the study asks for and the index lacks.
    """

    site: str
    study_hash: str
    patients: dict[Split, int]
    images: dict[Split, int]
    items: dict[Split, int]
    labels: dict[str, dict[str, int]]
    quarantined: dict[str, int]
    unknown_labels: dict[str, int]
    missing_columns: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all counts."""
        return asdict(self)

    def text(self) -> str:
        """Return the report as plain text."""
        lines = [f"{self.site} for study {self.study_hash[:12]}:"]
        for split in SPLITS:
            patients, images = _count(self.patients[split], "patient"), _count(self.images[split], "image")
            lines.append(f"  {split:<10}  {patients}, {images}")
        if self.labels:
            lines.append("Labels:")
        for label, counts in self.labels.items():
            lines.append(f"  {label}: {_count(counts['patients'], 'patient')}, {_count(counts['images'], 'image')}")
        lines += _table("Left out:", self.quarantined, {})
        lines += _table("Labels the study does not mention:", self.unknown_labels, {})
        if self.missing_columns:
            lines.append(f"Columns missing in the index: {', '.join(self.missing_columns)}.")
        return "\n".join(lines)


def counts_by_reason(reasons: Counter[str]) -> dict[str, int]:
    """Return counts, the largest first, then by name."""
    return {str(reason): count for reason, count in sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(title: str, counts: Mapping[str, int], files: Mapping[str, tuple[str, ...]]) -> list[str]:
    lines = [title] if counts else []
    for reason, count in counts.items():
        named = ", ".join(name[:80] for name in files.get(reason, ()))
        more = ", ..." if named and count > len(files[reason]) else ""
        lines.append(f"  {count:>7,}  {reason}" + (f" ({named}{more})" if named else ""))
    return lines
