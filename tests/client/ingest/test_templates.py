"""Masks remembered for a device and its layout."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.geometry import Box, Layout, Region
from echofed.client.ingest.templates import keep_template, layout_key, read_template

LAYOUT = Layout((Region(Box(10, 20, 300, 400), "tissue", (0.1, 0.1)), Region(Box(310, 20, 400, 400), "doppler")), "tag")


@dataclass(frozen=True)
class Scanner:
    vendor: str = "Aquila"
    model: str = "One"
    rows: int = 480
    columns: int = 640


def test_a_mask_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((37, 53)) < 0.3
    key = layout_key(Scanner(), LAYOUT)
    assert read_template(tmp_path / "templates", key) is None
    path = keep_template(tmp_path / "templates", key, mask)
    kept = read_template(tmp_path / "templates", key)
    assert kept is not None
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, mask)
    assert path.stat().st_mode & 0o077 == 0


def test_a_newer_mask_replaces_the_older(tmp_path: Path) -> None:
    key = layout_key(Scanner(), LAYOUT)
    keep_template(tmp_path, key, np.zeros((5, 7), bool))
    keep_template(tmp_path, key, np.ones((3, 4), bool))
    kept = read_template(tmp_path, key)
    assert kept is not None
    assert kept.shape == (3, 4)
    assert kept.all()


def test_the_key_depends_on_device_size_and_regions_only() -> None:
    key = layout_key(Scanner(), LAYOUT)
    respaced = Layout((replace(LAYOUT.regions[0], spacing_mm=(0.2, 0.2)), LAYOUT.regions[1]), "image")
    assert layout_key(Scanner(), respaced) == key
    others = [
        layout_key(Scanner(vendor="Borealis"), LAYOUT),
        layout_key(Scanner(model="Two"), LAYOUT),
        layout_key(Scanner(rows=481), LAYOUT),
        layout_key(Scanner(columns=641), LAYOUT),
        layout_key(Scanner(vendor="Aquila One", model=""), LAYOUT),
        layout_key(Scanner(), replace(LAYOUT, regions=LAYOUT.regions[:1])),
    ]
    assert len({key, *others}) == 7


@pytest.mark.parametrize("position", [0, 8, 20, 41, 45, 50])
def test_a_damaged_mask_is_refused(tmp_path: Path, position: int) -> None:
    key = layout_key(Scanner(), LAYOUT)
    path = keep_template(tmp_path, key, np.ones((9, 9), bool))
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(IngestError, match="damaged"):
        read_template(tmp_path, key)


@pytest.mark.parametrize("length", [0, 8, 40, 47, 49])
def test_a_cut_mask_is_refused(tmp_path: Path, length: int) -> None:
    key = layout_key(Scanner(), LAYOUT)
    path = keep_template(tmp_path, key, np.ones((9, 9), bool))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(IngestError, match="damaged"):
        read_template(tmp_path, key)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 32 + "\n"])
def test_a_key_cannot_name_another_file(tmp_path: Path, key: str) -> None:
    with pytest.raises(IngestError, match="no key"):
        read_template(tmp_path, key)
    with pytest.raises(IngestError, match="no key"):
        keep_template(tmp_path, key, np.ones((2, 2), bool))


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 2, 2), (1, 20000)])
def test_an_absurd_mask_is_not_kept(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(IngestError, match="cannot be kept"):
        keep_template(tmp_path, layout_key(Scanner(), LAYOUT), np.ones(shape, bool))
    assert not list(tmp_path.iterdir())
