"""The search for identifying texts: finds each one wherever it is stored, and next to nothing else."""

import json
import os
import random
import sqlite3
import struct
import unicodedata
import zlib
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from echofed.client.ingest import leaks
from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.header import read_header
from echofed.client.ingest.identifying import identifying_texts
from echofed.client.ingest.kept_dicom import deidentified_copy
from echofed.client.ingest.leaks import Leak, Search, find_leaks
from echofed.client.ingest.pseudonyms import Pseudonyms
from echofed.client.ingest.spellings import date_spellings, name_spellings
from tests.client.ingest.planted_secrets import CHARACTER_SETS, planted_files
from tests.client.ingest.test_header import read

NAME = "M\u00fc\u00f1oz Karlovic"
RANDOM = np.random.default_rng(4)
PSEUDONYMS = Pseudonyms(b"k" * 32)


def found(content: bytes, *texts: str) -> set[str]:
    return {text for _, _, text in Search(texts).find(content)}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "spelt", [NAME, NAME.upper(), NAME.lower(), "Munoz Karlovic", "MUNOZ KARLOVIC", "Muenoz karlovic"]
)
def test_texts_are_found_in_every_encoding_case_and_without_accents(encoding: str, spelt: str) -> None:
    if spelt == "Muenoz karlovic":
        spelt = "Mue\u00f1oz karlovic"  # umlauts written out, other accents kept
    assert found(b"\x01\x02" + spelt.encode(encoding) + b"\x03", NAME) == {NAME}


def test_decomposed_and_escaped_letters_are_found() -> None:
    assert found(unicodedata.normalize("NFD", NAME).encode(), NAME) == {NAME}
    assert found(json.dumps({"name": NAME}).encode(), NAME) == {NAME}
    assert found(json.dumps({"name": NAME.upper()}).encode(), NAME) == {NAME}


@pytest.mark.parametrize(("codec", "person"), [(codec, person) for _, codec, person in CHARACTER_SETS])
def test_names_are_found_as_older_character_sets_write_them(codec: str, person: str) -> None:
    assert found(b"x" + person.encode(codec), person) == {person}
    assert found(json.dumps(person).encode(), person) == {person}


@pytest.mark.parametrize("spelling", sorted(date_spellings(date(2024, 1, 31))))
def test_dates_are_found_in_every_spelling(spelling: str) -> None:
    assert spelling in found(f'{{"seen": "{spelling}"}}'.encode(), *date_spellings(date(2024, 1, 31)))


@pytest.mark.parametrize("spelling", sorted(name_spellings("Doerr^Jane^Mary")))
def test_names_are_found_in_every_order(spelling: str) -> None:
    assert spelling in found(f"a,{spelling},b".encode(), *name_spellings("Doerr^Jane^Mary"))


def test_short_texts_are_words_of_their_own() -> None:
    assert found(b"id=Kim4;", "Kim4") == {"Kim4"}
    assert found("id=Kim4;".encode("utf-16-be"), "Kim4") == {"Kim4"}
    assert found(b"akim4", "Kim4") == found(b"kim4x", "Kim4") == found("akim4".encode("utf-16-le"), "Kim4") == set()
    assert found(b"xKarlovicax", "Karlovica") == {"Karlovica"}
    assert found(b"xABCDEF123", "abcdef123") == found(b"xKarlovicx", "Karlovic") == set()
    assert found(b"xABCDEF1234567", "abcdef1234567") == {"abcdef1234567"}


def test_numbers_are_whole_and_no_fractions() -> None:
    assert found(b"id 482133.", "482133") == {"482133"}
    assert found(b"0.482133", "482133") == found(b"1482133", "482133") == found(b"ab482133cd", "482133") == set()
    assert found(b"v.482133", "482133") == {"482133"}


