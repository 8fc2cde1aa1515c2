"""What C-GET, C-MOVE and the receiver share: which objects are taken, how they reach the disk, and limits on the peer.

pynetdicom joins an instance in memory before it hands it over, so memory is bounded here: by instance and by PDU. (Its
other way writes to the system's folder for temporary files, where patients' files have no place.)
"""

import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import uid
from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AssociationSocket

from echofed.client.ingest.sources.item import SpoolFile, spooling

# Its log would hold names and identifiers.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
logging.getLogger("pynetdicom").propagate = False

MAX_PDU_BYTES = 2**17
"""What we ask peers to send at once; DCMTK, and so Orthanc, sends no more."""
MAX_RECEIVED_PDU_BYTES = 2**20
MAX_COMMAND_BYTES = 2**16
MAX_QUEUED_MESSAGES = 32
OUT_OF_RESOURCES, DOES_NOT_FIT, NOT_AUTHORISED, SUCCESS = 0xA700, 0xC000, 0x0124, 0x0000

_ULTRASOUND = (
    "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.6",  # the same, retired
    "1.2.840.10008.5.1.4.1.1.3",
)
_SECONDARY_CAPTURE = (
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color
)
_REPORTS = (
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.72",  # Simplified Adult Echo SR
)
_UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
_COMMON = (
    *_UNCOMPRESSED,
    uid.JPEGBaseline8Bit,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.RLELossless,
)
_ALL = (
    *_COMMON,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.MPEG2MPML,
    uid.MPEG2MPHL,
    uid.MPEG4HP41,
    uid.MPEG4HP41BD,
    uid.HEVCMP51,
    uid.HTJ2KLossless,
    uid.HTJ2K,
)


def storage_contexts() -> list[PresentationContext]:
    """Return one presentation context for each class and transfer syntax, so that every file comes as it is stored.

    In one context for several transfer syntaxes the receiver's choice would hold for all files, and a PACS that has them
    in another would transcode. An association has room for 128 contexts.
    """
    pairs = [
        *((one, syntax) for one in _ULTRASOUND for syntax in _ALL),
        *((one, syntax) for one in _SECONDARY_CAPTURE for syntax in _COMMON),
        *((one, syntax) for one in _REPORTS for syntax in _UNCOMPRESSED),
    ]
    return [build_context(one, syntax) for one, syntax in pairs]


def storage_classes() -> tuple[str, ...]:
    """Return the storage classes that are taken."""
    return (*_ULTRASOUND, *_SECONDARY_CAPTURE, *_REPORTS)


def store(event: Event, spool: Path) -> SpoolFile:
    """Write the instance of a C-STORE request to the spool: the bytes as they came, behind a new file meta group.

    Raises:
        SourceError: the disk is full.
        ValueError: the request has no class, instance or data.
    """
    request: Any = event.request
    if not request.AffectedSOPClassUID or not request.AffectedSOPInstanceUID or request.DataSet is None:
        raise ValueError("not a whole C-STORE request")
    meta = create_file_meta(
        sop_class_uid=request.AffectedSOPClassUID,
        sop_instance_uid=request.AffectedSOPInstanceUID,
        transfer_syntax=event.context.transfer_syntax,
    )
    with spooling(spool) as file:
        file.write(bytes(128) + b"DICM" + encode_file_meta(meta))
        with request.DataSet.getbuffer() as content:
            file.write(content)
    return file


def bound_reading(stream: AssociationSocket, max_bytes: int, heard: Callable[[], None]) -> None:
    """Have an association end if its peer sends larger PDUs or instances than allowed.

    Args:
        stream: nothing is read from it yet.
        max_bytes: of an instance.
        heard: called whenever something arrives.
    """
    stream.recv = functools.partial(_receive, stream, max_bytes, heard)  # type: ignore[method-assign]
    stream._shutdown_socket = functools.partial(_close, stream)  # type: ignore[method-assign]


def allow_silence(association: Association, seconds: float) -> None:
    """Have an association end if nothing comes for so long in the middle of a PDU."""
    stream = association.dul.socket
    if stream is not None and stream.socket is not None:
        stream.socket.settimeout(seconds)


def _close(stream: AssociationSocket) -> None:
    """Close for good: pynetdicom's own leaves open what the peer has closed, or what never was connected."""
    if stream.socket is not None:
        with contextlib.suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)
        stream.socket.close()


def _receive(stream: AssociationSocket, max_bytes: int, heard: Callable[[], None], nr_bytes: int) -> bytearray:
    """Read so many bytes, fewer if the peer closes; raises OSError if it exceeds the limits.

    pynetdicom's own reads 4 KiB at a time and whatever length the peer announces.
    """
    dimse = stream.assoc.dimse
    message = dimse.message
    if nr_bytes > MAX_RECEIVED_PDU_BYTES or dimse.msg_queue.qsize() > MAX_QUEUED_MESSAGES:
        raise OSError("the peer sends more than was agreed")
    if message is not None:
        command, content = message.encoded_command_set.tell(), message.data_set.tell() if message.data_set else 0
        if command > MAX_COMMAND_BYTES or content > max_bytes:
            raise OSError("the peer sends more than is allowed")
    heard()
    buffer = bytearray(nr_bytes)
    view, filled = memoryview(buffer), 0
    while filled < nr_bytes and stream.socket is not None:
        size = stream.socket.recv_into(view[filled:])
        if not size:
            break
        filled += size
        heard()
    view.release()
    del buffer[filled:]
    return buffer
