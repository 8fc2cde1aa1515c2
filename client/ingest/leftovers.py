"""What a killed ingest leaves behind, and what of it is removed before the next one begins."""

from pathlib import Path

from echofed.client.ingest.frame_store import frame_files, remove_parts
from echofed.client.ingest.instance import DICOM_FOLDER, REVIEW_FOLDER
from echofed.client.ingest.journal import Journal
from echofed.client.ingest.outcomes import Verdict
from echofed.client.ingest.review.queue import cases, remove_case


def remove_leftovers(folder: Path, journal: Journal) -> None:
    """Remove what was stored of instances whose verdict was not written down any more; they are fetched again.

    A case of the review queue that a person has decided on meanwhile stays: when its instance comes again, the decision holds.

    Args:
        folder: of an ingest, which nobody else works on.
        journal: of that folder.

    Raises:
        FrameStoreError: a case of the review queue is damaged.
    """
    remove_parts(folder)
    accepted = {entry.instance: entry.frames for entry in journal.entries(Verdict.ACCEPTED)}
    files = {folder / str(frame["file"]) for frames in accepted.values() for frame in frames}
    for path in frame_files(folder):
        if path not in files:
            path.unlink()
    for path in (folder / DICOM_FOLDER).glob("*"):
        if path.suffix != ".dcm" or path.stem not in accepted:
            path.unlink()
    for case in cases(folder / REVIEW_FOLDER):
        entry = journal.find(case.instance)
        if entry is None or entry.verdict is not Verdict.REVIEW:
            remove_case(folder / REVIEW_FOLDER, case.instance)
