"""Patients a site has forgotten: a keyed hash of each, so that they stay away without being known.

`forgotten.json` in the state folder holds the hashes; the key is the one that splits the patients. Whoever has both and a
patient's id can tell whether that patient was forgotten, and nobody can tell who was from the file.
"""

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from echofed.client.registry import locked
from echofed.client.splits import keep_split_key, keyed_hash, read_split_key
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.errors import RegistrationError
from echofed.protocol.key_files import write_private_file
from echofed.protocol.models import Sha256

FILE_NAME = "forgotten.json"


class _File(Document):
    tombstones: tuple[Sha256, ...]


@dataclass(frozen=True)
class Forgotten:
    """The patients a site has forgotten; `patient in forgotten` asks.

    Args:
        key: of the hashes; unused if there are none.
        tombstones: hash of each, hexadecimal.
    """

    key: bytes
    tombstones: frozenset[str]

    def __contains__(self, patient: str) -> bool:
        """Return whether a patient was forgotten, by the id or pseudonym the site's index uses."""
        return bool(self.tombstones) and _tombstone(self.key, patient) in self.tombstones


NOBODY = Forgotten(b"", frozenset())


def read_forgotten(state_folder: Path) -> Forgotten:
    """Return whom a site has forgotten.

    Raises:
        RegistrationError: the file is damaged, or the site's key is gone.
    """
    path = state_folder / FILE_NAME
    try:
        tombstones = frozenset(_File.model_validate_json(path.read_bytes()).tombstones)
    except FileNotFoundError:
        return NOBODY
    except (OSError, ValidationError) as error:
        raise RegistrationError(
            f"{path} is damaged: who was forgotten is not known.",
            remedy="Restore it from the newest copy of the state folder.",
        ) from error
    return Forgotten(read_split_key(state_folder) if tombstones else b"", tombstones)


def add_forgotten(state_folder: Path, patients: Collection[str]) -> tuple[str, ...]:
    """Note that patients are forgotten; it is on disk on return, and nothing of them is used from then on.

    Args:
        state_folder: of the site, which exists.
        patients: as the site's index names them.

    Returns:
        Their tombstones, sorted.
    """
    key = keep_split_key(state_folder)
    new = {_tombstone(key, patient) for patient in patients}
    with locked(state_folder / "forgotten.lock"):
        _write(state_folder, read_forgotten(state_folder).tombstones | new)
    return tuple(sorted(new))


def allow_again(state_folder: Path, patients: Collection[str]) -> int:
    """Take patients back who were forgotten, so that they may be ingested and registered anew; return how many that were."""
    with locked(state_folder / "forgotten.lock"):
        known = read_forgotten(state_folder)
        again = known.tombstones & {_tombstone(known.key, patient) for patient in patients}
        if again:
            _write(state_folder, known.tombstones - again)
    return len(again)


def stamp(state_folder: Path) -> tuple[int, int]:
    """Return what changes whenever patients are forgotten or taken back."""
    try:
        status = (state_folder / FILE_NAME).stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _write(state_folder: Path, tombstones: Collection[str]) -> None:
    content = canonical_json(_File(tombstones=tuple(sorted(tombstones))).model_dump(mode="json"))
    try:
        write_private_file(state_folder / FILE_NAME, content + b"\n")
    except OSError as error:
        raise RegistrationError(
            f"{state_folder / FILE_NAME} cannot be written: {error.strerror}.",
            remedy="Free some disk space, then try again.",
        ) from error


def _tombstone(key: bytes, patient: str) -> str:
    # As the index is read: stripped, and in Unicode's composed form.
    return keyed_hash(key, "forgotten", unicodedata.normalize("NFC", patient.strip())).hex()
