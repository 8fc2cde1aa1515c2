"""What becomes of an instance, and why: one word list for the pipeline, its journal and its reports."""

from enum import StrEnum


class Verdict(StrEnum):
    """What was decided on an instance."""

    ACCEPTED = "accepted"
    REVIEW = "waits for a person"
    QUARANTINED = "quarantined"
    REFUSED = "refused"


class Why(StrEnum):
    """Why an instance was not accepted, as reports spell it; reports hold counts, never who."""

    NOT_DICOM = "not a DICOM file"
    NO_PIXELS = "holds no pixels"
    REPORT = "a structured report"
    DOCUMENT = "an encapsulated document"
    OTHER_MODALITY = "not ultrasound"
    FILTERED = "outside the filters"
    FORGOTTEN = "of a patient who was forgotten"

    DAMAGED = "damaged"
    TOO_LARGE = "announces more than the limits allow"
    TOO_DEEP = "nested deeper than any ultrasound file"
    TRANSFER_SYNTAX = "compressed in a way that cannot be decoded here"
    PIXEL_FORMAT = "pixel format not supported"
    DECODER_FAILED = "its pixels could not be decoded"
    DECODER_DISAGREES = "fewer or other pixels than it announces"
    TIMED_OUT = "took too long"
    WORKER_DIED = "ended the process that read it"
    NO_PATIENT = "no patient id"
    NO_INSTANCE = "no instance id"
    WRONG_PATIENT = "another patient than was asked for"
    TWO_PATIENTS = "a patient id under several names or birth dates"
    REGIONS_BEYOND = "a region reaches beyond the frame"
    NO_TISSUE = "no tissue in it"
    EMPTY = "an empty image"
    IDENTIFIER_LEFT = "an identifying text was found in what was to be stored"

    NO_REGION = "no tissue region could be found for certain"
    WRITING = "writing on the tissue"
    UNCERTAIN_STILL = "a still that may hold writing"
    NO_TEXT_CHECK = "text recognition is not installed"
    UNKNOWN_LAYOUT = "unknown layout"
    REJECTED = "rejected by a person"


REFUSALS = frozenset(
    {Why.NOT_DICOM, Why.NO_PIXELS, Why.REPORT, Why.DOCUMENT, Why.OTHER_MODALITY, Why.FILTERED, Why.FORGOTTEN}
)
FOR_A_PERSON = frozenset({Why.NO_REGION, Why.WRITING, Why.UNCERTAIN_STILL, Why.NO_TEXT_CHECK, Why.UNKNOWN_LAYOUT})
OF_THE_FILE = frozenset(
    {
        Why.DAMAGED, Why.TOO_LARGE, Why.TOO_DEEP, Why.TRANSFER_SYNTAX, Why.PIXEL_FORMAT, Why.DECODER_FAILED,
        Why.DECODER_DISAGREES, Why.TIMED_OUT, Why.WORKER_DIED, Why.EMPTY,
    }
)  # fmt: skip
"""Reasons that another copy of the same instance may not have: a file cut off on its way is sent again whole."""
PASSING = frozenset(
    {
        Why.TIMED_OUT, Why.WORKER_DIED, Why.TOO_LARGE, Why.TRANSFER_SYNTAX, Why.WRONG_PATIENT, Why.TWO_PATIENTS,
        Why.NO_TEXT_CHECK,
    }
)  # fmt: skip
"""Reasons that may be gone once the PACS was corrected, a package installed or a limit raised."""


def verdict_of(why: Why | None) -> Verdict:
    """Return the verdict a reason leads to; None is the lack of a reason against."""
    if why is None:
        return Verdict.ACCEPTED
    if why in REFUSALS:
        return Verdict.REFUSED
    return Verdict.REVIEW if why in FOR_A_PERSON else Verdict.QUARANTINED


class SetAsideError(Exception):
    """One instance cannot be used; never ends an ingest.

    Args:
        why: from the word list.
    """

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why
