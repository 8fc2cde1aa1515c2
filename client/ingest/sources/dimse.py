"""Instances from a PACS over DIMSE: C-FIND to find them, C-GET or C-MOVE to fetch them as they are stored."""

import functools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom.events import Event
from pynetdicom.presentation import build_context

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.arrivals import judge
from echofed.client.ingest.sources.association import Associations, Purpose
from echofed.client.ingest.sources.credentials import tls_context
from echofed.client.ingest.sources.filters import UID, Selection, study_name
from echofed.client.ingest.sources.find import FIND, check_status, find, identifier, text_of
from echofed.client.ingest.sources.item import NO_ANSWER, Fetched, Missed, Outcome, Reason
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.run import Job, Run
from echofed.client.ingest.sources.settings import DimseSource, MoveSettings
from echofed.client.ingest.sources.storage import (
    DOES_NOT_FIT,
    NOT_AUTHORISED,
    OUT_OF_RESOURCES,
    SUCCESS,
    storage_classes,
    storage_contexts,
    store,
)
from echofed.client.ingest.sources.storage_server import Door, listening

GET = uid.UID("1.2.840.10008.5.1.4.1.2.2.3")
MOVE = uid.UID("1.2.840.10008.5.1.4.1.2.2.2")
_NO_SUCH_PLACE = 0xA801


