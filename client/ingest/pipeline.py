"""An ingest, from its source to the index a site registers.

Whenever it is killed, what is left is whole: an instance is in the journal with its frames on disk, or it is fetched again.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pebble import ProcessFuture, ProcessPool

from echofed.client.forgotten import Forgotten, read_forgotten
from echofed.client.ingest.decisions import apply_decisions, remove_frames
from echofed.client.ingest.encryption import is_encrypted, make_store_key, store_key
from echofed.client.ingest.errors import LeakError
from echofed.client.ingest.forget import LOCK_ROLE
from echofed.client.ingest.frame_store import FRAMES_FOLDER, frame_files, remove_parts
from echofed.client.ingest.instance import DICOM_FOLDER, REVIEW_FOLDER, Read, Reading
from echofed.client.ingest.journal import Journal, open_journal
from echofed.client.ingest.labels import Labels
from echofed.client.ingest.leaks import Search, find_leaks
from echofed.client.ingest.outcomes import Verdict, Why, verdict_of
from echofed.client.ingest.pseudonyms import KEY_FILE, open_pseudonyms, read_merges
from echofed.client.ingest.settings import IngestSettings, read_settings
from echofed.client.ingest.sources.fetching import fetch_all
from echofed.client.ingest.sources.item import Fetched, Missed, Progress
from echofed.client.ingest.sources.settings import FolderSource, Source
from echofed.client.ingest.training_set import TrainingSet, write_training_set
from echofed.client.ingest.workers import begin, finished, reading_processes
from echofed.protocol.state_folder import locked

SPOOL_FOLDER = "spool"
_WAITING_PER_PROCESS = 3
_PATIENCE = 3

Report = Callable[[Progress, int], None]
"""Told how far the source is, and how many instances have been read."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did, and what there is now.

    Args:
        read: instances of this run by verdict and reason; "" is the reason of those accepted.
        missed: what could not be had in this run, by reason.
        decided: decisions of the review page that were carried out.
        waiting: instances that wait for a person now.
        training_set: what there is to register now.
        seconds: it took.
    """

    read: Counter[tuple[Verdict, str]]
    missed: Counter[str]
    decided: int
    waiting: int
    training_set: TrainingSet
    seconds: float

    def text(self) -> str:
        """Return the report as plain text; it names nobody."""
        known = self.training_set
        lines = [f"{sum(self.read.values()):,} instances read in {self.seconds:.1f} s."]
        for verdict in Verdict:
            reasons = {why: count for (one, why), count in self.read.items() if one is verdict}
            if reasons:
                lines.append(f"{sum(reasons.values()):>9,}  {verdict}")
            lines += [f"{count:>15,}  {why}" for why, count in sorted(reasons.items(), key=lambda one: -one[1]) if why]
        if self.missed:
            lines.append(f"{sum(self.missed.values()):>9,}  could not be had; the next ingest tries again")
            lines += [f"{count:>15,}  {why}" for why, count in self.missed.most_common()]
        if self.decided:
            lines.append(f"{self.decided:>9,}  decisions of the review carried out")
        lines.append(f"To register: {known.frames:,} frames of {known.exams:,} exams and {known.patients:,} patients.")
        if self.waiting:
            lines.append(f"{self.waiting:,} instances wait for a person: echofed site review")
        return "\n".join(lines)


def ingest_folder(folder: Path, export: Path, settings: IngestSettings | None = None) -> IngestReport:
    """Ingest a folder, a USB export or a zip archive; see `ingest`."""
    return ingest(folder, FolderSource(path=export.absolute()), settings or read_settings(folder))


def ingest(
    folder: Path,
    source: Source | None,
    settings: IngestSettings,
    report: Report = lambda progress, read: None,
    state_folder: Path | None = None,
) -> IngestReport:
    """Bring what a source holds into a folder that `echofed site register` takes.

    Only what is not known is fetched. One bad instance is set aside with a reason and counted. At the end every file that was
    written is searched for every identifying text of the headers that were read.

    Args:
        folder: of the ingest; made if missing, readable by its owner alone.
        source: where from; None: only decisions and labels are brought up to date.
        settings: of the ingest.
        report: told how far it is.
        state_folder: of the site, which says who was forgotten; None: nobody.

    Raises:
        IngestError: settings, tables or journal are wrong.
        SourceError: the source cannot be used; what was ingested before is kept.
        FrameStoreError: the disk is full, or the store's key is wrong.
        LeakError: an identifying text was found in what is stored.
        StateFolderError: another process ingests into this folder.
    """
    started = time.monotonic()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(folder, settings) as (reading, journal):
        decided = apply_decisions(reading, journal)
        run = _Run(reading, journal, report, read_forgotten(state_folder) if state_folder else None)
        if source is not None:
            run.all(source)
        training_set = write_training_set(reading, journal)
        if run.texts:
            training_set = _search(reading, journal, run.texts, training_set)
        waiting = sum(1 for _ in journal.entries(Verdict.REVIEW))
    return IngestReport(run.read, run.missed, decided, waiting, training_set, time.monotonic() - started)


@contextmanager
def _opened(folder: Path, settings: IngestSettings) -> Iterator[tuple[Reading, Journal]]:
    with ExitStack() as held:
        held.enter_context(locked(folder, LOCK_ROLE))
        journal = held.enter_context(open_journal(folder))
        merges = read_merges(folder / settings.merges) if settings.merges else {}
        pseudonyms = open_pseudonyms(folder, merges)
        if settings.encryption != "none" and not is_encrypted(folder):
            make_store_key(folder, settings.encryption)
        _remove_leftovers(folder, journal)
        yield Reading(folder, settings, pseudonyms, store_key(folder)), journal


def _remove_leftovers(folder: Path, journal: Journal) -> None:
    """Remove the frames of instances whose verdict a killed ingest did not write down."""
    remove_parts(folder)
    noted = {folder / str(frame["file"]) for entry in journal.entries(Verdict.ACCEPTED) for frame in entry.frames}
    for path in frame_files(folder):
        if path not in noted:
            path.unlink()


class _Run:
    """One run over a source: fetched, read in other processes, noted here."""

    def __init__(self, reading: Reading, journal: Journal, report: Report, forgotten: Forgotten | None) -> None:
        self._reading, self._journal, self._report, self._forgotten = reading, journal, report, forgotten
        self._folders = Labels(folder=reading.settings.labels.folder)
        self._pool: ProcessPool
        self._waiting: deque[tuple[Fetched, ProcessFuture[Read]]] = deque()
        self._progress = Progress()
        self.read: Counter[tuple[Verdict, str]] = Counter()
        self.missed: Counter[str] = Counter()
        self.texts: set[str] = set()

    def all(self, source: Source) -> None:
        """Fetch and read all of a source."""
        settings = self._reading.settings
        outcomes = fetch_all(
            source,
            self._reading.folder / SPOOL_FOLDER,
            lambda key: self._journal.knows(self._item(key)),
            settings.wanted,
            settings.politeness,
            self._show,
        )
        with reading_processes(self._reading) as self._pool, closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Missed):
                    self.missed[outcome.reason] += outcome.count
                elif outcome.why is not None:
                    self._set_aside(outcome, outcome.why)
                else:
                    self._begin(outcome)
            while self._waiting:
                self._finish()

    def _show(self, progress: Progress) -> None:
        self._progress = progress
        self._report(progress, self.read.total())

    def _item(self, key: str) -> str:
        return self._reading.pseudonyms.source_key(key)

    def _begin(self, fetched: Fetched) -> None:
        settings = self._reading.settings
        self._waiting.append((fetched, begin(self._pool, fetched.path, settings.seconds_per_instance)))
        while (
            len(self._waiting) >= _WAITING_PER_PROCESS * self._reading.settings.processes or self._waiting[0][1].done()
        ):
            self._finish()
            if not self._waiting:
                break

    def _finish(self) -> None:
        fetched, future = self._waiting.popleft()
        with fetched:
            read = finished(future)
            if read.why is Why.TIMED_OUT:
                # The machine may have been busy: it has one more chance, alone.
                seconds = _PATIENCE * self._reading.settings.seconds_per_instance
                read = finished(begin(self._pool, fetched.path, seconds))
            self.texts |= read.texts
            if self._forgotten and read.entry is not None and read.entry.patient in self._forgotten:
                remove_frames(self._reading.folder, read.entry)
                self._set_aside(fetched, Why.FORGOTTEN)
                return
            if read.said:
                self._journal.record_said(read.said)
            if read.entry is None:
                self._set_aside(fetched, read.why or Why.DAMAGED)
                return
            label = self._folders.label_of("", "", "", _path_in(fetched.key)) or ""
            entry = read.entry if read.entry.label else replace(read.entry, label=label)
            self._journal.record(self._item(fetched.key), entry)
            self._count(read.why)

    def _set_aside(self, fetched: Fetched, why: Why) -> None:
        with fetched:
            # Filters may be others next time.
            if why is not Why.FILTERED:
                self._journal.record_nothing(self._item(fetched.key), why)
            self._count(why)

    def _count(self, why: Why | None) -> None:
        self.read[verdict_of(why), why or ""] += 1
        self._report(self._progress, self.read.total())


def _path_in(key: str) -> str:
    """Return the path a folder's key begins with; of a PACS's key something without folders."""
    return key.split("|", 1)[0]


def _search(reading: Reading, journal: Journal, texts: set[str], training_set: TrainingSet) -> TrainingSet:
    """Search all that is stored for identifying texts; what has one is quarantined."""
    folder, search = reading.folder, Search(texts)
    leaks = find_leaks([path for path in folder.iterdir() if _is_searched(path)], search)
    if not leaks:
        return training_set
    frames = {str(leak.path.relative_to(folder)) for leak in leaks if leak.path.is_relative_to(folder / FRAMES_FOLDER)}
    others = {leak.path.name for leak in leaks if not leak.path.is_relative_to(folder / FRAMES_FOLDER)}
    for entry in list(journal.entries(Verdict.ACCEPTED)):
        if any(frame["file"] in frames for frame in entry.frames) or f"{entry.instance}.dcm" in others:
            remove_frames(folder, entry)
            (folder / DICOM_FOLDER / f"{entry.instance}.dcm").unlink(missing_ok=True)
            journal.decide(entry, Verdict.QUARANTINED, Why.IDENTIFIER_LEFT)
    training_set = write_training_set(reading, journal)
    if left := find_leaks([path for path in folder.iterdir() if _is_searched(path)], search):
        names = ", ".join(sorted({leak.path.name for leak in left})[:5])
        raise LeakError(f"A text that may identify a patient was found in {names}.")
    return training_set


def _is_searched(path: Path) -> bool:
    # The raw files and the images that wait for a person may hold names: nobody but that person is to see them.
    return path.name not in (SPOOL_FOLDER, REVIEW_FOLDER, KEY_FILE) and not path.name.startswith(".")
