"""A site's own settings."""

from pathlib import Path

import pytest

from echofed.client.settings import load_settings
from echofed.protocol.errors import RegistrationError


def test_a_relative_data_folder_lies_beside_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: north\ndata_folder: images\ncolumns: {patient: pid, mask: null, findings: {cyst: F1}}\n")
    settings = load_settings(path)
    assert settings.data_folder == tmp_path / "images"
    assert settings.index_path == tmp_path / "images" / "index.csv"
    assert settings.columns.findings == {"cyst": "F1"}
    assert settings.columns.mask is None


def test_an_absolute_index_may_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(f"name: north\ndata_folder: /data\nindex_file: {tmp_path}/rows.csv\n")
    settings = load_settings(path)
    assert settings.data_folder == Path("/data")
    assert settings.index_path == tmp_path / "rows.csv"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_folder: x\n", "add `name:`"),
        ("name: a b\ndata_folder: x\n", "line 1: name"),
        ("name: a\ndata_folder: x\ncolums: {}\n", "did you mean columns?"),
        ("name: a\ndata_folder: x\nminimum_image_side_px: 0\n", "0 must be at least 1"),
        ("name: [\n", "line 2"),
    ],
)
def test_bad_settings_say_what_to_write(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(RegistrationError) as caught:
        load_settings(path)
    assert said in caught.value.what
