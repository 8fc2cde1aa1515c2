"""Phantoms as DICOM: the same pictures as ever in screens and headers like a hospital's, and every fault where it should be."""

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_color_lut, pixel_array

from echofed.client.ingest.outcomes import Verdict
from echofed.protocol.errors import SitesError, UnknownNameError
from echofed.simulations.phantoms import PhantomSite, write_phantom_sites
from echofed.simulations.phantoms.cines import move_tissue
from echofed.simulations.phantoms.dicom_files import Clips, DicomSite, write_dicom_site
from echofed.simulations.phantoms.dicom_pixels import FORMATS
from echofed.simulations.phantoms.dicom_truth import EVERY_FAULT, NO_FAULTS, Faults, Truth
from echofed.simulations.phantoms.people import NAMES, invent_person
from echofed.simulations.phantoms.screens import SCREENS
from echofed.simulations.phantoms.writing import drawable

SIDE_PX = (96, 96)
CLIPS = Clips(share=0.4, frames=(2, 5))
SITES = tuple(
    PhantomSite(f"at_{vendor}", vendor, 3, (2, 4), {"benign": 0.4, "malignant": 0.4, "normal": 0.2}, probe)
    for vendor, probe in zip(
        FORMATS, ("linear", "linear_high", "linear", "linear_wide", "convex", "linear"), strict=True
    )
)
IMAGES = ("still", "cine", "no tissue")
UNREADABLE = ("cut off",)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("png")
    write_phantom_sites(folder, SITES, seed=3, image_size_px=SIDE_PX)
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DicomSite]:
    return _write(tmp_path_factory.mktemp("clean"), NO_FAULTS)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DicomSite]:
    return _write(tmp_path_factory.mktemp("faulty"), EVERY_FAULT)


def _write(folder: Path, faults: Faults) -> dict[str, DicomSite]:
    return {
        site.vendor: write_dicom_site(
            folder / site.name, site, 3, faults, place=place, image_size_px=SIDE_PX, clips=CLIPS
        )
        for place, site in enumerate(SITES)
    }