def test_what_is_too_short_or_our_own_is_counted_not_searched() -> None:
    search = Search(["Li", "12345", "Philips", "Turbo", "patient", "\u738b", "", "Karlovic"])
    assert search.left_out == 6
    assert Search(["LOGIQ 700", "Philips CX50", "SSD-4000"]).left_out == 3
    assert Search(["LOGIQ Schmidt", "AB123456", "Philips^John"]).left_out == 0
    assert found("\u738b\u4f1f".encode(), "\u738b\u4f1f") == {"\u738b\u4f1f"}


@given(st.integers(0, 3 * leaks.CHUNK_BYTES), st.sampled_from(["text", "pixels"]))
def test_texts_are_found_wherever_chunks_meet(offset: int, place: leaks.Place) -> None:
    content = bytearray(3 * leaks.CHUNK_BYTES + 64)
    content[offset : offset + 13] = b"KarlovicAnna1"
    assert [hit[0] for hit in Search(["Karlovicanna1"]).find(bytes(content), place)] == [offset]


@pytest.mark.parametrize("shift", range(-16, 5))
def test_texts_across_the_edge_of_a_chunk_are_found_once(shift: int) -> None:
    content = bytearray(2 * leaks.CHUNK_BYTES)
    offset = leaks.CHUNK_BYTES + shift
    content[offset : offset + 6] = b"Kim4Xy"
    assert [hit[0] for hit in Search(["kim4xy"]).find(bytes(content))] == [offset]
    content[offset - 1] = ord("a")
    assert list(Search(["kim4xy"]).find(bytes(content))) == []


def test_planted_texts_are_found_in_every_kind_of_file(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (64, 64), np.uint8)
    text = "Karlovic^Annabel"
    save_file({"pixels": pixels}, tmp_path / "metadata.safetensors", {"patient": text})
    hidden = pixels.copy()
    hidden.reshape(-1)[101 : 101 + len(text)] = np.frombuffer(text.encode(), np.uint8)
    save_file({"pixels": hidden}, tmp_path / "pixels.safetensors")
    (tmp_path / "index.csv").write_text(f"a,b\n1,{text}\n", encoding="utf-8")
    (tmp_path / "report.html").write_text(f"<p>{text}</p>", encoding="utf-16")
    _png(tmp_path / "plain.png", pixels, b"tEXt", b"Comment\0" + text.encode())
    _png(tmp_path / "compressed.png", pixels, b"zTXt", b"Comment\0\0" + zlib.compress(text.encode()))
    _png(tmp_path / "international.png", pixels, b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(text.encode()))
    (tmp_path / f"{text}.bin").write_bytes(b"\0")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "unknown").write_bytes(RANDOM.bytes(999) + text.upper().encode() + RANDOM.bytes(99))
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("CREATE TABLE t (a, b)")
        database.execute("INSERT INTO t VALUES ('x' || ?, 20240131)", (text,))
    database.close()
    (tmp_path / "copy.dcm").write_bytes(b"\0" * 128 + b"DICM" + text.encode() + _pixel_data(pixels.tobytes()))
    (tmp_path / "pixels.dcm").write_bytes(b"\0" * 128 + b"DICM" + _pixel_data(hidden.tobytes()))
    with_leaks = {leak.path.name for leak in find_leaks([tmp_path], [text])}
    assert with_leaks == {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert find_leaks([tmp_path], ["Somebody^Else"]) == []


def _png(path: Path, pixels: np.ndarray, kind: bytes, content: bytes) -> None:
    Image.fromarray(pixels).save(path)
    image = path.read_bytes()
    chunk = len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)
    path.write_bytes(image[:33] + chunk + image[33:])
    Image.open(path).load()


def _pixel_data(pixels: bytes) -> bytes:
    return b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", len(pixels)) + pixels


