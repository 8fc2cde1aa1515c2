"""Labels from DICOM structured reports: a rule names an item's concept and what its values stand for.

A text counts only as a whole: "no malignancy" must not be taken for "malignancy". Reports that are not complete are not asked.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from echofed.client.ingest.labels import LabelRow, ReportRule, clean, mapped
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pseudonyms import patient_identity

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_DEPTH = 32
MAX_ITEMS = 20_000

_STRUCTURED_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_COMPLETE = "COMPLETE"


def is_report(dataset: "Dataset") -> bool:
    """Return whether a DICOM object is a structured report, by its SOP class."""
    return clean(_value(dataset, "SOPClassUID")).startswith(_STRUCTURED_REPORTS)


def report_rows(dataset: "Dataset", rules: Sequence[ReportRule]) -> tuple[LabelRow, ...]:
    """Return what a structured report says of its exam: one row for each item a rule speaks of.

    A value that a rule does not list gives a row without label. Basic Text, Enhanced and Comprehensive SR have such trees.

    Args:
        dataset: the report.
        rules: from the settings.

    Raises:
        SetAsideError: the tree is too deep or too large, or damaged.
    """
    if not is_report(dataset) or clean(_value(dataset, "CompletionFlag")) != _COMPLETE:
        return ()
    names = ("StudyInstanceUID", "AccessionNumber", "PatientID", "IssuerOfPatientID")
    exam, accession, patient_id, issuer = (clean(_value(dataset, name)) for name in names)
    patient = patient_identity(patient_id, issuer)
    try:
        return tuple(
            LabelRow(_label(item, rule), exam, accession, patient)
            for item in _items(dataset)
            for rule in rules
            if _is_called(item, rule.concept)
        )
    except SetAsideError:
        raise
    except Exception as error:  # a damaged element can raise almost anything when it is converted
        raise SetAsideError(Why.DAMAGED) from error


def _items(dataset: "Dataset") -> Iterator["Dataset"]:
    """Yield all content items, in no particular order, without recursion."""
    open_items = [(dataset, 0)]
    seen = 0
    while open_items:
        item, depth = open_items.pop()
        yield item
        children = list(_value(item, "ContentSequence") or ())
        seen += len(children)
        if children and depth >= MAX_DEPTH:
            raise SetAsideError(Why.TOO_DEEP)
        if seen > MAX_ITEMS:
            raise SetAsideError(Why.TOO_LARGE)
        open_items += [(child, depth + 1) for child in children]


def _is_called(item: "Dataset", concept: str) -> bool:
    wanted = clean(concept).casefold()
    return any(wanted == text.casefold() for text in _codes(item, "ConceptNameCodeSequence"))


def _label(item: "Dataset", rule: ReportRule) -> str:
    texts = [clean(_value(item, "TextValue")), *_codes(item, "ConceptCodeSequence")]
    texts += [clean(_value(measured, "NumericValue")) for measured in _value(item, "MeasuredValueSequence") or ()]
    labels = {mapped(text, rule.labels) for text in texts if text} - {""}
    return labels.pop() if len(labels) == 1 else ""


def _codes(item: "Dataset", sequence: str) -> Iterator[str]:
    for code in _value(item, sequence) or ():
        for name in ("CodeValue", "LongCodeValue", "CodeMeaning"):
            if text := clean(_value(code, name)):
                yield text


def _value(dataset: "Dataset", name: str) -> Any:
    return dataset.get(name)
