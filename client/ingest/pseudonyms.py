"""Pseudonyms: keyed, so that who does not have the site's key can neither make nor undo them.

Identities are compared as DICOM compares them: spaces and nulls around an id mean nothing (PS3.5, 6.2), letters are brought to
Unicode NFC, and upper and lower case differ. An id is only unique within whoever issued it, so IssuerOfPatientID, where a file
has one, belongs to the identity, written `id^^^issuer` as in HL7 v2 (CX). Whoever has files of one patient with and without an
issuer, or under two ids, says so in a CSV of merges.
"""

import base64
import csv
import fcntl
import hashlib
import hmac
import os
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from echofed.client.ingest.errors import IngestError
from echofed.protocol.errors import KeyFileError
from echofed.protocol.key_files import read_private_file, write_private_file

KEY_FILE = "pseudonym.key"
KEY_BYTES = 32
PSEUDONYM_CHARACTERS = 20
"""Of base32, five bits each: among a billion patients two share a pseudonym with a probability below 10^-12."""
MAX_MERGES_BYTES = 64 * 2**20
_DAY_BITS = 40
"""A clock's zero is one of 2^40, the calendar has fewer than 2^22 days: a shifted day says next to nothing of the date."""


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one site's key; the same identity always gets the same, and kinds never collide.

    Args:
        key: 32 bytes; whoever has it can link pseudonyms to identities.
        merges: patient identity -> the one it is a second name of, as from `read_merges`.
    """

    key: bytes = field(repr=False)
    merges: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError("a pseudonym key has 32 bytes")

    def patient(self, identity: str) -> str:
        """Return a patient's pseudonym.

        Args:
            identity: as from `patient_identity`; merged identities share one pseudonym.
        """
        return self._code("patient", self._merged(identity))

    def all_of_patient(self, identity: str) -> frozenset[str]:
        """Return every pseudonym a patient may have been given: that of the id, and of each id it is or was merged with.

        Raises:
            IngestError: the id is empty.
        """
        if not clean_id(identity).split("^^^")[0].strip():
            raise IngestError("No patient was named.", "Name the patient by the id the hospital uses.")
        first = self._merged(identity)
        group = {clean_id(identity), first, *(second for second, other in self.merges.items() if other == first)}
        return frozenset(self._code("patient", one) for one in group)

    def exam(self, study_uid: str) -> str:
        """Return an exam's pseudonym, from its StudyInstanceUID."""
        return self._code("exam", clean_id(study_uid))

    def instance(self, sop_uid: str) -> str:
        """Return an instance's pseudonym, from its SOPInstanceUID."""
        return self._code("instance", clean_id(sop_uid))

    def accession(self, number: str) -> str:
        """Return what stands for an accession number."""
        return self._code("accession", clean_id(number))

    def equipment(self, text: str) -> str:
        """Return what stands for a vendor or model that is on no list, so that devices can still be told apart."""
        return self._code("equipment", clean_id(text).casefold())

    def trait(self, identity: str, kind: str, text: str) -> str:
        """Return a digest by which one patient's name or birth date can be compared between exams, but not between patients.

        Args:
            identity: the patient's, as from `patient_identity`.
            kind: such as "name".
            text: what is compared, already in one spelling; empty gives empty.
        """
        return self._code(f"trait {kind}", self._merged(identity), text) if text else ""

    def source_key(self, key: str) -> str:
        """Return what a journal stores in place of a source's key of an item."""
        return self._code("source", key)

    def uid(self, uid: str) -> str:
        """Return a valid DICOM UID (2.25, from a UUID of version 8) that stands for another."""
        number = int.from_bytes(self._digest("uid", clean_id(uid))[:16])
        number = number & ~(0xF << 76) | 0x8 << 76  # version: 8, made by the maker's own rule
        number = number & ~(0x3 << 62) | 0x2 << 62  # variant: RFC 9562
        return f"2.25.{number}"

    def day(self, identity: str, day: date) -> int:
        """Return a day on a clock of the patient's own: differences between two are true days, the zero is secret.

        Args:
            identity: the patient's, as from `patient_identity`.
            day: of the exam; must not be stored.
        """
        offset = int.from_bytes(self._digest("day", self._merged(identity))[:8]) >> (64 - _DAY_BITS)
        return day.toordinal() + offset

    def _merged(self, identity: str) -> str:
        cleaned = clean_id(identity)
        return self.merges.get(cleaned, cleaned)

    def _code(self, kind: str, *texts: str) -> str:
        return base64.b32encode(self._digest(kind, *texts)).decode().lower()[:PSEUDONYM_CHARACTERS]

    def _digest(self, kind: str, *texts: str) -> bytes:
        """HMAC-SHA-256 over the kind and the texts, each with its length before it, so that no two inputs run together."""
        parts = [part.encode("utf-8", "surrogatepass") for part in (f"EchoFed ingest 1 {kind}", *texts)]
        message = b"".join(len(part).to_bytes(8) + part for part in parts)
        return hmac.digest(self.key, message, hashlib.sha256)


