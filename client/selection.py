"""Which of a site's images a study uses, and what the answer for each is."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from echofed.client.reasons import Reason
from echofed.client.registry import Record
from echofed.client.splits import keyed_hash
from echofed.protocol.study import Study, Task

Target = tuple[float, ...]


@dataclass(frozen=True)
class Item:
    """What gets one answer.

    Args:
        rows: of the site's image cache, for an image one, for an exam one or more.
        target: as in `Examples.targets`.
    """

    rows: tuple[int, ...]
    target: Target


@dataclass(frozen=True)
class Selection:
    """A site's patients as one study sees them.

    Args:
        patients: each usable patient's items, in an order that tells nothing about the patient.
        left_out: usable images left out for this study, by reason.
        unknown_labels: labels the study does not mention, by number of images.
        missing_columns: columns the study asks for and the index lacks.
    """

    patients: dict[str, list[Item]]
    left_out: Counter[str]
    unknown_labels: Counter[str]
    missing_columns: frozenset[str]


class _Candidate(NamedTuple):
    row: int
    record: Record
    target: Target


def select(records: Sequence[Record], study: Study, columns: dict[str, str], key: bytes) -> Selection:
    """Return what a study uses of a site's images.

    An exam is what the exam column says; without one, a patient's images with the same answer form one exam.

    Args:
        records: those not quarantined; positions are the rows of the site's image cache.
        study: the study.
        columns: the index's column for a finding or value, where it has another name than in the study.
        key: the site's secret, for orders that tell nothing.
    """
    selection = Selection({}, Counter(), Counter(), frozenset())
    missing: set[str] = set()
    by_patient: defaultdict[str, list[_Candidate]] = defaultdict(list)
    for row, record in enumerate(records):
        target = _target(record, study.task, columns, missing)
        if isinstance(target, Reason):
            selection.left_out[target] += 1
            if target is Reason.UNKNOWN_LABEL:
                selection.unknown_labels[record.label] += 1
        else:
            by_patient[record.patient].append(_Candidate(row, record, target))
    for patient in sorted(by_patient, key=lambda patient: keyed_hash(key, "patient", patient)):
        candidates = by_patient[patient]
        if len(candidates) > 1:
            candidates.sort(key=lambda candidate: keyed_hash(key, "image", candidate.record.file))
        if items := _items(candidates, study, selection.left_out):
            selection.patients[patient] = items
    return Selection(selection.patients, selection.left_out, selection.unknown_labels, frozenset(missing))


def _items(candidates: list[_Candidate], study: Study, left_out: Counter[str]) -> list[Item]:
    task, most = study.task, study.preprocessing.max_images_per_patient
    classes = task.kind in ("binary", "multiclass")
    if classes and task.one_label_per_patient and len({candidate.target for candidate in candidates}) > 1:
        left_out[Reason.SEVERAL_LABELS] += len(candidates)
        return []
    if task.unit == "exam":
        candidates = _without_contradictions(candidates, left_out)
    if len(candidates) > most:
        left_out[Reason.TOO_MANY_IMAGES] += len(candidates) - most
        candidates = candidates[:most]
    if task.unit == "image":
        return [Item((candidate.row,), candidate.target) for candidate in candidates]
    exams: defaultdict[tuple[str, Target], list[int]] = defaultdict(list)
    for candidate in candidates:
        exams[candidate.record.exam, candidate.target].append(candidate.row)
    return [Item(tuple(rows), target) for (_, target), rows in exams.items()]


def _without_contradictions(candidates: list[_Candidate], left_out: Counter[str]) -> list[_Candidate]:
    targets: defaultdict[str, set[Target]] = defaultdict(set)
    for candidate in candidates:
        targets[candidate.record.exam].add(candidate.target)
    sound = [one for one in candidates if not one.record.exam or len(targets[one.record.exam]) == 1]
    if len(sound) < len(candidates):
        left_out[Reason.EXAM_DISAGREES] += len(candidates) - len(sound)
    return sound


def _target(record: Record, task: Task, columns: dict[str, str], missing: set[str]) -> Target | Reason:
    if record.label in task.excluded_labels:
        return Reason.EXCLUDED
    if task.kind == "segmentation":
        return Reason(record.mask_reason) if record.mask_reason else ()
    if task.kind in ("binary", "multiclass"):
        if not record.label:
            return Reason.NO_LABEL
        return (float(task.labels.index(record.label)),) if record.label in task.labels else Reason.UNKNOWN_LABEL
    values = json.loads(record.values_json)
    texts = [values.get(columns.get(label, label)) for label in task.labels]
    if None in texts:
        missing.update(
            columns.get(label, label) for label, text in zip(task.labels, texts, strict=True) if text is None
        )
        return Reason.NO_COLUMN
    return _findings(texts) if task.kind == "multilabel" else _value(texts[0], task)


def _findings(texts: list[str]) -> Target | Reason:
    if "" in texts:
        return Reason.NO_FINDING
    numbers = [_number(text) for text in texts]
    if any(number not in (0.0, 1.0) for number in numbers):
        return Reason.NOT_A_FINDING
    return tuple(number for number in numbers if number is not None)


def _value(text: str, task: Task) -> Target | Reason:
    assert task.value_range is not None
    low, high = task.value_range
    if not text:
        return Reason.NO_VALUE
    number = _number(text)
    if number is None:
        return Reason.NOT_A_NUMBER
    return ((number - low) / (high - low),) if low <= number <= high else Reason.OUT_OF_RANGE


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None
