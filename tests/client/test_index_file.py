"""CSV as hospitals really write it."""

from pathlib import Path

import pytest

from echofed.client.index_file import IndexRow, read_index
from echofed.client.settings import Columns, SiteSettings
from echofed.protocol.errors import RegistrationError

TEXT = "file,patient_id,label,note\na.png,Müller,benign,x\nb.png,p2,,\n"


def read(folder: Path, content: bytes, columns: Columns | None = None) -> list[IndexRow]:
    (folder / "index.csv").write_bytes(content)
    return read_index(SiteSettings(name="a", data_folder=folder, columns=columns or Columns()))


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode("utf-16"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\n\n,,,\n").encode(),
        TEXT.replace("Müller", "Mu\u0308ller").encode(),
        TEXT.replace("a.png", '" a.png "').encode(),
    ],
    ids=["utf-8", "mark", "semicolon", "utf-16", "windows", "empty lines", "decomposed", "spaces"],
)
def test_every_spelling_of_the_same_index_reads_the_same(tmp_path: Path, content: bytes) -> None:
    first, second = read(tmp_path, content)
    assert first == IndexRow("a.png", "Müller", "", "", "benign", {"label": "benign", "note": "x"})
    assert (second.patient, second.label) == ("p2", "")


def test_columns_are_found_by_the_sites_own_names(tmp_path: Path) -> None:
    columns = Columns(file="path", patient="pid", exam="study", mask="roi", label="dx", findings={"cyst": "F1"})
    content = b"path,pid,study,roi,dx,F1\nx\\a.png,1,e1,m\\a.png,benign,1\n"
    (row,) = read(tmp_path, content, columns)
    assert (row.file, row.patient, row.exam, row.mask, row.label) == ("x/a.png", "1", "e1", "m/a.png", "benign")
    assert row.values["F1"] == "1"
    assert "pid" not in row.values


def test_a_row_of_another_length_is_marked(tmp_path: Path) -> None:
    rows = read(tmp_path, b"file,patient_id\na.png\nb.png,1\nc.png,1,2\n")
    assert [row.malformed for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"file,patient_id\n", "no rows"),
        (b"name,pid\na,b\n", "no column file, patient_id; its columns are: name, pid"),
        (b"file,file,patient_id\na,b,c\n", "two columns called file"),
        (TEXT.encode("latin-1"), "line 2: not UTF-8"),
        (b'file,patient_id\n"a,b\n', "line 2"),
        (b'file,patient_id\na,"b"c\n', "line 2"),
    ],
)
def test_an_index_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        read(tmp_path, content)
    assert said in caught.value.what


def test_a_column_the_settings_name_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="no column exam"):
        read(tmp_path, TEXT.encode(), Columns(exam="exam"))
    with pytest.raises(RegistrationError, match="no column F9"):
        read(tmp_path, TEXT.encode(), Columns(findings={"cyst": "F9"}))


def test_a_missing_folder_or_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match=r"index\.csv cannot be read"):
        read_index(SiteSettings(name="a", data_folder=tmp_path))
    with pytest.raises(RegistrationError, match="no data folder"):
        read_index(SiteSettings(name="a", data_folder=tmp_path / "none"))
