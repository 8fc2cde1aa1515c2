"""Secrets and certificates a PACS asks for: from files of mode 0600 or the environment, never from the command line."""

import os
import ssl
from pathlib import Path

from echofed.client.ingest.errors import SourceError
from echofed.protocol.errors import KeyFileError
from echofed.protocol.key_files import read_private_file


def read_secret(name: str, file: Path | None, variable: str | None) -> str:
    """Return a password or token.

    Args:
        name: what the errors call it.
        file: holds it, readable by its owner alone; or None.
        variable: of the environment that holds it; or None.

    Raises:
        SourceError: it is not where the settings say, others may read it, or it is not one line of printable text.
    """
    if file is not None:
        try:
            text = read_private_file(file).decode().rstrip("\r\n")
        except (KeyFileError, UnicodeDecodeError) as error:
            what = error.what if isinstance(error, KeyFileError) else f"{file} is not UTF-8."
            raise SourceError(f"The {name} cannot be read: {what}", f"Make {file} a text file of mode 0600.") from error
    else:
        text = os.environ.get(variable or "", "")
    if not text or not text.isprintable():
        where = file if file is not None else f"the environment variable {variable}"
        raise SourceError(f"The {name} is missing or malformed in {where}.", "Write it there, on one line.")
    return text


def tls_context(
    ca_file: Path | None, certificate_file: Path | None, key_file: Path | None, *, is_server: bool = False
) -> ssl.SSLContext:
    """Return the settings of a TLS connection, 1.2 or newer, whose peer must prove who it is.

    Args:
        ca_file: PEM of the authority that signs the peer's certificate; None: those of the operating system.
        certificate_file: PEM of our own certificate, if the peer asks for one.
        key_file: PEM of its key, mode 0600, not encrypted.
        is_server: whether the peer connects to us; without `ca_file` it then need not have a certificate.

    Raises:
        SourceError: a file cannot be read, does not fit the others, or others may read the key.
    """
    purpose = ssl.Purpose.CLIENT_AUTH if is_server else ssl.Purpose.SERVER_AUTH
    try:
        context = ssl.create_default_context(purpose, cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if is_server and ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        if certificate_file is not None and key_file is not None:
            read_private_file(key_file)
            # An encrypted key would be asked for on the terminal, in the middle of a run.
            context.load_cert_chain(certificate_file, key_file, password=lambda: b"")
    except KeyFileError as error:
        raise SourceError(error.what, f"Run `chmod 600 {key_file}`.") from error
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            "The certificates for the PACS cannot be used: a file is missing, damaged or does not fit its key."
        ) from error
    return context
