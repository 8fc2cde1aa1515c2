"""The one Flower app bundle EchoFed's runs name: it holds no code.

Flower ties every run to a bundle and sends it to every node. A site runs what it has installed; it checks that the bundle is
this one, byte for byte, and refuses anything else. Nothing in a bundle is ever unpacked, imported or evaluated.
"""

import hashlib
import io
import zipfile
from functools import cache

_DESCRIPTION = """\
[project]
name = "echofed"
version = "1"

[tool.flwr.app]
publisher = "echofed"

[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""
_UNIX = 3


@cache
def empty_bundle() -> bytes:
    """Return the bundle: a ZIP of one description and nothing to run; the same bytes on every machine."""
    entry = zipfile.ZipInfo("pyproject.toml", (1980, 1, 1, 0, 0, 0))
    entry.create_system = _UNIX
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(entry, _DESCRIPTION)
    return buffer.getvalue()


@cache
def bundle_hash() -> str:
    """Return the bundle's SHA-256, as Flower names it."""
    return hashlib.sha256(empty_bundle()).hexdigest()
