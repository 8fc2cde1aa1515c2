"""Settings of the sources, as they stand in ingest.yaml; `kind` says which."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from echofed.protocol.document import Document

AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
Bytes = Annotated[int, Field(ge=2**20, le=2**40)]


class FolderSource(Document):
    """A folder or USB export: loose files, DICOMDIR and zip archives, recursively."""

    kind: Literal["folder"] = "folder"
    path: Path
    max_file_bytes: Bytes = 4 * 2**30
    max_archive_files: int = Field(default=100_000, ge=1, le=10_000_000, description="in one zip archive.")
    max_archive_bytes: Bytes = Field(default=256 * 2**30, description="of one zip archive, unpacked.")
    max_archive_ratio: int = Field(default=200, ge=2, le=1100, description="unpacked to packed size of a file.")


class ReceivedSource(Document):
    """What our own receiver has been sent; instances are removed once they are ingested."""

    kind: Literal["received"] = "received"
    path: Path = Field(description="the receiver's folder.")


class DicomWebSource(Document):
    """A PACS that speaks DICOMweb (QIDO-RS and WADO-RS)."""

    kind: Literal["dicomweb"] = "dicomweb"
    url: str = Field(max_length=300, description="as in https://pacs.hospital.example/dicom-web.")
    user: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^:\x00-\x1f]+$")
    password_env: str | None = Field(default=None, description="environment variable that holds the password.")
    password_file: Path | None = Field(default=None, description="file that holds the password; mode 0600.")
    token_env: str | None = Field(default=None, description="environment variable that holds a bearer token.")
    token_file: Path | None = Field(default=None, description="file that holds a bearer token; mode 0600.")
    certificate_file: Path | None = Field(default=None, description="our certificate (PEM), if the PACS asks for one.")
    key_file: Path | None = Field(default=None, description="its key (PEM); mode 0600.")
    ca_file: Path | None = Field(default=None, description="authority of the PACS's certificate (PEM).")
    allow_plain_http: bool = Field(default=False, description="speak http, unencrypted, to other machines.")
    page_size: int = Field(default=500, ge=1, le=10_000)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600, description="without a byte.")
    max_file_bytes: Bytes = 4 * 2**30

    @field_validator("url")
    @classmethod
    def _is_a_service(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("write the service as https://host/path")
        if parts.username or parts.password:
            raise ValueError("write the user as user, and the password into a file or the environment")
        if parts.port == 0 or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("write the service as https://host:port/path")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> "DicomWebSource":
        passwords = sum(one is not None for one in (self.password_env, self.password_file))
        tokens = sum(one is not None for one in (self.token_env, self.token_file))
        if passwords > 1 or tokens > 1 or (passwords and tokens):
            raise ValueError("write one of password_env, password_file, token_env and token_file")
        if bool(passwords) != (self.user is not None):
            raise ValueError("user and its password (password_file or password_env) go together")
        _check_certificate(self.certificate_file, self.key_file)
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not (self.allow_plain_http or is_loopback(parts.hostname or "")):
            raise ValueError("http sends names and images unencrypted; write https, or allow_plain_http: true")
        return self


class MoveSettings(Document):
    """Our own receiver, for a PACS that only sends to a place it knows (C-MOVE)."""

    ae_title: AeTitle = Field(description="under which the PACS knows this receiver.")
    host: Host = Field(default="127.0.0.1", description="address to listen at.")
    port: int = Field(default=11112, ge=0, le=65535)
    peers: tuple[Host, ...] = Field(default=(), description="addresses that may send; empty: the PACS's own.")


class DimseSource(Document):
    """A PACS that speaks DIMSE: C-FIND, then C-GET or, with `move`, C-MOVE."""

    kind: Literal["dimse"] = "dimse"
    host: Host
    port: int = Field(default=104, ge=1, le=65535)
    ae_title: AeTitle = Field(description="of the PACS.")
    our_ae_title: AeTitle = "ECHOFED"
    move: MoveSettings | None = Field(default=None, description="fetch with C-MOVE instead of C-GET.")
    tls: bool = False
    ca_file: Path | None = Field(default=None, description="authority of the PACS's certificate (PEM).")
    certificate_file: Path | None = Field(default=None, description="our certificate (PEM), if the PACS asks for one.")
    key_file: Path | None = Field(default=None, description="its key (PEM); mode 0600.")
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600, description="without a byte.")
    batch: int = Field(default=20, ge=1, le=500, description="instances asked for at once.")
    max_file_bytes: Bytes = Field(default=2**30, description="held in memory while it arrives.")

    @model_validator(mode="after")
    def _fits_together(self) -> "DimseSource":
        _check_certificate(self.certificate_file, self.key_file)
        if (self.ca_file or self.certificate_file) and not self.tls:
            raise ValueError("certificates are for tls: true")
        if self.tls and self.move and not self.certificate_file:
            raise ValueError(
                "with tls: true and move, the PACS sends over TLS to us: write certificate_file and key_file"
            )
        return self


class ReceiverSettings(Document):
    """A storage receiver to which scanners and PACS send."""

    ae_title: AeTitle = "ECHOFED"
    host: Host = Field(default="127.0.0.1", description="address to listen at; 0.0.0.0: every interface.")
    port: int = Field(default=11112, ge=0, le=65535, description="0: any free one.")
    senders: tuple[AeTitle, ...] = Field(default=(), description="AE titles that may send; empty: any.")
    peers: tuple[Host, ...] = Field(default=("127.0.0.1", "::1"), description="addresses that may send.")
    max_associations: int = Field(default=4, ge=1, le=64)
    max_file_bytes: Bytes = Field(default=2**30, description="held in memory while it arrives.")
    min_free_bytes: int = Field(default=2**30, ge=0, description="space that is left free on the disk.")
    idle_seconds: float = Field(default=60.0, gt=0, le=3600)
    certificate_file: Path | None = Field(default=None, description="our certificate (PEM): TLS only.")
    key_file: Path | None = Field(default=None, description="its key (PEM); mode 0600.")
    ca_file: Path | None = Field(default=None, description="authority of the senders' certificates (PEM).")

    @model_validator(mode="after")
    def _fits_together(self) -> "ReceiverSettings":
        _check_certificate(self.certificate_file, self.key_file)
        if self.ca_file and not self.certificate_file:
            raise ValueError("ca_file is for TLS: write our certificate_file and key_file, too")
        if not is_loopback(self.host) and not self.peers:
            raise ValueError("write the peers that may send from other machines")
        return self


Source = Annotated[FolderSource | ReceivedSource | DicomWebSource | DimseSource, Field(discriminator="kind")]


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_certificate(certificate_file: Path | None, key_file: Path | None) -> None:
    if (certificate_file is None) != (key_file is None):
        raise ValueError("certificate_file and key_file go together")
