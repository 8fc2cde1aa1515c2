"""A message's content as Flower carries it: one JSON document and, with a model, one safetensors buffer.

The only file of `protocol` that knows Flower; both sides build and read content here, so there is one wire form.
"""

from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from pydantic import ValidationError

from echofed.protocol.arrays import Parameters, decode_parameters, encode_parameters
from echofed.protocol.document import Document
from echofed.protocol.errors import EchoFedError, ReplyRefusedError
from echofed.protocol.messages import ARRAY_KEY, DOCUMENT_KEY, DOCUMENT_RECORD, PARAMETERS_RECORD
from echofed.protocol.signing import Signed

D = TypeVar("D", bound=Document)
MAX_DOCUMENT_BYTES = 64 * 2**10
SEAL_KEY = "seal"
"""Beside DOCUMENT_KEY, between real machines only: the signed seal."""
SITE_ERROR_CODE = 700
"""Flower error code of a message in which a site says why it could not answer."""


def parameters_record(parameters: Parameters) -> ArrayRecord:
    """Return a Flower record holding parameters as one safetensors buffer."""
    return buffer_record(encode_parameters(parameters))


def buffer_record(buffer: bytes) -> ArrayRecord:
    """Return a Flower record holding one safetensors buffer."""
    record = ArrayRecord()
    record[ARRAY_KEY] = Array(dtype="uint8", shape=(len(buffer),), stype="safetensors", data=buffer)
    return record


def content(document: Document, parameters: ArrayRecord | None = None) -> RecordDict:
    """Return the content of a message: a document and, optionally, a record from `parameters_record`."""
    records = RecordDict({DOCUMENT_RECORD: ConfigRecord({DOCUMENT_KEY: document.model_dump_json()})})
    if parameters is not None:
        records[PARAMETERS_RECORD] = parameters
    return records


def read_document(records: RecordDict, kind: type[D]) -> D:
    """Return the document in a message's content.

    Raises:
        ReplyRefusedError: a record beside those of the allow-list, a document too long or not of this kind.
    """
    unexpected = set(records) - {DOCUMENT_RECORD, PARAMETERS_RECORD}
    if unexpected:
        raise ReplyRefusedError(f"The message holds records that are not agreed: {sorted(unexpected)[:3]}.")
    record = records.get(DOCUMENT_RECORD)
    text = record.get(DOCUMENT_KEY) if isinstance(record, ConfigRecord) and set(record) == {DOCUMENT_KEY} else None
    if not isinstance(text, str) or len(text) > MAX_DOCUMENT_BYTES:
        raise ReplyRefusedError("The message holds no document of the agreed form.")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, detail["loc"])) or "document" for detail in error.errors()[:3])
        raise ReplyRefusedError(f"The message's {kind.__name__} is not of the agreed form: {fields}.") from error


def read_parameters(records: RecordDict, max_bytes: int) -> Parameters:
    """Return the parameters in a message's content.

    Raises:
        ReplyRefusedError: there is not exactly one safetensors buffer.
        ArraysError: the buffer is too large or malformed.
    """
    record = records.get(PARAMETERS_RECORD)
    if not isinstance(record, ArrayRecord) or set(record) != {ARRAY_KEY} or record[ARRAY_KEY].stype != "safetensors":
        raise ReplyRefusedError("The message does not hold exactly one safetensors buffer.")
    return decode_parameters(record[ARRAY_KEY].data, max_bytes)


def buffer_of(records: RecordDict) -> bytes:
    """Return the safetensors buffer in the content of one of our own messages, empty if it has none."""
    record = records.get(PARAMETERS_RECORD)
    return record[ARRAY_KEY].data if isinstance(record, ArrayRecord) else b""


def document_of(records: RecordDict) -> str:
    """Return the JSON document in the content of one of our own messages."""
    record = records[DOCUMENT_RECORD]
    assert isinstance(record, ConfigRecord)
    return str(record[DOCUMENT_KEY])


def content_of(document: str, buffer: bytes) -> RecordDict:
    """Return the content of a message from its two parts as text and bytes; without parameters if there are none."""
    records = RecordDict({DOCUMENT_RECORD: ConfigRecord({DOCUMENT_KEY: document})})
    if buffer:
        records[PARAMETERS_RECORD] = buffer_record(buffer)
    return records


def content_bytes(records: RecordDict) -> bytes:
    """Return the content of a message as bytes: the length of its document, the document, and its buffer."""
    document = document_of(records).encode()
    return len(document).to_bytes(8, "big") + document + buffer_of(records)


def content_from(raw: bytes) -> RecordDict:
    """Return the content that `content_bytes` wrote."""
    end = 8 + int.from_bytes(raw[:8], "big")
    return content_of(raw[8:end].decode(), raw[end:])


def sealed_content(document: str, seal: Signed) -> RecordDict:
    """Return what travels between real machines: a document and its seal; the parameters travel beside.

    Both stand in one record: Flower fetches each record of a message on its own.
    """
    return RecordDict({DOCUMENT_RECORD: ConfigRecord({DOCUMENT_KEY: document, SEAL_KEY: seal.model_dump_json()})})


def read_sealed(records: RecordDict) -> tuple[str, Signed]:
    """Return the document's text and its seal, whose signature is not checked here.

    Raises:
        ReplyRefusedError: anything beside these two, or one too long or not of this kind.
    """
    record = records.get(DOCUMENT_RECORD)
    texts = dict(record) if isinstance(record, ConfigRecord) and set(records) == {DOCUMENT_RECORD} else {}
    document, seal = texts.get(DOCUMENT_KEY), texts.get(SEAL_KEY)
    if len(texts) != 2 or not isinstance(document, str) or not isinstance(seal, str):
        raise ReplyRefusedError("The message does not hold exactly a document and its seal.")
    if max(len(document), len(seal)) > MAX_DOCUMENT_BYTES:
        raise ReplyRefusedError("The message's document or seal is too long.")
    try:
        return document, Signed.model_validate_json(seal)
    except ValidationError as error:
        raise ReplyRefusedError("The message's seal is not of the agreed form.") from error


def payload_bytes(message: Message) -> int:
    """Return the bytes of parameters a message carries."""
    if not message.has_content():
        return 0
    records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())


def error_reply(error: EchoFedError, reply_to: Message) -> Message:
    """Return a reply that says why the site could not answer: the error's code and the fixed sentence for it.

    What happened in detail stays at the site: it may name files, and a file's name may name a patient.
    """
    sentence = (type(error).__doc__ or "").splitlines()[0]
    return Message(Error(SITE_ERROR_CODE, f"[{error.code}] {sentence}"), reply_to=reply_to)
