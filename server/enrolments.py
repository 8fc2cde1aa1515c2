"""What the coordinator notes of invitations, enrolments and revocations; each in a file that is replaced whole."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import Field, TypeAdapter, ValidationError

from echofed.protocol.document import Document, canonical_json
from echofed.protocol.errors import EnrolmentError, StateFolderError
from echofed.protocol.key_files import write_private_file
from echofed.protocol.membership import Time, parse_time
from echofed.protocol.messages import SiteName
from echofed.protocol.models import Sha256
from echofed.protocol.state_folder import read_limited

REVOKED = "revoked.json"

D = TypeVar("D", bound=Document)
_SITE_NAME: TypeAdapter[str] = TypeAdapter(SiteName)


class OpenInvitation(Document):
    """An invitation that was given out; its file's name is the hash of its secret."""

    site: SiteName
    issued_at: Time
    expires_at: Time
    readmits: bool = Field(description="whether it lets in a site that is revoked.")
    used_by: Sha256 | None = Field(default=None, description="digest of the one request it was used for.")


class IssuedCertificate(Document):
    """A TLS certificate the site may come with."""

    serial: str = Field(pattern=r"^[0-9a-f]{1,40}$")
    key: Sha256 = Field(description="of the public key, DER.")
    expires_at: Time


class Enrolment(Document):
    """A member of the consortium."""

    site: SiteName
    enrolled_at: Time
    request: Sha256 = Field(description="digest of the enrolment request.")
    certificates: tuple[IssuedCertificate, ...] = Field(description="not yet expired; the newest last.")


class Revocation(Document):
    """A site that is no longer let in, or earlier certificates of one that is in again."""

    site: SiteName
    revoked_at: Time
    reason: str = Field(min_length=1, max_length=500)
    serials: tuple[str, ...] = Field(description="of its TLS certificates: these stay revoked whatever follows.")
    readmitted_at: Time | None = None


class Revocations(Document):
    """All revocations, oldest first."""

    revocations: tuple[Revocation, ...] = ()

    def open_for(self, site: str) -> Revocation | None:
        """Return why a site is not let in, None if it is."""
        return next((one for one in self.revocations if one.site == site and one.readmitted_at is None), None)


@dataclass(frozen=True)
class _Read:
    version: tuple[int, int, int]
    document: Document


_CACHE: dict[Path, _Read] = {}


def site_name(name: str) -> str:
    """Return a site's name if it is one: no other may become part of a path.

    Raises:
        EnrolmentError: it is not a site's name.
    """
    try:
        return _SITE_NAME.validate_python(name)
    except ValidationError as error:
        remedy = "Use letters, digits, dots, dashes and underscores, at most 64, a letter or digit first."
        raise EnrolmentError(f"{name[:80]!r} does not make a site's name.", remedy) from error


def read_invitation(folder: Path, secret_hash: str) -> OpenInvitation | None:
    """Return the record of an invitation, None if there is none (any more)."""
    return _read(invitation_path(folder, secret_hash), OpenInvitation)


def read_enrolment(folder: Path, site: str) -> Enrolment | None:
    """Return the record of a member, None if the site is not one."""
    return _read(enrolment_path(folder, site), Enrolment)


def read_revocations(folder: Path) -> Revocations:
    """Return all revocations; a change by another process is seen at once.

    Raises:
        StateFolderError: the file is gone or damaged: nobody is let in then.
    """
    found = _read(folder / REVOKED, Revocations)
    if found is None:
        raise StateFolderError(f"{folder / REVOKED} is gone: who is revoked is not known.")
    return found


def write_record(path: Path, record: Document) -> None:
    """Replace a record; it is on disk on return."""
    write_private_file(path, canonical_json(record.model_dump(mode="json")) + b"\n")


def invitation_path(folder: Path, secret_hash: str) -> Path:
    """Return where an invitation is noted."""
    return folder / "invitations" / f"{secret_hash}.json"


def enrolment_path(folder: Path, site: str) -> Path:
    """Return where a member is noted."""
    return folder / "enrolments" / f"{site_name(site)}.json"


def invitations_of(folder: Path, site: str) -> list[Path]:
    """Return the files of a site's invitations, used or not."""
    paths = sorted((folder / "invitations").glob("*.json"))
    return [path for path in paths if (record := _read(path, OpenInvitation)) and record.site == site]


def all_invitations(folder: Path) -> list[OpenInvitation]:
    """Return every invitation on record."""
    records = (_read(path, OpenInvitation) for path in sorted((folder / "invitations").glob("*.json")))
    return [record for record in records if record]


def issued(certificate: x509.Certificate, expires_at: str) -> IssuedCertificate:
    """Return the record of a certificate."""
    return IssuedCertificate(serial=f"{certificate.serial_number:x}", key=key_hash(certificate), expires_at=expires_at)


def key_hash(certified: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return the SHA-256 of a certificate's or request's public key (DER)."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(certified.public_key().public_bytes(encoding, form)).hexdigest()


def unexpired(enrolment: Enrolment, now: datetime) -> tuple[IssuedCertificate, ...]:
    """Return a member's certificates that have not expired."""
    return tuple(one for one in enrolment.certificates if parse_time(one.expires_at) > now)


def _read(path: Path, kind: type[D]) -> D | None:
    """Return a record; what was read is kept until the file is another one."""
    try:
        status = path.stat()
        version = (status.st_mtime_ns, status.st_ino, status.st_size)
        kept = _CACHE.get(path)
        if kept and kept.version == version and isinstance(kept.document, kind):
            return kept.document
        document = kind.model_validate_json(read_limited(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StateFolderError(f"{path} is damaged.") from error
    _CACHE[path] = _Read(version, document)
    return document
