"""What speaks against an instance that has arrived, judged on what its reader makes of it.

Sources judge it before (`sources.arrivals`), on the few values they can step to; a file may be made so that they cannot, or find
others than its reader does. What is stored is what the reader makes of it, so that is what counts.
"""

from pydicom import Dataset
from pydicom.multival import MultiValue

from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pseudonyms import clean_id
from echofed.client.ingest.sources.filters import Selection


def check_arrival(dataset: Dataset, selection: Selection, expected_patient: str | None) -> None:
    """Check that an instance is of the patient its source announced, and that the filters allow it.

    Args:
        dataset: as `dataset.read_dataset` gives it.
        selection: the filters, with their list of studies.
        expected_patient: id the source announced; None or empty: it announced none.

    Raises:
        SetAsideError: WRONG_PATIENT or FILTERED.
    """
    patient, expected = clean_id(_value(dataset, "PatientID")), clean_id(expected_patient or "")
    if expected and patient and patient != expected:
        raise SetAsideError(Why.WRONG_PATIENT)
    if not selection.allows(lambda keyword: _value(dataset, keyword), is_whole=True):
        raise SetAsideError(Why.FILTERED)


def _value(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(one) for one in values if isinstance(one, str)).strip(" \0")
