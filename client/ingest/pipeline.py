"""An ingest, from its source to the index a site registers.

Whenever it is killed, what is left is whole: an instance is in the journal with its frames on disk, or it is fetched again.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from echofed.client.forgotten import NOBODY, read_forgotten
from echofed.client.ingest.decisions import apply_decisions, remove_frames
from echofed.client.ingest.encryption import is_encrypted, make_store_key, store_key
from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.forget import LOCK_ROLE
from echofed.client.ingest.frame_store import frame_files
from echofed.client.ingest.instance import DICOM_FOLDER, REVIEW_FOLDER, SPOOL_FOLDER, Read, Reading
from echofed.client.ingest.journal import Entry, Journal, open_journal
from echofed.client.ingest.labels import Labels, read_labels
from echofed.client.ingest.last_search import check_not_withheld, search_shared, search_stored
from echofed.client.ingest.leftovers import remove_leftovers
from echofed.client.ingest.merge_check import keep_merges
from echofed.client.ingest.outcomes import OF_THE_FILE, PASSING, Verdict, Why, verdict_of
from echofed.client.ingest.pseudonyms import open_pseudonyms, read_merges
from echofed.client.ingest.review.queue import is_undecided, remove_case
from echofed.client.ingest.settings import IngestSettings, read_settings
from echofed.client.ingest.sources.fetching import fetch_all
from echofed.client.ingest.sources.filters import read_selection
from echofed.client.ingest.sources.item import Fetched, Missed, Progress
from echofed.client.ingest.sources.settings import FolderSource, Source
from echofed.client.ingest.training_set import TrainingSet, write_training_set
from echofed.client.ingest.workers import ReadingProcesses, reading_processes
from echofed.protocol.state_folder import locked

MAX_TEXTS = 50_000
"""Identifying texts that are kept in memory, about those of a thousand instances; then what was stored is searched for them."""
_USABLE = (Verdict.ACCEPTED, Verdict.REVIEW)
_WAITING_PER_PROCESS = 3
_PATIENCE = 3
_SECOND_CHANCE = (Why.TIMED_OUT, Why.WORKER_DIED)
_HELD = (Why.FILTERED, Why.REPORT, *_SECOND_CHANCE)
"""An only copy is held: filters, rules for reports and limits may be others next time."""

Report = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and how much there is in all, as far as is known."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did, and what there is now.

    Args:
        read: instances of this run by verdict and reason; "" is the reason of those accepted.
        copies: files of this run that hold an instance that is known.
        held: of the files of this run that nobody else has, those kept for later; they are counted in `read`, too.
        missed: what could not be had in this run, by reason.
        decided: decisions of the review page that were carried out.
        waiting: instances that wait for a person now.
        training_set: what there is to register now.
        seconds: it took.
    """

    read: Counter[tuple[Verdict, str]]
    copies: int
    held: int
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
        if self.copies:
            lines.append(f"{self.copies:>9,}  more files are copies of instances that are known")
        if self.held:
            lines.append(f"{self.held:>9,}  of these files are held; the receiver's next start tries again")
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
    report: Report = lambda stage, done, total: None,
    state_folder: Path | None = None,
    *,
    again: bool = False,
) -> IngestReport:
    """Bring what a source holds into a folder that `echofed site register` takes.

    Only what is not known is fetched. One bad instance is set aside with a reason and counted. What is stored is searched for
    every identifying text of the headers that were read.

    Args:
        folder: of the ingest; made if missing, readable by its owner alone.
        source: where from; None: only decisions and labels are brought up to date.
        settings: of the ingest.
        report: told how far it is.
        state_folder: of the site, which says who was forgotten; None: nobody.
        again: whether what was set aside for reasons that may have passed (`outcomes.PASSING`) is read anew.

    Raises:
        IngestError: settings, tables or journal are wrong, or the merges changed for patients who were ingested before.
        SourceError: the source cannot be used; what was ingested before is kept.
        FrameStoreError: the disk is full, or the store's key is wrong.
        LeakError: an identifying text was found in what is stored.
        StateFolderError: another process ingests into this folder.
        KeyboardInterrupt: it was interrupted; the next ingest goes on there.
    """
    started = time.monotonic()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _opened(folder, settings, state_folder) as (reading, journal):
        check_not_withheld(folder)
        decided = apply_decisions(reading, journal)
        # All tables are read before anything is asked for.
        read_labels(settings.labels, folder)
        run = _Run(reading, journal, report, journal.take_anew(PASSING) if again else {})
        if source is not None:
            run.all(source)
        run.count_ambiguous()
        training_set = write_training_set(reading, journal)
        search_shared(folder, run.texts)
        waiting = sum(1 for _ in journal.entries(Verdict.REVIEW))
    seconds = time.monotonic() - started
    return IngestReport(run.read, run.copies, run.held, run.missed, decided, waiting, training_set, seconds)


