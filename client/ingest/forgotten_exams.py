"""What forgetting a patient removes from the ingest besides frames: journal, review queue, DICOM copies, quality report."""

from pathlib import Path

from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.forget import Erase
from echofed.client.ingest.header import read_header
from echofed.client.ingest.instance import DICOM_FOLDER, RECEIVED_FOLDER, REVIEW_FOLDER, SPOOL_FOLDER
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.leftovers import remove_leftovers
from echofed.client.ingest.outcomes import SetAsideError
from echofed.client.ingest.pseudonyms import Pseudonyms, open_pseudonyms, read_merges
from echofed.client.ingest.review.queue import all_cases, remove_case
from echofed.client.ingest.settings import read_settings
from echofed.client.ingest.sources.item import HELD_FOLDER, clear_spool
from echofed.client.ingest.training_set import QUALITY_JSON, QUALITY_PAGE


def pseudonyms_of(folder: Path, patient: str) -> frozenset[str]:
    """Return the pseudonyms of a patient under the site's key: those of all ids that the merges say are the same.

    Args:
        folder: of the ingest.
        patient: `id` or `id^^^issuer`, as for `pseudonyms.patient_identity`.

    Raises:
        IngestError: the id is empty, or the key or the table of merges cannot be read.
    """
    return _pseudonyms(folder).all_of_patient(patient)


def erase_from_ingest(folder: Path) -> Erase:
    """Return what removes patients from an ingest's folder and says how many instances that were."""

    def erase(patients: frozenset[str]) -> int:
        removed = 0
        with open_journal(folder) as journal:
            # What a killed ingest has left, of which the journal knows nothing; the patients' frames are still known to it, and
            # counted by who removes them.
            remove_leftovers(folder, journal)
            for patient in sorted(patients):
                # The files first: whoever is cut short here finds them again by the journal.
                for instance in journal.instances_of(patient):
                    remove_case(folder / REVIEW_FOLDER, instance)
                    (folder / DICOM_FOLDER / f"{instance}.dcm").unlink(missing_ok=True)
                    removed += 1
                journal.forget(patient)
        for case in all_cases(folder / REVIEW_FOLDER):
            if case.patient in patients:
                remove_case(folder / REVIEW_FOLDER, case.instance)
        clear_spool(folder / SPOOL_FOLDER)
        removed += _remove_received(folder, patients)
        # They count the patient, too; the next ingest makes them anew.
        for name in (QUALITY_PAGE, QUALITY_JSON):
            (folder / name).unlink(missing_ok=True)
        return removed

    return erase


def _remove_received(folder: Path, patients: frozenset[str]) -> int:
    """Remove what the receiver was sent of patients, and return how many files that were.

    What cannot be read, or was never written to its end, may be theirs and can never be ingested: it goes, too.
    """
    pseudonyms = _pseudonyms(folder)
    removed = 0
    received = folder / RECEIVED_FOLDER
    for part in received.glob("*.part"):
        part.unlink(missing_ok=True)
    for path in (*received.glob("*.dcm"), *(received / HELD_FOLDER).glob("*.dcm")):
        try:
            patient = read_header(read_dataset(path), pseudonyms, "none", ()).patient
        except FileNotFoundError:
            continue
        except SetAsideError:
            path.unlink(missing_ok=True)
            continue
        if patient in patients:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _pseudonyms(folder: Path) -> Pseudonyms:
    settings = read_settings(folder)
    return open_pseudonyms(folder, read_merges(folder / settings.merges) if settings.merges else {})