def clean_id(text: str) -> str:
    """Return an id as it is compared: NFC, without the spaces and nulls around it that DICOM calls padding."""
    return unicodedata.normalize("NFC", text).strip(" \0\t\r\n")


def patient_identity(patient_id: str, issuer: str = "") -> str:
    """Return what tells a patient from all others: `id`, or `id^^^issuer`; empty if there is no id."""
    patient_id, issuer = clean_id(patient_id), clean_id(issuer)
    return f"{patient_id}^^^{issuer}" if patient_id and issuer else patient_id


def open_pseudonyms(folder: Path, merges: Mapping[str, str] | None = None) -> Pseudonyms:
    """Return the pseudonyms of an ingest folder, making its key on first use, readable by its owner alone.

    Args:
        folder: of the ingest; must exist.
        merges: as from `read_merges`.

    Raises:
        IngestError: the key cannot be read, others may have read it, it is damaged, or it is gone while frames named with it are
            there: with a new key one patient would become two.
        OSError: it cannot be written.
    """
    path = folder / KEY_FILE
    with _locked(folder):
        if not path.exists():
            frames = folder / "frames"
            if frames.is_dir() and any(frames.iterdir()):
                raise IngestError(
                    f"The key of the pseudonyms, {path}, is gone.",
                    "Put it back from a backup; without it, ingest everything again into an empty folder.",
                )
            write_private_file(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        return Pseudonyms(_read_key(path), dict(merges or {}))


def _read_key(path: Path) -> bytes:
    try:
        text = read_private_file(path).decode("ascii").strip()
        key = bytes.fromhex(text)
    except KeyFileError as error:
        raise IngestError(
            f"The key of the pseudonyms cannot be used. {error.what}",
            f"Make it a plain file that only its owner can read (`chmod 600 {path}`). If others have read it, whatever of the"
            " ingest they hold is linked to patients.",
        ) from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise IngestError(f"The key of the pseudonyms, {path}, is damaged.", "Put it back from a backup.")
    return key


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: two that each made a key would give a patient two pseudonyms."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_merges(path: Path) -> dict[str, str]:
    """Return, for each second identity of a patient, the first.

    The CSV (UTF-8) has the columns `patient_id` and `same_as`; both hold an id, or `id^^^issuer`. Chains are followed. The
    pseudonym is that of the identity at the end, so a row added later changes nobody else's.

    Raises:
        IngestError: it cannot be read, is too large, lacks a column, has an empty cell, contradicts itself or goes in a circle.
    """
    try:
        if path.stat().st_size > MAX_MERGES_BYTES:
            raise IngestError(f"{path} is too large for a table of merges.")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = [(reader.line_num, row.get("patient_id"), row.get("same_as")) for row in reader]
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IngestError(f"The table of merges {path} cannot be read: {error}.") from error
    if not {"patient_id", "same_as"} <= set(columns):
        raise IngestError(f"The table of merges {path} needs the columns patient_id and same_as.")
    direct: dict[str, str] = {}
    for line, second, first in rows:
        second, first = clean_id(second or ""), clean_id(first or "")
        if not second or not first:
            raise IngestError(f"Line {line} of {path} lacks an id.")
        if direct.setdefault(second, first) != first:
            raise IngestError(f"Line {line} of {path} says of an id that it is two others.")
    return {second: _end_of(second, direct, path) for second in direct if direct[second] != second}


def _end_of(identity: str, direct: Mapping[str, str], path: Path) -> str:
    seen = {identity}
    while identity in direct and direct[identity] != identity:
        identity = direct[identity]
        if identity in seen:
            raise IngestError(f"The merges in {path} go in a circle.")
        seen.add(identity)
    return identity
