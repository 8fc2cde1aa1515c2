"""C-FIND, study root: studies, their series and instances."""

import functools
from collections.abc import Mapping
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association

from echofed.client.ingest.sources.arrivals import ascii_text
from echofed.client.ingest.sources.association import Associations
from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.run import Run

FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
MAX_ANSWERS = 1_000_000
_PENDING = (0xFF00, 0xFF01)
_STUDY = ("StudyInstanceUID", "StudyDate", "AccessionNumber", "PatientID")
_SERIES = (
    *("SeriesInstanceUID", "Modality", "StationName", "BodyPartExamined"),
    "NumberOfSeriesRelatedInstances",
)
_ASKED = {"STUDY": _STUDY, "SERIES": _SERIES, "IMAGE": ("SOPInstanceUID", "SOPClassUID")}


def find(associations: Associations, run: Run, level: str, query: Mapping[str, str | list[str]]) -> list[Dataset]:
    """Return what a PACS has at a level ("STUDY", "SERIES", "IMAGE"); what it does not know of an object is empty.

    Raises:
        SourceError: the PACS does not talk to us, or not about this.
        TransferError: it failed in every attempt, or refuses this question.
    """
    asked = identifier(level, dict.fromkeys(_ASKED[level], "") | dict(query))
    return run.pace.try_again(functools.partial(_ask, associations, asked))


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return an element's text without its padding; empty if there is none, or if it is not ASCII."""
    element = dataset.get_item(tag_for_keyword(keyword) or 0)
    value = None if element is None else element.value
    if isinstance(value, bytes):
        return ascii_text(value)
    text = "" if value is None else str(value).strip(" \0")
    return text if text.isascii() else ""


def identifier(level: str, values: Mapping[str, str | list[str]]) -> Dataset:
    """Return what a question or request is about."""
    dataset = Dataset()
    for keyword, value in {"QueryRetrieveLevel": level, **values}.items():
        tag = tag_for_keyword(keyword) or 0
        # Accession numbers are often longer than the standard allows.
        dataset.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE))
    return dataset


def check_status(status: Dataset) -> bool:
    """Return whether a final status of C-FIND, C-GET or C-MOVE is a success; a warning is not, but all is not lost.

    Raises:
        TransferError: the request failed.
    """
    code: Any = status.get("Status")
    if code is None:
        raise TransferError(Reason.BROKEN_OFF, may_pass=True)
    if code == 0x0000 or code >> 12 == 0xB:
        return bool(code == 0x0000)
    # Out of resources, unable to process, cancelled: later perhaps. The rest says that it will not.
    may_pass = code >> 8 == 0xA7 or code >> 12 == 0xC or code == 0xFE00 or code == 0x0110
    raise TransferError(Reason.FAILED if may_pass else Reason.REFUSED, may_pass=may_pass)


def _ask(associations: Associations, asked: Dataset) -> list[Dataset]:
    try:
        return _answers(associations.take(), asked)
    except TransferError:
        associations.drop()
        raise


def _answers(association: Association, asked: Dataset) -> list[Dataset]:
    answers: list[Dataset] = []
    for status, answer in association.send_c_find(asked, FIND):
        if status.get("Status") in _PENDING:
            if answer is not None:
                answers.append(answer)
            if len(answers) > MAX_ANSWERS:
                raise TransferError(Reason.TOO_LARGE, may_pass=False)
            continue
        check_status(status)
    return answers
