"""Instances from a PACS over DICOMweb: QIDO-RS to find them, WADO-RS to fetch them as they are stored.

Each instance is asked for with `transfer-syntax=*`: the PACS sends what it has and never transcodes.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.arrivals import judge, read_values
from echofed.client.ingest.sources.filters import UID, Selection, study_name
from echofed.client.ingest.sources.http_requests import WebClient
from echofed.client.ingest.sources.item import Fetched, Missed, Outcome, Reason, SpoolFile, spooling
from echofed.client.ingest.sources.multipart import PIECE_BYTES, copy_only_part, find_boundary, is_at_end
from echofed.client.ingest.sources.politeness import TransferError
from echofed.client.ingest.sources.run import Job, Run
from echofed.client.ingest.sources.settings import DicomWebSource

MAX_PAGES = 20_000
MAX_FOUND = 2_000_000
"""Of one search; a server may give pages without end."""
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_TAGS = {
    "StudyDate": "00080020",
    "AccessionNumber": "00080050",
    "Modality": "00080060",
    "StationName": "00081010",
    "PatientID": "00100020",
    "BodyPartExamined": "00180015",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "NumberOfSeriesRelatedInstances": "00201209",
    "SOPInstanceUID": "00080018",
}


@dataclass(frozen=True)
class _Found:
    """An object of a search's answer."""

    attributes: dict[str, Any]

    def value(self, keyword: str) -> str:
        """Return an attribute's first value, empty if there is none."""
        attribute = self.attributes.get(_TAGS[keyword])
        values = attribute.get("Value") if isinstance(attribute, dict) else None
        first = values[0] if isinstance(values, list) and values else ""
        return str(first) if isinstance(first, str | int | float) else ""


@dataclass(frozen=True)
class _Instance:
    path: str
    key: str
    patient: str
    study: str


def fetch_dicomweb(source: DicomWebSource, selection: Selection, run: Run) -> Iterator[Outcome]:
    """Yield what a PACS holds of the selection; see `fetching.fetch_all`."""
    client = WebClient(source)
    try:
        with run.aborting(client.abort):
            yield from run.outcomes(_jobs(client, source, selection, run))
    finally:
        client.close()


def _jobs(client: WebClient, source: DicomWebSource, selection: Selection, run: Run) -> Iterator[Job | Missed]:
    search = functools.partial(_search, client, source.page_size, run)
    studies: dict[str, _Found] = {}
    for query in selection.study_queries():
        try:
            found = list(search("/studies", {**query, "includefield": _TAGS["StudyDate"]}, "StudyInstanceUID"))
        except TransferError as error:
            if selection.study_uids is None or error.reason is Reason.UNREACHABLE:
                raise SourceError(f"The PACS cannot be searched: {error.reason}.") from error
            yield Missed(study_name(query), error.reason)
            continue
        if not found and selection.study_uids is not None:
            yield Missed(study_name(query), Reason.NOT_FOUND)
        studies |= {one.value("StudyInstanceUID"): one for one in found if selection.allows(one.value, is_whole=False)}
    run.count(units=len(studies))
    for study in studies:
        selection.add_found(study)
        try:
            for series in search(f"/studies/{study}/series", _series_query(selection), "SeriesInstanceUID"):
                if selection.allows(series.value, is_whole=False):
                    yield from _series_jobs(search, study, studies[study], series, client, source, selection, run)
        except TransferError as error:
            if error.reason is Reason.UNREACHABLE:
                raise SourceError("The PACS has stopped answering.") from error
            yield Missed(study, error.reason)
        run.count(units_done=1)


def _series_query(selection: Selection) -> dict[str, str]:
    fields = ("StationName", "BodyPartExamined", "NumberOfSeriesRelatedInstances")
    return selection.series_query() | {"includefield": ",".join(_TAGS[field] for field in fields)}


def _series_jobs(
    search: Callable[[str, dict[str, str], str], Iterator[_Found]],
    study: str,
    of_study: _Found,
    series: _Found,
    client: WebClient,
    source: DicomWebSource,
    selection: Selection,
    run: Run,
) -> Iterator[Job | Missed]:
    uid = series.value("SeriesInstanceUID")
    path, listed = f"/studies/{study}/series/{uid}/instances", 0
    for instance in search(path, {}, "SOPInstanceUID"):
        listed += 1
        key = instance.value("SOPInstanceUID")
        if run.is_wanted(key):
            patient = next(
                (one.value("PatientID") for one in (instance, series, of_study) if one.value("PatientID")), ""
            )
            wanted = _Instance(f"{path}/{key}", key, patient, study)
            yield functools.partial(_fetch, client, source.max_file_bytes, wanted, selection, run)
    promised = series.value("NumberOfSeriesRelatedInstances")
    if promised.isdecimal() and int(promised) > listed:
        yield Missed(uid, Reason.FEWER, int(promised) - listed)


def _search(
    client: WebClient, page_size: int, run: Run, path: str, query: dict[str, str], uid: str
) -> Iterator[_Found]:
    """Yield the objects of all pages, each once; a PACS may give fewer a page than asked for, or ignore the paging."""
    seen: set[str] = set()
    for _ in range(MAX_PAGES):
        page: dict[str, str | int] = {**query, "limit": page_size, "offset": len(seen)}
        answer = run.pace.try_again(functools.partial(client.get_json, path, page))
        new = [one for one in map(_Found, answer) if one.value(uid) not in seen]
        if not new:
            return
        for one in new:
            if one.value(uid) in seen:
                continue
            seen.add(one.value(uid))
            if UID.fullmatch(one.value(uid)):  # it becomes part of an address
                yield one
            else:
                run.emit(Missed(one.value(uid), Reason.BAD_ANSWER))
        if len(seen) > MAX_FOUND:
            break
    raise SourceError("A search of the PACS finds no end.", "Narrow the filters, as with since and until.")


def _fetch(client: WebClient, max_bytes: int, instance: _Instance, selection: Selection, run: Run) -> None:
    try:
        file = run.pace.try_again(functools.partial(_transfer, client, max_bytes, instance, run))
    except TransferError as error:
        if not run.stopped.is_set():
            run.emit(Missed(instance.key, error.reason))
        return
    why = judge(file.path, selection, instance.patient)
    patient = instance.patient or None
    run.emit(Fetched(file.path, instance.key, file.size_bytes, patient, why, study=instance.study))


def _transfer(client: WebClient, max_bytes: int, instance: _Instance, run: Run) -> SpoolFile:
    with client.get(instance.path, ACCEPT) as response, spooling(run.spool) as file:

        def write(piece: bytes | memoryview) -> None:
            if file.size_bytes + len(piece) > max_bytes:
                raise TransferError(Reason.TOO_LARGE, may_pass=False)
            file.write(piece)

        content_type = response.headers.get("Content-Type", "")
        if content_type.split(";")[0].strip().lower() == "application/dicom":
            while piece := response.read(PIECE_BYTES):
                write(piece)
        else:
            copy_only_part(response, find_boundary(content_type), write)
        # Behind its last boundary an answer may go on for ever: the connection is closed then, and the instance is whole.
        if is_at_end(response) and response.length:
            raise TransferError(Reason.BROKEN_OFF, may_pass=True)
    values = read_values(file.path)
    if values is not None and values["SOPInstanceUID"] not in ("", instance.key):
        file.path.unlink()
        raise TransferError(Reason.BAD_ANSWER, may_pass=False)
    return file