@dataclass
class _Arrivals:
    """What is asked for and has not come yet, by instance, with patient and study; nothing else is taken in."""

    selection: Selection
    run: Run
    expected: dict[str, tuple[str, str]] = field(default_factory=dict)
    error: SourceError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: Event) -> int:
        """Hand over the instance of a C-STORE request; return the status to answer with."""
        request: Any = event.request
        key = str(request.AffectedSOPInstanceUID or "")
        with self.lock:
            announced = self.expected.pop(key, None)
        if announced is None or self.run.stopped.is_set():
            return NOT_AUTHORISED
        try:
            file = store(event, self.run.spool)
        except (SourceError, ValueError) as error:
            with self.lock:
                self.expected[key] = announced
                self.error = error if isinstance(error, SourceError) else self.error
            return OUT_OF_RESOURCES if isinstance(error, SourceError) else DOES_NOT_FIT
        patient, study = announced
        why = judge(file.path, self.selection, patient)
        self.run.emit(Fetched(file.path, key, file.size_bytes, patient or None, why, study=study))
        return SUCCESS

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return which of these have not come; raises SourceError if the disk is full."""
        with self.lock:
            if self.error is not None:
                raise self.error
            return [key for key in keys if key in self.expected]

    def give_up(self, key: str, reason: Reason) -> None:
        """Report an instance as missed."""
        with self.lock:
            gone = self.expected.pop(key, None)
        if gone is not None and not self.run.stopped.is_set():
            self.run.emit(Missed(key, reason))


@dataclass(frozen=True)
class _Batch:
    study: str
    series: str
    patient: str
    keys: tuple[str, ...]


def fetch_dimse(source: DimseSource, selection: Selection, run: Run) -> Iterator[Outcome]:
    """Yield what a PACS holds of the selection; see `fetching.fetch_all`."""
    arrivals = _Arrivals(selection, run)
    with ExitStack() as stack:
        finder = stack.enter_context(Associations(source, Purpose([build_context(FIND)])))
        if source.move is None:
            # The roles say that on this association the PACS sends, too.
            purpose = Purpose([build_context(GET), *storage_contexts()], storage_classes(), arrivals.take)
        else:
            purpose = Purpose([build_context(MOVE)])
        fetcher = stack.enter_context(Associations(source, purpose))
        if source.move is not None:
            stack.enter_context(listening(_door(source, source.move), arrivals.take, fetcher.hear))
        for associations in (finder, fetcher):
            stack.enter_context(run.aborting(associations.abort))
        yield from run.outcomes(
            _jobs(finder, functools.partial(_fetch, fetcher, source, arrivals), source, selection, run)
        )


def _door(source: DimseSource, move: MoveSettings) -> Door:
    try:
        peers = frozenset(move.peers) or frozenset(
            str(one[4][0]) for one in socket.getaddrinfo(source.host, source.port)
        )
    except OSError as error:
        raise SourceError(f"There is no address for {source.host}.", "Correct host.") from error
    associations = 2 * 16
    tls = None
    if source.tls:
        tls = tls_context(source.ca_file, source.certificate_file, source.key_file, is_server=True)
    limits = associations, source.max_file_bytes, source.timeout_seconds
    return Door(move.ae_title, move.host, move.port, (), peers, *limits, tls)


def _jobs(
    finder: Associations, fetch: Callable[[_Batch], None], source: DimseSource, selection: Selection, run: Run
) -> Iterator[Job | Missed]:
    studies: dict[str, str] = {}
    for query in selection.study_queries():
        try:
            found = find(finder, run, "STUDY", query)
        except TransferError as error:
            if selection.study_uids is None or error.reason in NO_ANSWER:
                raise SourceError(f"The PACS cannot be searched: {error.reason}.") from error
            yield Missed(study_name(query), error.reason)
            continue
        if not found and selection.study_uids is not None:
            yield Missed(study_name(query), Reason.NOT_FOUND)
        allowed = [one for one in found if selection.allows(functools.partial(text_of, one), is_whole=False)]
        studies |= {text_of(one, "StudyInstanceUID"): text_of(one, "PatientID") for one in allowed}
    run.count(units=len(studies))
    for study, patient in studies.items():
        selection.add_found(study)
        try:
            yield from _study_jobs(finder, fetch, source, selection, run, study, patient)
        except TransferError as error:
            if error.reason in NO_ANSWER:
                raise SourceError("The PACS has stopped answering.") from error
            yield Missed(study, error.reason)
        run.count(units_done=1)


def _study_jobs(
    finder: Associations,
    fetch: Callable[[_Batch], None],
    source: DimseSource,
    selection: Selection,
    run: Run,
    study: str,
    patient: str,
) -> Iterator[Job | Missed]:
    if not UID.fullmatch(study):
        raise TransferError(Reason.BAD_ANSWER, may_pass=False)
    for series in find(finder, run, "SERIES", {"StudyInstanceUID": study} | selection.series_query()):
        if not selection.allows(functools.partial(text_of, series), is_whole=False):
            continue
        name = text_of(series, "SeriesInstanceUID")
        found = find(finder, run, "IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": name})
        keys = dict.fromkeys(text_of(one, "SOPInstanceUID") for one in found)
        wanted = [key for key in keys if UID.fullmatch(key) and run.is_wanted(key)]
        for start in range(0, len(wanted), source.batch):
            some = tuple(wanted[start : start + source.batch])
            yield functools.partial(fetch, _Batch(study, name, patient, some))
        promised = text_of(series, "NumberOfSeriesRelatedInstances")
        if promised.isdecimal() and int(promised) > len(keys):
            yield Missed(name, Reason.FEWER, int(promised) - len(keys))


def _fetch(associations: Associations, source: DimseSource, arrivals: _Arrivals, batch: _Batch) -> None:
    """Fetch a batch: first all at once, then, where that did not bring it on without an error, one by one."""
    with arrivals.lock:
        arrivals.expected.update(dict.fromkeys(batch.keys, (batch.patient, batch.study)))
    run, at_once = arrivals.run, True
    last: dict[str, TransferError] = {}
    for delay in (0.0, *run.pace.delays()):
        missing = [key for key in arrivals.missing(batch.keys) if key not in last or last[key].may_pass]
        if not missing:
            break
        groups = [missing] if at_once else [[key] for key in missing]
        if run.stopped.wait(delay) or run.stopped.is_set():
            return
        last |= _try(associations, source, batch, groups, run)
        came_on = len(arrivals.missing(batch.keys)) < len(missing)
        at_once = came_on and not last
    for key in arrivals.missing(batch.keys):
        arrivals.give_up(key, last[key].reason if key in last else Reason.FEWER)


def _try(
    associations: Associations, source: DimseSource, batch: _Batch, groups: list[list[str]], run: Run
) -> dict[str, TransferError]:
    """Have the PACS send instances, group by group; return what failed. What fails for several may do for each alone."""
    failed: dict[str, TransferError] = {}
    for keys in groups:
        try:
            run.pace.wait_for_turn()
            _retrieve(associations, source, batch, keys)
        except TransferError as error:
            may_pass = error.may_pass or len(keys) > 1
            associations.drop()
            failed |= dict.fromkeys(keys, TransferError(error.reason, may_pass=may_pass))
            if error.reason in NO_ANSWER or run.stopped.is_set():
                return failed | {key: error for group in groups for key in group}
    return failed


def _retrieve(associations: Associations, source: DimseSource, batch: _Batch, keys: list[str]) -> None:
    """Have the PACS send instances; raises TransferError if it fails as a whole, SourceError if it always will."""
    association = associations.take()
    values = {"StudyInstanceUID": batch.study, "SeriesInstanceUID": batch.series}
    asked = identifier("IMAGE", {**values, "SOPInstanceUID": keys if len(keys) > 1 else keys[0]})
    if source.move is None:
        answers = association.send_c_get(asked, GET)
    else:
        answers = association.send_c_move(asked, source.move.ae_title, MOVE)
    status = Dataset()
    for status, _ in answers:
        associations.hear(association)
        if status.get("Status") == _NO_SUCH_PLACE and source.move is not None:
            what = f"The PACS does not know the receiver {source.move.ae_title}."
            raise SourceError(what, "Have its AE title, address and port registered at the PACS.")
    check_status(status)