@contextmanager
def _opened(folder: Path, settings: IngestSettings, state_folder: Path | None) -> Iterator[tuple[Reading, Journal]]:
    with ExitStack() as held:
        held.enter_context(locked(folder, LOCK_ROLE))
        journal = held.enter_context(open_journal(folder))
        merges = read_merges(folder / settings.merges) if settings.merges else {}
        pseudonyms = open_pseudonyms(folder, merges)
        forgotten = read_forgotten(state_folder) if state_folder else NOBODY
        keep_merges(journal, pseudonyms, forgotten)
        remove_leftovers(folder, journal)
        yield Reading(folder, settings, pseudonyms, _store_key(folder, settings), forgotten), journal


def _store_key(folder: Path, settings: IngestSettings) -> bytes | None:
    if settings.encryption != "none" and not is_encrypted(folder):
        if next(frame_files(folder), None) is not None:
            raise IngestError(
                f"The frames in {folder} are not encrypted, and ingest.yaml asks for encryption.",
                "Move that folder away and ingest everything again, or write encryption: none.",
            )
        make_store_key(folder, settings.encryption)
    return store_key(folder)


class _Run:
    """One run over a source: fetched, read in other processes, noted here."""

    def __init__(self, reading: Reading, journal: Journal, report: Report, anew: dict[str, str]) -> None:
        self._reading, self._journal, self._report = reading, journal, report
        self._anew, self._to_drop = anew, set(anew.values())
        self._folders = Labels(folder=reading.settings.labels.folder)
        self._processes: ReadingProcesses
        self._waiting: deque[tuple[Fetched, Future[Read]]] = deque()
        self._progress = Progress()
        self._stored: list[Entry] = []
        self._usable: set[str] = set()
        self.read: Counter[tuple[Verdict, str]] = Counter()
        self.copies = self.held = 0
        self.missed: Counter[str] = Counter()
        self.texts: set[str] = set()

    def all(self, source: Source) -> None:
        """Fetch, read and search all of a source."""
        settings = self._reading.settings
        selection = read_selection(settings.wanted)
        outcomes = fetch_all(
            source,
            self._reading.folder / SPOOL_FOLDER,
            lambda key: self._journal.knows(self._item(key)),
            settings.wanted,
            settings.politeness,
            self._show,
        )
        try:
            with reading_processes(self._reading, selection) as self._processes, closing(outcomes):
                for outcome in outcomes:
                    if isinstance(outcome, Missed):
                        self.missed[outcome.reason] += outcome.count
                    elif outcome.why is not None:
                        self._set_aside(outcome, outcome.why, is_read=False)
                    else:
                        self._begin(outcome)
                while self._waiting:
                    self._finish()
        finally:
            self._let_go()
        self._report("Reading", self._done, self._done)
        self._search()

    def _show(self, progress: Progress) -> None:
        self._progress = progress
        self._report("Looking", progress.units_done, progress.units or 0)
        # What is missed was looked for, and will not be read.
        self._report("Reading", self._done, max(progress.found - progress.skipped, self._done))

    @property
    def _done(self) -> int:
        return self.read.total() + self.copies

    def _item(self, key: str) -> str:
        return self._reading.pseudonyms.source_key(key)

    def _begin(self, fetched: Fetched) -> None:
        settings = self._reading.settings
        self._drop(self._anew.get(self._item(fetched.key), ""))
        self._waiting.append((fetched, self._processes.begin(fetched, settings.seconds_per_instance)))
        while self._waiting and (
            len(self._waiting) >= _WAITING_PER_PROCESS * settings.processes or self._waiting[0][1].done()
        ):
            self._finish()

    def _drop(self, instance: str) -> None:
        """Forget an instance that waits for a person, now that there is a copy to read anew."""
        queue = self._reading.folder / REVIEW_FOLDER
        if instance in self._to_drop and is_undecided(queue, instance):
            self._journal.drop(instance)
            remove_case(queue, instance)
        self._to_drop.discard(instance)

    def _finish(self) -> None:
        fetched, future = self._waiting[0]
        with fetched:
            read = future.result()
            if read.why in _SECOND_CHANCE:
                # The machine may have been busy, or short of memory: it has one more chance, alone.
                seconds = _PATIENCE * self._reading.settings.seconds_per_instance
                read = self._processes.begin(fetched, seconds).result()
            self._note(fetched, read)
        self._waiting.popleft()
        if len(self.texts) > MAX_TEXTS:
            self._search()
            search_shared(self._reading.folder, self.texts)
            self.texts = set()

    def _note(self, fetched: Fetched, read: Read) -> None:
        self.texts |= read.texts
        if read.said:
            self._journal.record_said(read.said)
        if read.entry is None:
            self._set_aside(fetched, read.why or Why.DAMAGED, is_read=True)
            return
        label = self._folders.label_of("", "", "", fetched.source_path) or ""
        known = self._first_copy(read.entry)
        entry = known or read.entry
        entry = entry if entry.label else replace(entry, label=label)
        self._journal.record(self._item(fetched.key), entry)
        if known is not None:
            self.copies += 1
            self._show(self._progress)
            return
        if entry.verdict is Verdict.ACCEPTED:
            self._stored.append(entry)
        if entry.verdict in _USABLE:
            self._usable.add(entry.instance)
        self._count(entry.why)

    def _first_copy(self, entry: Entry) -> Entry | None:
        """Return what is known of an instance, None if nothing holds; two copies may have been read at the same time."""
        known = self._journal.find(entry.instance)
        if known is None or known.why in OF_THE_FILE:
            return None
        if entry != known:
            folder = self._reading.folder
            kept = {frame["file"] for frame in known.frames}
            remove_frames(folder, replace(entry, frames=tuple(one for one in entry.frames if one["file"] not in kept)))
            if known.verdict is not Verdict.REVIEW:
                remove_case(folder / REVIEW_FOLDER, entry.instance)
            if known.verdict is not Verdict.ACCEPTED:
                (folder / DICOM_FOLDER / f"{entry.instance}.dcm").unlink(missing_ok=True)
        return known

    def _set_aside(self, fetched: Fetched, why: Why, *, is_read: bool) -> None:
        with fetched:
            if fetched.is_only_copy and why in _HELD and not (is_read and why is Why.REPORT):
                fetched.hold()
                self.held += 1
            # Filters may be others next time.
            elif why is not Why.FILTERED and (is_read or why is Why.WRONG_PATIENT):
                self._journal.record_nothing(self._item(fetched.key), why)
            self._count(why)

    def _count(self, why: Why | None) -> None:
        self.read[verdict_of(why), why or ""] += 1
        self._show(self._progress)

    def count_ambiguous(self) -> None:
        """Count what is about to be quarantined because two people seem to lie under one id."""
        for patient in self._journal.ambiguous_patients():
            for instance in self._usable.intersection(self._journal.instances_of(patient)):
                entry = self._journal.find(instance)
                if entry is not None and entry.verdict in _USABLE:
                    self.read += Counter({(Verdict.QUARANTINED, str(Why.TWO_PATIENTS)): 1})
                    self.read -= Counter({(entry.verdict, entry.why or ""): 1})

    def _search(self) -> None:
        """Search what was stored since the last search, for what was read since then."""
        self._report("Searching", 0, 1)
        leaky = search_stored(self._reading.folder, self._journal, self._stored, self.texts)
        self.read += Counter({(Verdict.QUARANTINED, Why.IDENTIFIER_LEFT): leaky})
        self.read -= Counter({(Verdict.ACCEPTED, ""): leaky})
        self._stored.clear()
        self._report("Searching", 1, 1)

    def _let_go(self) -> None:
        """Remove the raw files of what was not read any more, unless there are no others."""
        for fetched, _ in self._waiting:
            if not fetched.is_only_copy:
                fetched.path.unlink(missing_ok=True)
