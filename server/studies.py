"""The coordinator's studies: what it has published, what the hospitals answered, and what is wanted of each run.

    studies/HASH/study.yaml, initial.safetensors   what the hospitals approve
                 publication.json, withdrawal.json signed by the coordinator
                 answers/SITE.json                 each hospital's newest answer, signed by it
                 control.json                      what is wanted of the run

A study's folder appears whole, by one renaming (`publishing.py`); every file in it is replaced in one step.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.document import Document, canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import (
    CertificateError,
    EchoFedError,
    ReplayError,
    RunError,
    SignatureError,
    StateFolderError,
)
from echofed.protocol.publication import Answer, Publication, Withdrawal, study_of
from echofed.protocol.signing import MAX_SIGNED_BYTES, Purpose, Signed, digest, read_signed, verify
from echofed.protocol.state_folder import locked, read_limited
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import STUDY_FILE
from echofed.server.authority import read_consortium
from echofed.server.members import is_revoked, site_signing_key

STUDIES_FOLDER = "studies"
PUBLICATION_FILE = "publication.json"
WITHDRAWAL_FILE = "withdrawal.json"
CONTROL_FILE = "control.json"
ANSWERS_FOLDER = "answers"

WantedState = Literal["ready", "running", "paused", "stopped", "finished"]
D = TypeVar("D", Publication, Withdrawal)
_HASH = re.compile(r"[0-9a-f]{64}")
_Stamp = tuple[int, int, int]
_CHECKED: dict[Path, tuple[list[_Stamp], Answer]] = {}
"""Answers this process has read and checked, with what their files were like then."""


class Control(Document):
    """What the coordinator wants of a study's run."""

    state: WantedState = Field(
        default="ready", description="ready: not started yet; stopped: ended for good; finished: by the conductor."
    )
    rounds: int | None = Field(default=None, ge=1, le=10_000, description="the last round to run; null: all of them.")


@dataclass(frozen=True)
class PublishedStudy:
    """A study the coordinator has published.

    Args:
        hash: of the study.
        study: the document.
        folder: where it lies.
        publication: what was signed.
        signed: with its signature.
        withdrawal: what was signed when it was taken back, with its signature; None: it was not.
    """

    hash: str
    study: Study
    folder: Path
    publication: Publication
    signed: Signed
    withdrawal: tuple[Withdrawal, Signed] | None


def study_folder(folder: Path, study_hash: str) -> Path:
    """Return where a published study is.

    Raises:
        RunError: there is no such study.
    """
    place = folder / STUDIES_FOLDER / study_hash
    if not _HASH.fullmatch(study_hash) or not place.is_dir():
        raise RunError("There is no such study.", "`echofed study status` lists those there are.")
    return place


def all_studies(folder: Path) -> list[str]:
    """Return the hashes of all studies that were ever published."""
    place = folder / STUDIES_FOLDER
    return sorted(path.name for path in place.iterdir() if _HASH.fullmatch(path.name)) if place.is_dir() else []


def published_studies(folder: Path) -> list[str]:
    """Return the hashes of the studies that are published and not taken back."""
    place = folder / STUDIES_FOLDER
    return [study for study in all_studies(folder) if not (place / study / WITHDRAWAL_FILE).exists()]


def published(folder: Path) -> list[Signed]:
    """Return what every site may see: of each study its publication or, once it is taken back, the withdrawal.

    A study whose file is damaged is left out; it holds up no other.
    """
    return published_and_damaged(folder)[0]


def published_and_damaged(folder: Path) -> tuple[list[Signed], dict[str, EchoFedError]]:
    """Return what `published` does, and what is wrong with each study that is left out."""
    signed: list[Signed] = []
    wrong: dict[str, EchoFedError] = {}
    key = read_consortium(folder).signing_key
    for study in all_studies(folder):
        place = folder / STUDIES_FOLDER / study
        try:
            if (place / WITHDRAWAL_FILE).exists():
                signed.append(_verified(place / WITHDRAWAL_FILE, key, "withdrawn publication", Withdrawal)[1])
            else:
                signed.append(_verified(place / PUBLICATION_FILE, key, "publication", Publication)[1])
        except (SignatureError, StateFolderError) as error:
            wrong[study] = error
    return signed, wrong


