"""A study on its way to the hospitals: the coordinator's publication or withdrawal, and each hospital's answer."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from echofed.protocol.document import Document
from echofed.protocol.errors import SignatureError, UnknownNameError
from echofed.protocol.membership import Time, iso_time
from echofed.protocol.messages import SiteName
from echofed.protocol.models import Sha256
from echofed.protocol.study import PRINTABLE, Study
from echofed.protocol.yaml_text import MAX_FILE_BYTES, load_document

MIN_PREFIX_DIGITS = 8
MAX_PARAMETERS_BYTES = 2**36

Person = Annotated[str, Field(min_length=2, max_length=200, pattern=PRINTABLE)]
Reason = Annotated[str, Field(min_length=1, max_length=2000, pattern=PRINTABLE)]
Decision = Literal["approved", "refused", "withdrawn"]


class Publication(Document):
    """A study the coordinator offers; signed under the purpose `publication`."""

    consortium: Sha256
    study_hash: Sha256
    study_yaml: str = Field(max_length=MAX_FILE_BYTES, description="the document's text, byte for byte.")
    parameters_sha256: Sha256 = Field(description="of the initial-parameters file.")
    parameters_bytes: int = Field(ge=1, le=MAX_PARAMETERS_BYTES)
    published_at: Time


class Withdrawal(Document):
    """A study the coordinator takes back for good; signed under the purpose `withdrawn publication`."""

    consortium: Sha256
    study_hash: Sha256
    withdrawn_at: Time
    reason: Reason


class Answer(Document):
    """What a hospital says to a study; signed by the site under the purpose `answer`."""

    consortium: Sha256
    site: SiteName
    study_hash: Sha256
    parameters_sha256: Sha256
    number: int = Field(ge=1, le=9999, description="of this site's answers to this study; the highest counts.")
    decision: Decision
    reason: Reason | None
    person: Person = Field(description="who decided.")
    decided_at: Time


def utc_now() -> str:
    """Return the time as documents write it."""
    return iso_time(datetime.now(UTC))


def study_of(publication: Publication) -> Study:
    """Return the study in a publication, after comparing it with the hashes it is published under.

    Raises:
        StudyError: its text is not a study this version knows.
        SignatureError: the text is another study's, or the study names other initial parameters or none.
    """
    study = load_document(publication.study_yaml, Study, f"study {publication.study_hash[:12]}")
    if study.hash != publication.study_hash:
        raise SignatureError(
            f"The text published as study {publication.study_hash[:12]} is study {study.hash[:12]}: it was changed."
        )
    if study.model.initial_parameters_sha256 != publication.parameters_sha256:
        raise SignatureError(f"Study {study.hash[:12]} names other initial parameters than it is published with.")
    return study


def find_hash(prefix: str, hashes: Iterable[str]) -> str:
    """Return the one study hash that begins with these digits.

    Args:
        prefix: 8 to 64 hexadecimal digits, as a person types them.
        hashes: of the studies there are.

    Raises:
        UnknownNameError: too few digits, no study begins so, or several do.
    """
    known, digits = sorted(hashes), prefix.strip().lower()
    listed = ", ".join(one[:12] for one in known[:20])
    remedy = f"Write one of: {listed}." if known else "There is no study yet."
    shown = "".join(letter if letter.isprintable() else "?" for letter in prefix[:64])
    if not set(digits) <= set("0123456789abcdef") or not MIN_PREFIX_DIGITS <= len(digits) <= 64:
        what = f"'{shown}' is not the beginning of a study's hash: {MIN_PREFIX_DIGITS} or more hexadecimal digits."
        raise UnknownNameError(what, remedy)
    found = [one for one in known if one.startswith(digits)]
    if len(found) > 1:
        raise UnknownNameError(f"{len(found)} studies begin with {shown}.", "Write more digits of the hash.")
    if not found:
        raise UnknownNameError(f"There is no study {shown}.", remedy)
    return found[0]
