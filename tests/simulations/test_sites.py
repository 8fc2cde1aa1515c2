"""From data on one machine to sites: natural centres, virtual sites, a folder each; nothing merged or dropped silently."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echofed.client.settings import Columns
from echofed.client.site import open_site
from echofed.protocol.errors import RegistrationError, SitesError
from echofed.simulations.sites import DataSource, make_sites
from tests.studies import make_study

HEADER = ["file", "patient_id", "label", "centre"]


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize((40, 40))


def write_data(folder: Path, centres: list[str], images: int = 2, delimiter: str = ",") -> Path:
    """One patient for each centre named, with a few images; return the index."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, centre in enumerate(centres):
        for image in range(images):
            file = f"{number}-{image}.png"
            picture(100 * number + image).save(folder / file)
            rows.append([file, f"p{number}", ("benign", "malignant")[number % 2], centre])
    return write_index(folder, [HEADER, *rows], delimiter)


def write_index(folder: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return folder / "index.csv"


def patients(states: list[Path]) -> dict[str, int]:
    return {state.name: sum(open_site(state).count_patients(make_study()).values()) for state in states}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_natural_centres_become_sites_in_the_order_of_their_names(tmp_path: Path, delimiter: str) -> None:
    index = write_data(tmp_path / "data", ["b", "a", "b", "c d"], delimiter=delimiter)
    for path in (index, index.parent):
        states = make_sites(DataSource(path), tmp_path / path.name, 0)
        assert [state.name for state in states] == ["a", "b", "c-d"]
        assert patients(states) == {"a": 1, "b": 2, "c-d": 1}


def test_virtual_sites_share_out_all_patients_once_and_follow_the_seed(tmp_path: Path) -> None:
    index = write_data(tmp_path / "data", ["x"] * 12, images=1)

    def spread(seed: int, skew: float | None = None) -> dict[str, int]:
        return patients(make_sites(DataSource(index, None, 3, skew), tmp_path / "sites", seed))

    assert spread(0) == {"site-01": 4, "site-02": 4, "site-03": 4}
    assert sum(spread(0, 0.2).values()) == 12
    indices = [sorted((tmp_path / "sites").glob(f"*-{seed}/indices/site-01.csv")) for seed in (0, 0, 1)]
    spread(1)
    written = [path.read_text() for path in sorted((tmp_path / "sites").glob("*/indices/site-01.csv"))]
    assert len(written) == 3
    assert len(set(written)) == 3
    assert indices[0] == indices[1]


def test_a_folder_for_each_site(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write_data(tmp_path / "data" / name, ["x", "y"])
    states = make_sites(DataSource(tmp_path / "data"), tmp_path / "sites", 0)
    assert patients(states) == {"north": 2, "south": 2}


def test_the_split_follows_the_seed_and_the_name_of_the_site(tmp_path: Path) -> None:
    index = write_data(tmp_path / "data", ["a", "b"])
    keys = [
        (state / "split.key").read_bytes()
        for seed in (0, 1)
        for state in make_sites(DataSource(index), tmp_path / "sites", seed)
    ]
    assert len(set(keys)) == 4
    again = make_sites(DataSource(index), tmp_path / "elsewhere", 0)
    assert [(state / "split.key").read_bytes() for state in again] == keys[:2]


def test_a_registration_cut_short_is_taken_up_again(tmp_path: Path) -> None:
    source = DataSource(write_data(tmp_path / "data", ["a", "a", "b"]))
    states = make_sites(source, tmp_path / "sites", 0)
    for state in states:
        (state / "split.key").rename(state / "kept")
        (state / "registry.sqlite").unlink()
        (state / "kept").rename(state / "split.key")
    assert patients(make_sites(source, tmp_path / "sites", 0)) == {"a": 2, "b": 1}


def test_the_fingerprint_changes_with_the_index_but_not_with_the_images(tmp_path: Path) -> None:
    index = write_data(tmp_path / "data", ["a", "b"])
    source = DataSource(index)
    before = source.fingerprint
    picture(99).save(tmp_path / "data" / "0-0.png")
    assert source.fingerprint == before
    index.write_text(index.read_text().replace("malignant", "benign"))
    assert source.fingerprint != before
    assert DataSource(index, virtual_sites=2).fingerprint != source.fingerprint


MERGED = [["0-0.png", "p0", "benign", "St. Anna"], ["1-0.png", "p1", "benign", "St Anna"]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([["0-0.png", "p0", "benign", "a", "more"]], "1 rows with another number of columns"),
        ([["0-0.png", "p0", "benign"]], "1 rows with another number of columns"),
        ([["0-0.png", "p0", "benign", ""]], "1 rows name no site"),
        ([["0-0.png", "p0", "benign", "!?"]], "does not make a site's name"),
        ([*MERGED, ["1-1.png", "p1", "benign", "St-Anna"]], "make the same site's name"),
    ],
)
def test_rows_without_a_clear_site_stop_the_simulation(tmp_path: Path, rows: list[list[str]], says: str) -> None:
    write_data(tmp_path / "data", ["a", "b"])
    index = write_index(tmp_path / "data", [HEADER, ["0-1.png", "p0", "benign", "a"], *rows])
    with pytest.raises(SitesError, match=says):
        make_sites(DataSource(index), tmp_path / "sites", 0)


def test_two_folders_whose_names_make_one_are_refused(tmp_path: Path) -> None:
    for name in ("site a", "site-a"):
        write_data(tmp_path / "data" / name, ["x"])
    with pytest.raises(SitesError, match="make the same site's name"):
        make_sites(DataSource(tmp_path / "data"), tmp_path / "sites", 0)


def test_settings_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    index = write_data(tmp_path / "data" / "only", ["a"])
    for source in (
        DataSource(index, label_skew=0.5),
        DataSource(index, site_column="centre", virtual_sites=2),
        DataSource(tmp_path / "data", virtual_sites=2),
        DataSource(tmp_path / "data", site_column="centre"),
    ):
        with pytest.raises(SitesError):
            make_sites(source, tmp_path / "sites", 0)


def test_data_that_cannot_be_read_are_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SitesError, match="holds no site"):
        make_sites(DataSource(tmp_path / "empty"), tmp_path / "sites", 0)
    with pytest.raises(RegistrationError, match="cannot be read"):
        make_sites(DataSource(tmp_path / "absent.csv"), tmp_path / "sites", 0)
    index = write_data(tmp_path / "data", ["a"])
    with pytest.raises(SitesError, match=r"no column 'hospital'.*label, centre"):
        make_sites(DataSource(index, "hospital"), tmp_path / "sites", 0)
    with pytest.raises(RegistrationError, match="no column PID"):
        make_sites(DataSource(index, columns=Columns(patient="PID")), tmp_path / "sites", 0)