def test_texts_and_large_numbers_of_databases_are_found_across_pages_and_types(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute('CREATE TABLE "odd ""name" (a, b)')
        texts = [f"{number:05}Karlovicz{'x' * 900}Annabellina" for number in range(20)]
        database.executemany('INSERT INTO "odd ""name" VALUES (?, ?)', [(text, 20240131) for text in texts])
        database.execute('INSERT INTO "odd ""name" VALUES (1, 482133)')
    database.close()
    assert {leak.text for leak in find_leaks([path], ["Annabellina", "20240131", "482133"])} == {
        "Annabellina",
        "20240131",
    }


def test_a_find_is_reported_without_saying_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x Karlovic y Karlovic", encoding="utf-8")
    assert find_leaks([tmp_path / "a.csv"], ["Karlovic"]) == [Leak(tmp_path / "a.csv", 2, "utf-8", "Karlovic")]
    assert "arlovic" not in repr(find_leaks([tmp_path], ["Karlovic"]))


def test_what_cannot_be_read_is_an_error_and_not_clean(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_bytes(b"SQLite format 3\0" + RANDOM.bytes(4096))
    with pytest.raises(LeakError, match="could not be searched"):
        find_leaks([tmp_path], ["Karlovic"])
    with pytest.raises(LeakError, match="could not be searched"):
        find_leaks([tmp_path / "none"], ["Karlovic"])


def test_empty_files_links_and_no_texts_are_no_leaks(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert find_leaks([tmp_path], ["Karlovic"]) == []
    (tmp_path / "full").write_bytes(b"Karlovic")
    assert find_leaks([tmp_path], []) == []


def _ten_thousand_texts() -> set[str]:
    draw = random.Random(8)
    texts: set[str] = set()
    while len(texts) < 10_000:
        name = "^".join(
            "".join(draw.choices("abcdeghiklmnoprstuvz", k=draw.randrange(4, 10))).title() for _ in range(2)
        )
        texts |= name_spellings(name) | date_spellings(date(1930, 1, 1) + timedelta(draw.randrange(30_000)))
        texts |= {
            str(draw.randrange(10**5, 10**9)),
            f"1.2.840.{draw.randrange(10**9)}.20240131.{draw.randrange(10**9)}",
        }
    return texts


def test_random_pixels_and_codes_hold_none_of_ten_thousand_texts() -> None:
    search = Search(_ten_thousand_texts())
    assert list(search.find(RANDOM.bytes(2**26), "pixels")) == []
    rows = [
        json.dumps(
            {"sha256": RANDOM.bytes(32).hex(), "patient": PSEUDONYMS.patient(str(row)), "mean": RANDOM.random() * 100}
        )
        for row in range(20_000)
    ]
    assert list(search.find("\n".join(rows).encode())) == []


def test_real_ultrasound_holds_none_of_ten_thousand_texts(shared_data: Path) -> None:
    images = sorted((shared_data / "busbra").rglob("*.png"))[:150]
    assert len(images) == 150
    content = b"".join(np.asarray(Image.open(path).convert("L")).tobytes() for path in images)
    assert list(Search(_ten_thousand_texts()).find(content, "pixels")) == []


def test_smooth_pixels_would_hold_texts_if_they_were_searched_as_text() -> None:
    # Why pixels have a rule of their own: a slope or a patch of grey levels spells numbers.
    ramp = bytes(range(256)) + b"\0" + b"1" * 8 + b"\0"  # a slope, and a patch of one grey
    assert {text for _, _, text in Search(["11111111", "0123456789"]).find(ramp)} == {"11111111", "0123456789"}
    assert list(Search(["11111111", "0123456789"]).find(ramp, "pixels")) == []


def test_copies_and_headers_of_planted_files_are_clean_and_their_sources_are_not(tmp_path: Path) -> None:
    for file in planted_files():
        source = read(file)
        texts = identifying_texts(source)
        header = read_header(source, PSEUDONYMS, "band")
        copy = tmp_path / "copy.dcm"
        copy.write_bytes(deidentified_copy(source, np.zeros((2, 8, 8), np.uint8), header, PSEUDONYMS))
        assert find_leaks([copy], texts) == [], file.name
        original = tmp_path / "original"
        original.write_bytes(file.content)
        assert find_leaks([original], texts), file.name
        original.unlink()
