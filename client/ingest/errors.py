"""Errors that end an ingest, part of the tree of `echofed.protocol.errors`; what only sets one instance aside is in `outcomes`.

DataError
├── IngestError          EF-210  the ingest's settings, folder or tables are wrong
├── SourceError          EF-211  a folder, PACS or sender cannot be used
├── FrameStoreError      EF-212  stored frames are damaged, of another key, or cannot be written
└── LeakError            EF-213  an identifying text was found in what is stored
"""

from echofed.protocol.errors import DataError


class IngestError(DataError):
    """The ingest's settings, folder or tables are wrong."""

    code = "EF-210"
    default_remedy = "Correct what is named, then ingest again; what was ingested is kept."


class SourceError(DataError):
    """A folder, PACS or sender cannot be used."""

    code = "EF-211"
    default_remedy = "Check its address, account and permissions, then ingest again: it goes on where it stopped."


class FrameStoreError(DataError):
    """Stored frames are damaged, of another key, or cannot be written."""

    code = "EF-212"
    default_remedy = "Check the disk and the key; ingest the damaged exams again."


class LeakError(DataError):
    """An identifying text was found in what is stored."""

    code = "EF-213"
    default_remedy = "Use nothing of it: delete the named file, and report what was found to whoever maintains EchoFed."