def read_study(folder: Path, study_hash: str) -> PublishedStudy:
    """Return a published study after checking its signatures.

    Raises:
        RunError: there is no such study.
        SignatureError: what is in its folder is not what the coordinator signed.
        StateFolderError: a file cannot be read.
    """
    place, key = study_folder(folder, study_hash), read_consortium(folder).signing_key
    publication, signed = _verified(place / PUBLICATION_FILE, key, "publication", Publication)
    study = study_of(publication)
    if study.hash != study_hash or _bytes(place / STUDY_FILE) != publication.study_yaml.encode():
        raise SignatureError(f"{place / STUDY_FILE} is not the study that was published.", "Restore the folder.")
    withdrawal = None
    if (place / WITHDRAWAL_FILE).exists():
        withdrawal = _verified(place / WITHDRAWAL_FILE, key, "withdrawn publication", Withdrawal)
    return PublishedStudy(study_hash, study, place, publication, signed, withdrawal)


def receive_answer(folder: Path, site: str, signed: Signed) -> Answer:
    """Keep a hospital's answer if it is its newest, after logging it.

    An approval older than what the site has said since is refused, so that nobody can bring it back; a refusal or a
    withdrawal is always heeded.

    Args:
        folder: the coordinator's.
        site: whose certificate it came with.
        signed: the answer.

    Raises:
        SignatureError: the site did not sign it, or for another consortium or other parameters.
        CertificateError: the site is not a member, or is revoked.
        RunError: there is no such study.
        ReplayError: it is an old approval.
        TrustError: nothing can be logged or written.
    """
    answer = verify(signed, site_signing_key(folder, site), "answer", Answer)
    consortium, held = read_consortium(folder), read_study(folder, answer.study_hash)
    if (answer.site, answer.consortium) != (site, consortium.id):
        raise SignatureError("The answer is of another site, or for another consortium.")
    if answer.parameters_sha256 != held.publication.parameters_sha256:
        raise SignatureError("The answer is for other initial parameters than the study is published with.")
    path = held.folder / ANSWERS_FOLDER / f"{site}.json"
    with locked(held.folder.parent):
        last = answers(folder, answer.study_hash).get(site)
        if last == answer:
            return answer
        if last is not None and answer.decision == "approved" and answer.number <= last.number:
            raise ReplayError(f"{site} has answered since: its answer {answer.number} counts no more.")
        with open_audit_log(folder, owner=consortium.settings.name) as log:
            log.append(
                "answer received",
                study=answer.study_hash,
                site=site,
                decision=answer.decision,
                number=answer.number,
                person=answer.person,
                reason=answer.reason,
                digest=digest(signed),
            )
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_state(path, signed)
    return answer


def answers(folder: Path, study_hash: str) -> dict[str, Answer]:
    """Return each member's newest answer to a study.

    An answer is checked when it is first read, and again once its file or the site's membership has changed. One that its site
    did not sign with the key it has now is as good as none: of a revoked site, of one enrolled anew, or changed on disk.

    Raises:
        RunError: there is no such study.
    """
    place = study_folder(folder, study_hash) / ANSWERS_FOLDER
    found = {}
    for path in sorted(place.glob("*.json")) if place.is_dir() else []:
        if is_revoked(folder, path.stem):
            continue
        with contextlib.suppress(SignatureError, CertificateError):
            found[path.stem] = _answer(folder, path, path.stem, study_hash)
    return found


