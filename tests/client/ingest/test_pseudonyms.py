"""Pseudonyms: stable, separate, undone by nobody without the key."""

import os
import stat
from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.pseudonyms import (
    KEY_FILE,
    Pseudonyms,
    clean_id,
    open_pseudonyms,
    patient_identity,
    read_merges,
)

ONE, OTHER = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)


@pytest.mark.parametrize("written", ["A1 ", " A1", "A1\0", "A1 \0\0", "\tA1"])
def test_padding_of_an_id_means_nothing(written: str) -> None:
    assert ONE.patient(written) == ONE.patient("A1")


def test_composed_and_decomposed_letters_are_one_id_but_case_differs() -> None:
    assert ONE.patient("Mu\u0308ller") == ONE.patient("M\u00fcller")
    assert ONE.patient("a1") != ONE.patient("A1")


def test_the_same_id_of_two_issuers_is_two_patients() -> None:
    identities = [patient_identity("A1"), patient_identity("A1", "North"), patient_identity("A1", " South ")]
    assert identities == ["A1", "A1^^^North", "A1^^^South"]
    assert len({ONE.patient(identity) for identity in identities}) == 3
    assert patient_identity(" \0", "North") == ""


@given(st.text(max_size=70))
def test_kinds_and_keys_never_share_a_pseudonym(text: str) -> None:
    made = [
        kind(pseudonyms, text)
        for pseudonyms in (ONE, OTHER)
        for kind in (
            Pseudonyms.patient, Pseudonyms.exam, Pseudonyms.instance, Pseudonyms.accession, Pseudonyms.equipment,
            Pseudonyms.source_key, Pseudonyms.uid,
        )
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert all(
        code.isalnum() and code == code.lower() and len(code) == 20 for code in made if not code.startswith("2.25.")
    )


@given(st.text(max_size=70))
def test_uids_are_valid_and_say_that_they_are_made(text: str) -> None:
    made = ONE.uid(text)
    number = int(made.removeprefix("2.25."))
    assert UID(made).is_valid
    assert len(made) <= 64
    assert (number >> 76) & 0xF == 8
    assert (number >> 62) & 0x3 == 2


def test_where_one_text_ends_and_the_next_begins_matters() -> None:
    assert ONE.trait("ab", "name", "c") != ONE.trait("a", "name", "bc")
    assert ONE.trait("a", "name", "") == ""
    assert ONE.trait("a", "name", "x") != ONE.trait("b", "name", "x")


@given(st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(0, 20_000))
def test_only_intervals_between_a_patients_exams_survive(first: date, days: int) -> None:
    second = first + timedelta(days=days)
    assert ONE.day("A", second) - ONE.day("A", first) == days
    assert ONE.day("A", first) != ONE.day("B", first)
    assert ONE.day("A", first) != OTHER.day("A", first)


def test_the_zeros_of_clocks_fill_their_range() -> None:
    zeros = [ONE.day(f"patient {number}", date(2020, 1, 1)) / 2**40 for number in range(2000)]
    deciles = [sum(low <= zero * 10 < low + 1 for zero in zeros) for low in range(10)]
    assert min(deciles) > 140
    assert max(deciles) < 260


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    made = open_pseudonyms(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert open_pseudonyms(tmp_path).patient("A") == made.patient("A")
    assert made.key.hex() not in repr(made)


def _patient_a(folder: Path) -> str:
    return open_pseudonyms(folder).patient("A")


def test_processes_that_begin_together_agree_on_the_key(tmp_path: Path) -> None:
    with get_context("fork").Pool(8) as pool:
        assert len(set(pool.map(_patient_a, [tmp_path] * 32, chunksize=1))) == 1


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_damaged_key_is_refused(tmp_path: Path, content: str) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(IngestError, match="damaged"):
        open_pseudonyms(tmp_path)


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(IngestError, match="chmod 600"):
        open_pseudonyms(tmp_path)


def test_no_new_key_is_made_where_frames_have_names_of_the_old(tmp_path: Path) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / "frames").mkdir()
    (tmp_path / KEY_FILE).unlink()
    open_pseudonyms(tmp_path)
    (tmp_path / "frames" / "a.safetensors").touch()
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(IngestError, match="backup"):
        open_pseudonyms(tmp_path)
    assert os.listdir(tmp_path) == ["frames"]  # noqa: PTH208


def test_merged_ids_are_one_patient_whose_other_pseudonyms_stay(tmp_path: Path) -> None:
    table = tmp_path / "merges.csv"
    table.write_text("\ufeffpatient_id,same_as\nB,A \nC^^^North,B\nA,A\n", encoding="utf-8")
    merges = read_merges(table)
    assert merges == {"B": "A", "C^^^North": "A"}
    merged = open_pseudonyms(tmp_path, merges)
    alone = open_pseudonyms(tmp_path)
    assert merged.patient("B ") == merged.patient("C^^^North") == merged.patient("A") == alone.patient("A")
    assert merged.day("C^^^North", date(2020, 1, 3)) - merged.day("A", date(2020, 1, 1)) == 2
    assert merged.patient("C") == alone.patient("C")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"patient_id,same_as\nA,B\nB,C\nC,A\n", "circle"),
        (b"patient_id,same_as\nA,B\nA,C\n", "Line 3"),
        (b"patient_id,same_as\nA,\n", "Line 2"),
        (b"patient_id,same_as\nA\n", "Line 2"),
        (b"id,other\nA,B\n", "columns"),
        (b"", "columns"),
        (b"patient_id,same_as\n\xff\xfe,B\n", "cannot be read"),
    ],
)
def test_merges_that_make_no_sense_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    table = tmp_path / "merges.csv"
    table.write_bytes(content)
    with pytest.raises(IngestError, match=match):
        read_merges(table)


def test_a_missing_table_of_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="cannot be read"):
        read_merges(tmp_path / "none.csv")


def test_an_id_is_only_trimmed_at_its_ends() -> None:
    assert clean_id(" A 1\0") == "A 1"
