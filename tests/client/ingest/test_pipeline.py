"""A whole ingest of a hospital's export: right verdicts, nothing twice, nothing lost, nobody named, and it registers."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from echofed.client.ingest.frame_store import read_frame
from echofed.client.ingest.journal import Entry, open_journal
from echofed.client.ingest.labels import LabelSettings, ReportRule
from echofed.client.ingest.leaks import find_leaks
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pipeline import IngestReport, ingest, ingest_folder
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.review.case import Decision
from echofed.client.ingest.review.queue import cases, decide
from echofed.client.ingest.settings import FrameRule, IngestSettings
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.simulations.phantoms import PhantomSite
from echofed.simulations.phantoms.dicom_files import DicomSite, write_dicom_site
from echofed.simulations.phantoms.dicom_truth import EVERY_FAULT, Truth
from tests.client.ingest.small_hospital import label_table

ROOT = Path(__file__).parents[3]
SITE = PhantomSite("north", "borealis", 8, (2, 4), {"benign": 0.5, "malignant": 0.5}, "linear")


def settings(hospital: DicomSite) -> IngestSettings:
    """Settings for phantoms: no text recognition, labels from the table and from reports."""
    return IngestSettings(
        text_check="strokes",
        frames=FrameRule(rule="every", step=3, most=4),
        labels=LabelSettings(
            tables=(label_table(hospital.labels),),
            reports=(ReportRule(concept="Finding", labels={"benign": "benign", "malignant": "malignant"}),),
        ),
        workers=2,
        seconds_per_instance=120,
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> DicomSite:
    """An export in which everything goes wrong that does in life."""
    return write_dicom_site(tmp_path_factory.mktemp("hospital"), SITE, 3, EVERY_FAULT)


@pytest.fixture(scope="module")
def ingested(hospital: DicomSite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    """The folder of its ingest and what that said."""
    folder = tmp_path_factory.mktemp("ingest")
    return folder, ingest_folder(folder, hospital.export, settings(hospital))


def test_every_instance_ends_as_it_should(hospital: DicomSite, ingested: tuple[Path, IngestReport]) -> None:
    folder, _ = ingested
    pseudonyms = open_pseudonyms(folder)
    wrong = []
    with open_journal(folder) as journal:
        for row in hospital.rows:
            entry = journal.find(pseudonyms.instance(row.instance)) if row.instance else None
            if entry is None:
                if row.verdicts[0] is Verdict.ACCEPTED:
                    wrong.append((row.kind, row.fault, "not known"))
            elif entry.verdict not in row.verdicts and not _is_masked(folder, entry, row):
                wrong.append((row.kind, row.fault, f"{entry.verdict}: {entry.why}"))
    assert not wrong


def _is_masked(folder: Path, entry: Entry, row: Truth) -> bool:
    """Whether an accepted clip lost the writing on its tissue, which is right, too."""
    if entry.verdict is not Verdict.ACCEPTED or row.fault != "moving words" or row.tissue is None:
        return False
    pixels, _ = read_frame(folder / str(entry.frames[0]["file"]), None)
    on_tissue = [text.box for text in row.written if text.place == "tissue"]
    top, left = row.tissue.top, row.tissue.left
    left_over = [pixels[box.top - top : box.bottom - top, box.left - left : box.right - left] for box in on_tissue]
    return bool(on_tissue) and not any(part.any() for part in left_over)


def test_nothing_stored_names_anybody(hospital: DicomSite, ingested: tuple[Path, IngestReport]) -> None:
    folder, _ = ingested
    assert len(hospital.identifying) > 50
    stored = [path for path in folder.rglob("*") if path.is_file() and "review" not in path.parts]
    assert find_leaks(stored, hospital.identifying) == []


def test_what_was_accepted_registers_with_its_labels(
    hospital: DicomSite, ingested: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    folder, report = ingested
    with (folder / "index.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows} >= {"benign", "malignant"}
    assert all(float(row["pixel_spacing_mm"]) > 0 for row in rows if row["pixel_spacing_mm"])
    registered = create_site(tmp_path / "state", SiteSettings(name="north", data_folder=folder)).register()
    assert registered.images + sum(registered.quarantined.values()) == len(rows) == report.training_set.frames
    assert registered.images > len(rows) / 2


def test_a_second_ingest_reads_nothing_and_changes_nothing(
    hospital: DicomSite, ingested: tuple[Path, IngestReport]
) -> None:
    folder, first = ingested
    before = (folder / "index.csv").read_bytes()
    again = ingest_folder(folder, hospital.export, settings(hospital))
    assert set(again.read) <= {(Verdict.REFUSED, why) for why in (Why.DOCUMENT, Why.OTHER_MODALITY)}
    assert again.training_set == first.training_set
    assert (folder / "index.csv").read_bytes() == before
    assert list((folder / "spool").iterdir()) == []


def test_a_person_accepts_with_a_mask_or_rejects(hospital: DicomSite, tmp_path: Path) -> None:
    ingest_folder(tmp_path, hospital.export, settings(hospital))
    waiting = cases(tmp_path / "review")
    assert len(waiting) >= 2
    first, second = waiting[0], waiting[1]
    by = {"by": "Dr A. Martin", "decided_at": "2030-01-01T00:00:00+00:00"}
    boxes = tuple(first.writing[:3])
    decide(
        tmp_path / "review",
        Decision(instance=first.instance, decision="accept", boxes=boxes, remember=False, **by),
    )
    decide(
        tmp_path / "review",
        Decision(instance=second.instance, decision="reject", boxes=(), remember=False, **by),
    )
    report = ingest(tmp_path, None, settings(hospital))
    assert report.decided == 2
    assert report.waiting == len(waiting) - 2
    with open_journal(tmp_path) as journal:
        accepted, rejected = journal.find(first.instance), journal.find(second.instance)
        assert accepted is not None
        assert rejected is not None
        assert accepted.verdict is Verdict.ACCEPTED
        assert len(accepted.frames) >= first.frames
        assert rejected.why is Why.REJECTED
        assert rejected.frames == ()
    index = (tmp_path / "index.csv").read_text()
    assert first.instance in index
    assert second.instance not in index


def test_an_ingest_killed_again_and_again_ends_like_an_undisturbed_one(
    hospital: DicomSite, ingested: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    (tmp_path / "pseudonym.key").write_bytes((ingested[0] / "pseudonym.key").read_bytes())
    (tmp_path / "pseudonym.key").chmod(0o600)
    (tmp_path / "settings.json").write_text(settings(hospital).model_dump_json())
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from echofed.client.ingest.pipeline import ingest_folder
        from echofed.client.ingest.settings import IngestSettings
        if __name__ == "__main__":
            folder = Path(sys.argv[1])
            settings = IngestSettings.model_validate_json((folder / "settings.json").read_text())
            ingest_folder(folder, Path(sys.argv[2]), settings)
    """)
    script = tmp_path / "run.py"
    script.write_text(program)
    kills = 0
    for seconds in (1.5, 2.5, 2.0, 3.0):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(hospital.export)], cwd=ROOT, start_new_session=True
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert kills
    report = ingest_folder(tmp_path, hospital.export, settings(hospital))
    assert (tmp_path / "index.csv").read_bytes() == (ingested[0] / "index.csv").read_bytes()
    assert report.training_set.patients == ingested[1].training_set.patients
    verdicts = []
    for folder in (tmp_path, ingested[0]):
        with open_journal(folder) as journal:
            verdicts.append(Counter((entry.instance, entry.verdict, entry.why) for entry in journal.entries()))
    assert verdicts[0] == verdicts[1]
