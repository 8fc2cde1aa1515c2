"""The one way in which instances are fetched, whatever the source."""

from collections.abc import Callable, Generator
from pathlib import Path

from echofed.client.ingest.sources.filters import Filters, read_selection
from echofed.client.ingest.sources.item import Outcome, Progress, clear_spool
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.run import Run
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, FolderSource, Source


def fetch_all(
    source: Source,
    spool: Path,
    known: Callable[[str], bool],
    filters: Filters,
    politeness: Politeness,
    report: Callable[[Progress], None],
) -> Generator[Outcome, None, None]:
    """Yield all instances of a source that the filters allow and that are not known, and what could not be had.

    Nothing is asked for or read before the first step. Each `Fetched` is the caller's to leave or move; while some wait for
    it, no new transfer is begun. What is missed does not end the run. Closing the iterator ends the transfers. Each instance
    is handed over once in a run; to fetch it only once ever, the caller remembers its key before it leaves the `Fetched`.

    Args:
        source: where from.
        spool: folder for what arrives, of this run alone; emptied at the start.
        known: whether an instance of this key is to be skipped; called in the caller's thread.
        filters: which are wanted, asked of the source and checked on what arrives.
        politeness: the limits.
        report: takes the progress, in the caller's thread.

    Raises:
        IngestError: the filters are wrong.
        SourceError: the source cannot be used at all, or no longer, or the disk is full.
    """
    selection = read_selection(filters)
    clear_spool(spool)
    run = Run(spool, known, politeness, report)
    if isinstance(source, FolderSource):
        from echofed.client.ingest.sources.folder import fetch_folder

        yield from fetch_folder(source, selection, run)
    elif isinstance(source, DicomWebSource):
        from echofed.client.ingest.sources.dicomweb import fetch_dicomweb

        yield from fetch_dicomweb(source, selection, run)
    elif isinstance(source, DimseSource):
        from echofed.client.ingest.sources.dimse import fetch_dimse

        yield from fetch_dimse(source, selection, run)
    else:
        from echofed.client.ingest.sources.receiver import fetch_received

        yield from fetch_received(source, selection, run)