def _frames(site: DicomSite, row: Truth) -> NDArray[np.uint8]:
    """Return the frames as RGB, decoded by pydicom, [frames, height, width, 3]."""
    dataset = pydicom.dcmread(site.export / row.file)
    pixels = pixel_array(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = (apply_color_lut(pixels, dataset) // 257).astype(np.uint8)
    if dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation == "MONOCHROME2":
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return np.asarray(pixels if pixels.ndim == 4 else pixels[None], np.uint8)


def _of(rows: Iterable[Truth], fault: str) -> list[Truth]:
    return [row for row in rows if row.fault == fault]


def _tissue(frames: NDArray[np.uint8], row: Truth) -> NDArray[np.uint8]:
    assert row.tissue is not None
    return frames[:, row.tissue.top : row.tissue.bottom, row.tissue.left : row.tissue.right]


def test_truth_lists_every_file_and_lies_apart(faulty: dict[str, DicomSite]) -> None:
    for site in faulty.values():
        exported = sorted(path.relative_to(site.export).as_posix() for path in site.export.rglob("*") if path.is_file())
        assert exported == sorted(row.file for row in site.rows)
        assert site.export not in site.truth.parents
        with site.truth.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["file"] for row in rows] == [row.file for row in site.rows]
        assert [len(json.loads(row["written"])) for row in rows] == [len(row.written) for row in site.rows]
        assert {verdict for row in rows for verdict in row["verdicts"].split("|")} == set(Verdict)


@pytest.mark.parametrize("vendor", sorted(FORMATS))
def test_tissue_is_that_of_the_phantoms(vendor: str, clean: dict[str, DicomSite], phantoms: Path) -> None:
    site = clean[vendor]
    drawn = sorted(path.stem for path in (phantoms / f"at_{vendor}" / "images").iterdir())
    assert sorted(row.phantom for row in site.rows) == drawn
    for row in site.rows:
        expected = np.asarray(Image.open(phantoms / f"at_{vendor}" / "images" / f"{row.phantom}.png")).astype(int)
        seen = _tissue(_frames(site, row), row)[0, ..., 1].astype(int)
        assert seen.shape == expected.shape
        # The phantoms' own rulers, bars and calipers are not in the DICOM files; JPEG and palettes change levels.
        tolerance = 30 if FORMATS[vendor].still.photometric == "YBR_FULL_422" or row.kind == "cine" else 8
        assert np.mean(np.abs(seen - expected) <= tolerance) > 0.96


@pytest.mark.parametrize("vendor", sorted(FORMATS))
def test_files_are_stored_as_their_vendor_does(vendor: str, clean: dict[str, DicomSite]) -> None:
    kinds = set()
    for row in clean[vendor].rows:
        dataset = pydicom.dcmread(clean[vendor].export / row.file)
        expected = FORMATS[vendor].cine if row.kind == "cine" else FORMATS[vendor].still
        assert dataset.file_meta.TransferSyntaxUID == expected.transfer_syntax
        assert dataset.PhotometricInterpretation == expected.photometric
        assert dataset.get("NumberOfFrames", 1) == row.frames
        assert ("FrameTime" in dataset) == (row.kind == "cine")
        assert dataset.SOPInstanceUID == row.instance == dataset.file_meta.MediaStorageSOPInstanceUID
        assert (dataset.PatientID, dataset.AccessionNumber) == (row.patient_id, row.accession)
        kinds.add(row.kind)
    assert kinds == {"still", "cine"}


def test_regions_are_right_unless_said_otherwise(clean: dict[str, DicomSite], faulty: dict[str, DicomSite]) -> None:
    seen = set()
    for vendor, site in [*clean.items(), *faulty.items()]:
        for row in site.rows:
            if row.kind not in IMAGES or row.fault in UNREADABLE:
                continue
            dataset = pydicom.dcmread(site.export / row.file)
            missing = "regions missing" in row.fault or (vendor == "dorado" and "regions" not in row.fault)
            assert ("SequenceOfUltrasoundRegions" not in dataset) == missing
            if missing:
                continue
            region, tissue = dataset.SequenceOfUltrasoundRegions[0], row.tissue
            assert tissue is not None
            corners = tuple(region[f"RegionLocation{name}"].value for name in ("MinY0", "MinX0", "MaxY1", "MaxX1"))
            if "regions beyond" in row.fault:
                assert corners[3] > dataset.Columns + 1
            elif "regions over the banner" in row.fault:
                assert corners == (0, 0, tissue.bottom - 1, tissue.right - 1)
            else:
                beyond = int(vendor == "corvus")
                assert corners == (tissue.top, tissue.left, tissue.bottom - 1 + beyond, tissue.right - 1 + beyond)
                assert (corners[3] == dataset.Columns) == (vendor == "corvus")
            assert region.PhysicalDeltaX * 10 == pytest.approx(row.spacing_mm)
            seen.add("regions beyond" in row.fault or "regions over the banner" in row.fault)
    assert seen == {False, True}


def test_texts_are_where_truth_says(clean: dict[str, DicomSite], faulty: dict[str, DicomSite]) -> None:
    """Each text's box holds its colour, as far as format and compression keep it."""
    checked = 0
    for site in (clean["aquila"], faulty["fornax"], faulty["dorado"], faulty["borealis"]):
        for row in site.rows:
            if row.kind != "still" or row.fault in UNREADABLE:
                continue
            frame = _frames(site, row)[0].astype(int)
            for text in row.written:
                box = frame[text.box.top : text.box.bottom, text.box.left : text.box.right]
                assert np.abs(box.mean(axis=-1) - np.mean(text.colour)).min() < 25, text
                checked += 1
    assert checked > 200


def test_banners_name_the_patient_and_pictures_do_not(clean: dict[str, DicomSite]) -> None:
    for vendor, site in clean.items():
        for row in site.rows:
            person = pydicom.dcmread(site.export / row.file).PatientName
            shown = str(person.alphabetic or person).split("^")[0]
            texts = [text.text for text in row.written if text.place == "banner"]
            assert any(row.patient_id in text for text in texts)
            if shown.isascii():
                assert any(shown.casefold() in text.casefold() for text in texts)
            assert all(text.place != "tissue" for text in row.written), vendor


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.character_set[-1])
def test_names_survive_their_character_set(names: object, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    people = (invent_person(generator) for _ in range(400))
    person = next(person for person in people if person.character_set == names.character_set)  # type: ignore[attr-defined]
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = list(person.character_set)
    dataset.PatientName = person.name
    dataset.save_as(tmp_path / "name.dcm", implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(tmp_path / "name.dcm", force=True)
    assert str(read.PatientName) == person.name
    for typeface in ("bitmap", "vector"):
        assert drawable(person.family_shown, typeface).strip()  # type: ignore[arg-type]


def test_clips_move_inside_the_tissue_only(clean: dict[str, DicomSite]) -> None:
    checked = 0
    for vendor in ("borealis", "dorado", "eridanus", "fornax"):
        for row in clean[vendor].rows:
            if row.kind != "cine":
                continue
            frames = _frames(clean[vendor], row)
            moved = np.ptp(frames.astype(int), axis=0).max(axis=-1) > 0
            inside = _tissue(moved[None], row)
            assert moved.sum() == inside.sum()
            assert inside.mean() > 0.3
            first, second = (frame.ravel().astype(float) for frame in _tissue(frames, row)[:2])
            assert 0.75 < np.corrcoef(first, second)[0, 1] < 0.9999
            checked += 1
    assert checked >= 4


def test_clip_starts_with_its_picture_and_keeps_the_corners_black() -> None:
    image = np.random.default_rng(0).integers(1, 255, (40, 60)).astype(np.uint8)
    image[:20, :15] = 0
    clip = move_tissue(image, 8, 20.0, np.random.default_rng(1))
    assert np.array_equal(clip[0], image)
    assert not clip[:, :20, :15].any()
    assert all(not np.array_equal(clip[0], frame) for frame in clip[1:])


@pytest.mark.parametrize("fault", ["calipers", "words", "name on tissue", "moving words"])
def test_writing_on_the_tissue_is_planted_beside_the_clean_picture(fault: str, faulty: dict[str, DicomSite]) -> None:
    rows = [(site, row) for site in faulty.values() for row in _of(site.rows, fault)]
    assert rows
    for site, row in rows:
        texts = [text for text in row.written if text.place == "tissue"]
        assert texts
        assert Verdict.ACCEPTED not in row.verdicts or (row.kind == "cine" and fault != "moving words")
        if fault == "name on tissue":
            assert texts[-1].text == row.patient_id
        # Its original was exported, too.
        assert any(
            one.phantom == row.phantom and not any(t.place == "tissue" for t in one.written) for one in site.rows
        )
        if fault == "moving words":
            frames, box = _frames(site, row), texts[0].box
            written = frames[:, box.top : box.bottom, box.left : box.right].astype(int)
            assert np.abs(written[0] - written[-1]).max() > 60


def test_strays_are_what_they_are_said_to_be(faulty: dict[str, DicomSite]) -> None:
    for site in faulty.values():
        modalities = {
            row.kind: pydicom.dcmread(site.export / row.file).Modality
            for row in site.rows
            if row.kind in ("document", "CT")
        }
        assert modalities == {"document": "DOC", "CT": "CT"}
        (no_patient,) = _of(site.rows, "no patient id")
        assert pydicom.dcmread(site.export / no_patient.file).PatientID == ""
        (cut,) = _of(site.rows, "cut off")
        (other,) = _of(site.rows, "another's name")
        whole = next(row for row in site.rows if row.patient_id == other.patient_id and row.fault == "")
        names = {str(pydicom.dcmread(site.export / row.file).PatientName) for row in (whole, other)}
        assert len(names) == 2
        with pytest.raises(Exception, match=r".+"):
            _frames(site, cut)
        (thumbs,) = [row for row in site.rows if row.kind == "not DICOM"]
        with pytest.raises(pydicom.errors.InvalidDicomError):
            pydicom.dcmread(site.export / thumbs.file)


def test_repeated_files_and_duplicates(faulty: dict[str, DicomSite]) -> None:
    repeated = [(site, row) for site in faulty.values() for row in _of(site.rows, "repeated")]
    duplicates = [(site, row) for site in faulty.values() for row in _of(site.rows, "duplicate")]
    assert repeated
    assert duplicates
    for site, row in repeated:
        first = next(one for one in site.rows if one.instance == row.instance)
        assert first.file != row.file
        assert (site.export / first.file).read_bytes() == (site.export / row.file).read_bytes()
    for site, row in duplicates:
        first = next(one for one in site.rows if one.phantom == row.phantom and one.fault == "")
        assert first.instance != row.instance
        assert np.array_equal(_frames(site, first), _frames(site, row))


def test_labels_come_by_table_and_report(faulty: dict[str, DicomSite], clean: dict[str, DicomSite]) -> None:
    sources = set()
    for site in faulty.values():
        with site.labels.open(encoding="utf-8", newline="") as stream:
            table = list(csv.DictReader(stream))
        accessions = [row["accession_number"] for row in table]
        assert len(accessions) - len(set(accessions)) <= EVERY_FAULT.contradictions
        label_of = {row.accession: row.label for row in site.rows if row.accession}
        wrong = sum(label_of[row["accession_number"]] != row["label"] for row in table)
        assert wrong == len(accessions) - len(set(accessions))
        reported = {row.accession for row in site.rows if row.kind == "report"}
        for row in site.rows:
            if row.kind == "report":
                items = pydicom.dcmread(site.export / row.file).ContentSequence
                assert items[-1].TextValue == row.label
        sources |= {(accession in accessions, accession in reported) for accession in label_of}
    assert sources == {(True, False), (True, True), (False, True), (False, False)}
    for site in clean.values():
        labelled = site.labels.read_text(encoding="utf-8").count("\n") - 1
        assert labelled == len({row.accession for row in site.rows})


def test_what_identifies_is_in_the_files(clean: dict[str, DicomSite]) -> None:
    content = b"".join(path.read_bytes() for path in clean["aquila"].export.rglob("*.dcm"))
    texts = clean["aquila"].identifying
    found = [text for text in texts if text.encode() in content or text.encode("latin-1", "ignore") in content]
    assert len(found) > 0.6 * len(texts) > 10


def test_each_vendor_has_a_screen_of_its_own(clean: dict[str, DicomSite]) -> None:
    assert set(SCREENS) == set(FORMATS)
    shapes = {vendor: _frames(site, site.rows[0]).shape[1:3] for vendor, site in clean.items()}
    assert len(set(shapes.values())) >= 5
    for vendor, site in clean.items():
        assert {_frames(site, row).shape[1:3] for row in site.rows} == {shapes[vendor]}


def test_same_seed_same_bytes_other_seed_other_people(tmp_path: Path) -> None:
    site = SITES[1]
    runs = [
        write_dicom_site(tmp_path / str(run), site, seed, EVERY_FAULT, image_size_px=(48, 48), clips=CLIPS)
        for run, seed in enumerate((5, 5, 6))
    ]
    digests = [
        {row.file: hashlib.sha256((run.export / row.file).read_bytes()).digest() for row in run.rows} for run in runs
    ]
    assert digests[0] == digests[1]
    assert {row.patient_id for row in runs[0].rows if row.patient_id}.isdisjoint(
        row.patient_id for row in runs[2].rows if row.patient_id
    )


@pytest.mark.parametrize(
    "wrong", [{"calipers": 1.5}, {"documents": -1}, {"regions_missing": 0.6, "regions_beyond": 0.6}]
)
def test_faults_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SitesError):
        Faults(**wrong)  # type: ignore[arg-type]


def test_sites_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    unknown = PhantomSite("north", "nobody", 1, (1, 1), {"benign": 1.0}, "linear")
    with pytest.raises(UnknownNameError):
        write_dicom_site(tmp_path, unknown, 0)
    assert not list(tmp_path.rglob("*.dcm"))
