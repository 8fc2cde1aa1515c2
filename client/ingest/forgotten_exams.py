"""What forgetting a patient removes from the ingest besides frames: journal, review queue, DICOM copies, quality report."""

from pathlib import Path

from echofed.client.ingest.forget import Erase
from echofed.client.ingest.instance import DICOM_FOLDER, REVIEW_FOLDER
from echofed.client.ingest.journal import open_journal
from echofed.client.ingest.pseudonyms import open_pseudonyms, read_merges
from echofed.client.ingest.review.queue import remove_case
from echofed.client.ingest.settings import read_settings
from echofed.client.ingest.training_set import QUALITY_JSON, QUALITY_PAGE


def pseudonym_of(folder: Path, patient: str) -> str:
    """Return the pseudonym of a patient under the site's key.

    Args:
        folder: of the ingest.
        patient: `id` or `id^^^issuer`, as for `pseudonyms.patient_identity`.

    Raises:
        IngestError: the key or the table of merges cannot be read.
    """
    settings = read_settings(folder)
    merges = read_merges(folder / settings.merges) if settings.merges else {}
    return open_pseudonyms(folder, merges).patient(patient)


def erase_from_ingest(folder: Path) -> Erase:
    """Return what removes patients from an ingest's folder and says how many instances that were."""

    def erase(patients: frozenset[str]) -> int:
        removed = 0
        with open_journal(folder) as journal:
            for patient in sorted(patients):
                # The files first: whoever is cut short here finds them again by the journal.
                for instance in journal.instances_of(patient):
                    remove_case(folder / REVIEW_FOLDER, instance)
                    (folder / DICOM_FOLDER / f"{instance}.dcm").unlink(missing_ok=True)
                    removed += 1
                journal.forget(patient)
        # They count the patient, too; the next ingest makes them anew.
        for name in (QUALITY_PAGE, QUALITY_JSON):
            (folder / name).unlink(missing_ok=True)
        return removed

    return erase