def read_control(folder: Path, study_hash: str) -> Control:
    """Return what is wanted of a study's run.

    Raises:
        RunError: there is no such study.
        StateFolderError: the file is damaged or cannot be read.
    """
    path = study_folder(folder, study_hash) / CONTROL_FILE
    try:
        return Control.model_validate_json(_bytes(path)) if path.exists() else Control()
    except ValidationError as error:
        what = f"{path} is damaged; it says what is wanted of the run."
        raise StateFolderError(what, "Remove it, and say again what is wanted.") from error


def write_control(
    folder: Path, study_hash: str, state: WantedState | None = None, *, rounds: int | None = None
) -> Control:
    """Change what is wanted of a study's run, in one step and logged, and return it; the conductor follows.

    Args:
        folder: the coordinator's.
        study_hash: of a published study.
        state: None: as it is.
        rounds: the last round to run, at most the study's; None: as it is.

    Raises:
        RunError: there is no such study, it was taken back or stopped for good, one that does not run is to be paused, or the
            rounds are more than the hospitals were asked for.
        TrustError: the file is damaged, or nothing can be logged or written.
    """
    place = study_folder(folder, study_hash)
    with locked(place.parent):
        last = read_control(folder, study_hash)
        wanted = Control(state=state or last.state, rounds=rounds or last.rounds)
        if wanted == last:
            return last
        _check_change(place, last, wanted)
        with open_audit_log(folder, owner=read_consortium(folder).settings.name) as log:
            log.append("wanted state", study=study_hash, state=wanted.state, rounds=wanted.rounds)
        write_state(place / CONTROL_FILE, wanted)
    return wanted


def write_state(path: Path, document: Document) -> None:
    """Write a document; on disk on return."""
    replace_file(path, canonical_json(document.model_dump(mode="json")) + b"\n")


def _check_change(place: Path, last: Control, wanted: Control) -> None:
    study = place.name[:12]
    if (place / WITHDRAWAL_FILE).exists() and wanted.state not in ("stopped", "finished"):
        raise RunError(f"Study {study} was taken back.", "Publish another study.")
    if last.state == "stopped":
        raise RunError(f"Study {study} was stopped for good.", "Publish another study.")
    if wanted.state == "paused" and last.state not in ("running", "paused"):
        raise RunError(f"Study {study} does not run.", "Start it: `echofed study run`.")
    approved = load_study(place / STUDY_FILE).federation.rounds
    if (wanted.rounds or 1) > approved:
        what = f"The hospitals were asked for {approved} rounds, not for {wanted.rounds}."
        remedy = f"Write {approved} or less; for more, publish a study that starts from this one's model."
        raise RunError(what, remedy)


def _answer(folder: Path, path: Path, site: str, study_hash: str) -> Answer:
    stamps = [_stamp(path), _stamp(folder / "members" / f"{site}.json")]
    known = _CHECKED.get(path)
    if known and known[0] == stamps:
        return known[1]
    answer = verify(read_signed(_bytes(path)), site_signing_key(folder, site), "answer", Answer)
    if (answer.site, answer.study_hash) != (site, study_hash):
        raise SignatureError(f"{path} is of another site, or an answer to another study.", "Restore the folder.")
    _CHECKED[path] = (stamps, answer)
    return answer


def _verified(path: Path, key: Ed25519PublicKey, purpose: Purpose, kind: type[D]) -> tuple[D, Signed]:
    """Return what the coordinator signed of the study in whose folder it lies."""
    try:
        signed = read_signed(_bytes(path))
        document = verify(signed, key, purpose, kind)
        if document.study_hash != path.parent.name:
            raise SignatureError("It is for another study.")
    except SignatureError as error:
        remedy = "Restore it from a copy, then publish the study again; until then no hospital sees the study."
        raise SignatureError(f"{path} is not what was signed there. {error.what}", remedy) from error
    return document, signed


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _bytes(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_SIGNED_BYTES)
    except OSError as error:
        raise StateFolderError(f"{path} cannot be read: {error.strerror}.") from error
