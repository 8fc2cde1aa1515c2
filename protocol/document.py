"""The base of every document and message: frozen, strict, nothing unknown accepted."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown fields, loose types, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def canonical_json(content: dict[str, Any]) -> bytes:
    """Return one spelling of a JSON object: sorted keys, no spaces, UTF-8."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_hash(document: Document, domain: str) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a document under a domain that says what it is.

    Two documents that mean the same (another order of keys, comments, defaults written out) have the same hash.
    """
    content = canonical_json(document.model_dump(mode="json"))
    return hashlib.sha256(domain.encode() + b"\n" + content).hexdigest()
