"""Registering a site's data: every row of the index is checked, bad ones are quarantined, nothing is left unsaid."""

import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from echofed.client.checks import (
    CheckedRow,
    Facts,
    Source,
    find_source,
    image_facts,
    image_problem,
    index_problems,
    mask_facts,
    shared_images,
)
from echofed.client.forgotten import Forgotten, read_forgotten
from echofed.client.index_file import IndexRow, read_index
from echofed.client.reasons import Reason
from echofed.client.registry import (
    Kind,
    KnownFacts,
    locked,
    open_registry,
    read_facts,
    read_settings,
    replace_records,
    write_facts,
)
from echofed.client.reports import RegistrationReport, counts_by_reason

Progress = Callable[[int, int], None]
"""Told how many rows are done, and of how many."""

_FILES_NAMED = 3
_ROWS_A_COMMIT = 256
_NOTHING = Facts(None)
_DECODE: dict[Kind, Callable[[Path], Facts]] = {"image": image_facts, "mask": mask_facts}
_MASK_PLACE = {Reason.OUTSIDE: Reason.MASK_OUTSIDE, Reason.MISSING: Reason.MASK_MISSING}


def register(state_folder: Path, progress: Progress = lambda done, rows: None) -> RegistrationReport:
    """Check every row of a site's index and replace its registry with the result.

    Only files that are new or whose size or time of change differ are decoded. Bad rows are quarantined with a reason
    and counted; of patients who were forgotten nothing but their number is kept. Until the end the old registry stays in
    force; a second registration waits for the first.

    Args:
        state_folder: of a site that was created.
        progress: called now and then.

    Raises:
        RegistrationError: the index cannot be read, or the registry not written.
        KeyFileError: the index names frames of an encrypted store, and its key cannot be had.
    """
    started = time.monotonic()
    with locked(state_folder / "registry.lock"), open_registry(state_folder) as database:
        settings = read_settings(database)
        rows = read_index(settings)
        reading = _Reading(database, os.path.realpath(settings.data_folder))
        checked = []
        problems = _without_forgotten(rows, index_problems(rows), read_forgotten(state_folder))
        for done, (row, problem) in enumerate(zip(rows, problems, strict=True)):
            checked.append(reading.check(row, problem, settings.minimum_image_side_px))
            if done % _ROWS_A_COMMIT == 0:
                reading.keep()
                progress(done, len(rows))
        reading.keep()
        checked, repeats = _quarantine_shared(checked)
        report = _report(settings.name, checked, repeats, reading.unchanged, time.monotonic() - started)
        replace_records(database, (row for row in checked if row.reason is not Reason.FORGOTTEN), report)
        progress(len(rows), len(rows))
    return report


def _without_forgotten(
    rows: Sequence[IndexRow], problems: Sequence[Reason | None], forgotten: Forgotten
) -> list[Reason | None]:
    return [
        Reason.FORGOTTEN if row.patient in forgotten else problem for row, problem in zip(rows, problems, strict=True)
    ]


class _Reading:
    """The files of one registration: each is decoded once, and not at all if it is known from before."""

    def __init__(self, database: sqlite3.Connection, folder: str) -> None:
        self.unchanged = 0
        self._database, self._folder = database, folder
        self._known: KnownFacts = read_facts(database)
        self._fresh: list[tuple[Kind, Source, Facts]] = []

    def check(self, row: IndexRow, problem: Reason | None, minimum_side_px: int) -> CheckedRow:
        """Return the verdict on one row, as far as it stands alone."""
        if problem is not None:
            return CheckedRow(row, None, None, _NOTHING, _NOTHING, problem, None)
        source = find_source(self._folder, row.file)
        if isinstance(source, Reason):
            return CheckedRow(row, None, None, _NOTHING, _NOTHING, source, None)
        facts = self._facts("image", source)
        if reason := image_problem(facts, minimum_side_px):
            return CheckedRow(row, source, None, facts, _NOTHING, reason, None)
        return self._check_mask(CheckedRow(row, source, None, facts, _NOTHING, None, Reason.NO_MASK))

    def keep(self) -> None:
        """Write what was found since the last time."""
        if self._fresh:
            write_facts(self._database, self._fresh)
            self._fresh.clear()

    def _check_mask(self, checked: CheckedRow) -> CheckedRow:
        if not checked.row.mask:
            return checked
        source = find_source(self._folder, checked.row.mask)
        if isinstance(source, Reason):
            return replace(checked, mask_reason=_MASK_PLACE[source])
        facts = self._facts("mask", source)
        reason = facts.problem
        if reason is None and (facts.height, facts.width) != (checked.facts.height, checked.facts.width):
            reason = Reason.MASK_SIZE
        return replace(checked, mask=source, mask_facts=facts, mask_reason=reason)

    def _facts(self, kind: Kind, source: Source) -> Facts:
        known, facts = self._known.get((source.path, kind), (None, _NOTHING))
        if known == source:
            self.unchanged += kind == "image"
            return facts
        facts = _DECODE[kind](Path(source.path))
        self._known[source.path, kind] = (source, facts)
        self._fresh.append((kind, source, facts))
        return facts


def _quarantine_shared(checked: Sequence[CheckedRow]) -> tuple[list[CheckedRow], int]:
    usable = [position for position, row in enumerate(checked) if row.reason is None]
    facts, patients = [checked[at].facts for at in usable], [checked[at].row.patient for at in usable]
    reasons, repeats = shared_images(facts, patients)
    judged = list(checked)
    for position, reason in reasons.items():
        judged[usable[position]] = replace(checked[usable[position]], reason=reason)
    return judged, repeats


def _report(
    site: str, checked: Sequence[CheckedRow], repeats: int, unchanged: int, seconds: float
) -> RegistrationReport:
    quarantined: Counter[str] = Counter()
    noted: Counter[str] = Counter({"image repeated within one patient": repeats} if repeats else {})
    files: defaultdict[str, list[str]] = defaultdict(list)
    for row in checked:
        if row.reason is not None:
            quarantined[row.reason] += 1
            if len(files[row.reason]) < _FILES_NAMED and row.reason is not Reason.FORGOTTEN:
                files[row.reason].append(row.row.file)
    usable = [row for row in checked if row.reason is None]
    noted.update(_notes(usable))
    return RegistrationReport(
        site=site,
        rows=len(checked),
        images=len(usable),
        patients=len({row.row.patient for row in usable}),
        quarantined=counts_by_reason(quarantined),
        noted=counts_by_reason(noted),
        files={str(reason): tuple(names) for reason, names in files.items()},
        unchanged=unchanged,
        seconds=seconds,
    )


def _notes(usable: Sequence[CheckedRow]) -> Counter[str]:
    """Count what was found and kept; an index without any label or any mask is not reproached for it."""
    notes = Counter(
        f"image converted from {row.facts.converted} to 8-bit grey" for row in usable if row.facts.converted
    )
    if any(row.row.label for row in usable):
        notes[Reason.NO_LABEL] = sum(not row.row.label for row in usable)
    if any(row.row.mask for row in usable):
        notes.update(row.mask_reason for row in usable if row.mask_reason)
    return +notes
