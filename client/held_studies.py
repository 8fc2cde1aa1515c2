"""The studies a hospital holds, each in a folder of its own; nothing is believed that is not signed.

    studies/HASH/study.yaml           the text the coordinator published, byte for byte
                 initial.safetensors  the parameters it starts from; fetched on their own
                 publication.json     signed by the coordinator
                 withdrawal.json      signed by the coordinator, if it took the study back
                 answers/0001.json    signed by the site, numbered, never overwritten; the last one counts

A study's folder appears whole, by one renaming.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.document import canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import EchoFedError, NotApprovedError, SignatureError, StateFolderError
from echofed.protocol.publication import Answer, Publication, Withdrawal, study_of
from echofed.protocol.signing import MAX_SIGNED_BYTES, Purpose, Signed, key_id, read_signed, verify
from echofed.protocol.state_folder import read_limited
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE

STUDIES_FOLDER = "studies"
PUBLICATION_FILE = "publication.json"
WITHDRAWAL_FILE = "withdrawal.json"
ANSWERS_FOLDER = "answers"
MAX_STUDIES = 1000
"""That a hospital keeps, answered or not."""

State = Literal["new", "approved", "refused", "withdrawn", "withdrawn by the coordinator"]
_HASH = re.compile(r"[0-9a-f]{64}")
_ANSWER = re.compile(r"[0-9]{4}\.json")
_D = TypeVar("_D", Publication, Withdrawal, Answer)


class Member(Protocol):
    """Who a hospital is in its consortium, as far as its answers need it; `client.identity.Identity` is one."""

    @property
    def site(self) -> str:
        """The site's name."""

    @property
    def consortium(self) -> str:
        """SHA-256 of the consortium's root certificate."""

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The site's own."""

    @property
    def coordinator_key(self) -> Ed25519PublicKey:
        """What the coordinator signs with."""


@dataclass(frozen=True)
class HeldStudy:
    """A study the coordinator has published, and what the hospital has said to it.

    Args:
        hash: of the study.
        study: the document.
        folder: where it lies.
        state: new until the hospital has answered.
        publication: as the coordinator signed it.
        withdrawal: as the coordinator signed it, if it did.
        answers: the hospital's, in order.
    """

    hash: str
    study: Study
    folder: Path
    state: State
    publication: Publication
    withdrawal: Withdrawal | None
    answers: tuple[Answer, ...]

    @property
    def has_parameters(self) -> bool:
        """Whether the initial parameters are here; their hash is not checked."""
        return (self.folder / PARAMETERS_FILE).is_file()

    def check_parameters(self) -> None:
        """Compare the initial parameters with the hash they are published under; all of the file is read.

        Raises:
            NotApprovedError: they are not here, or others.
        """
        path = self.folder / PARAMETERS_FILE
        if not path.is_file():
            remedy = "Run `echofed site show` while the coordinator can be reached: it fetches them."
            raise NotApprovedError(f"The initial parameters of study {self.hash[:12]} are not here yet.", remedy)
        if sha256_of_file(path) != self.publication.parameters_sha256:
            raise NotApprovedError(
                f"{path} is not the file that study {self.hash[:12]} was published with.",
                "Remove it; `echofed site show` fetches it again.",
            )


def held_studies(state_folder: Path, member: Member) -> list[HeldStudy]:
    """Return the studies that can be trusted, oldest publication first; `damaged_studies` names the others."""
    held = [found for _, found in _all(state_folder, member) if isinstance(found, HeldStudy)]
    return sorted(held, key=lambda one: (one.publication.published_at, one.hash))


def damaged_studies(state_folder: Path, member: Member) -> dict[str, EchoFedError]:
    """Return, by hash, what is wrong with each study that cannot be trusted."""
    return {study: found for study, found in _all(state_folder, member) if isinstance(found, EchoFedError)}


def study_hashes(state_folder: Path) -> list[str]:
    """Return the hashes of all studies that are held, sound or not."""
    folder = state_folder / STUDIES_FOLDER
    return sorted(path.name for path in folder.iterdir() if _HASH.fullmatch(path.name)) if folder.is_dir() else []


def study_folder(state_folder: Path, study_hash: str) -> Path:
    """Return where a study is, or would be.

    Raises:
        NotApprovedError: it is not the hash of a study.
    """
    if not _HASH.fullmatch(study_hash):
        raise NotApprovedError("What was named is not the hash of a study.")
    return state_folder / STUDIES_FOLDER / study_hash


def read_held_study(state_folder: Path, study_hash: str, member: Member) -> HeldStudy:
    """Return one study after checking every signature, and that the text on disk is the one that was published.

    Raises:
        NotApprovedError: the hospital holds no such study.
        SignatureError: something in it is not signed by whom it should be, or not for this study.
        StateFolderError: a file cannot be read.
        StudyError: a newer EchoFed wrote the study.
    """
    folder = study_folder(state_folder, study_hash)
    if not folder.is_dir():
        raise NotApprovedError(f"The hospital holds no study {study_hash[:12]}.", "Nothing was run.")
    publication = _read(folder / PUBLICATION_FILE, member.coordinator_key, "publication", Publication)
    _check_place(publication, study_hash, member)
    study = study_of(publication)
    if _bytes(folder / STUDY_FILE) != publication.study_yaml.encode():
        raise SignatureError(f"{folder / STUDY_FILE} is not the text that was published.", _FETCH_AGAIN)
    withdrawal = None
    if (folder / WITHDRAWAL_FILE).exists():
        path = folder / WITHDRAWAL_FILE
        withdrawal = _read(path, member.coordinator_key, "withdrawn publication", Withdrawal)
        _check_place(withdrawal, study_hash, member)
    # What the site said under an earlier enrolment, with another key, does not count: it must decide anew.
    given = [_answer(path, study_hash, member) for path in answer_files(folder)]
    answers = tuple(answer for answer in given if answer is not None) if given and given[-1] else ()
    last: State = answers[-1].decision if answers else "new"
    state: State = "withdrawn by the coordinator" if withdrawal else last
    return HeldStudy(study_hash, study, folder, state, publication, withdrawal, answers)


def approved_studies(state_folder: Path) -> list[Study]:
    """Return the studies this hospital has approved and nobody has taken back: for estimates, without any key.

    No signature is checked; what cannot be read, or not by this version, is left out: it cannot run either.
    """
    found = []
    for study_hash in study_hashes(state_folder):
        folder = state_folder / STUDIES_FOLDER / study_hash
        files = answer_files(folder)
        if not files or (folder / WITHDRAWAL_FILE).exists():
            continue
        with contextlib.suppress(EchoFedError, ValidationError):
            answer = Answer.model_validate_json(read_signed(_bytes(files[-1])).payload)
            if answer.decision == "approved":
                found.append(load_study(folder / STUDY_FILE))
    return found


def answer_files(folder: Path) -> list[Path]:
    """Return the hospital's answers to the study in a folder, in order."""
    answers = folder / ANSWERS_FOLDER
    return sorted(path for path in answers.iterdir() if _ANSWER.fullmatch(path.name)) if answers.is_dir() else []


def check_publication(signed: Signed, member: Member) -> tuple[Publication, Study]:
    """Return what the coordinator published, with the study in it.

    Raises:
        SignatureError: it is not signed by the coordinator, of another consortium, or does not hold the study it names.
        StudyError: its text is not a study this version knows.
    """
    publication = verify(signed, member.coordinator_key, "publication", Publication)
    _check_place(publication, publication.study_hash, member)
    return publication, study_of(publication)


def check_withdrawal(signed: Signed, member: Member) -> Withdrawal:
    """Return what the coordinator took back.

    Raises:
        SignatureError: it is not signed by the coordinator, or of another consortium.
    """
    withdrawal = verify(signed, member.coordinator_key, "withdrawn publication", Withdrawal)
    _check_place(withdrawal, withdrawal.study_hash, member)
    return withdrawal


def keep_publication(state_folder: Path, signed: Signed, publication: Publication) -> Path:
    """Write a study's folder, or mend the files of one that is there; return it. The studies' lock must be held."""
    folder = study_folder(state_folder, publication.study_hash)
    staging = folder.with_name(f".{publication.study_hash}.part")
    shutil.rmtree(staging, ignore_errors=True)
    if not folder.exists():
        (staging / ANSWERS_FOLDER).mkdir(parents=True, mode=0o700)
        staging.chmod(0o700)
    target = folder if folder.exists() else staging
    replace_file(target / STUDY_FILE, publication.study_yaml.encode())
    write_signed(target / PUBLICATION_FILE, signed)
    if target is staging:
        staging.replace(folder)
    return folder


def write_signed(path: Path, signed: Signed) -> None:
    """Write a signed document; on disk on return."""
    replace_file(path, canonical_json(signed.model_dump(mode="json")) + b"\n")


def fetch_parameters(held: HeldStudy, get_blob: Callable[[str, Path, int], object]) -> None:
    """Fetch a study's initial parameters if they are not here.

    Args:
        held: the study.
        get_blob: writes the file of a SHA-256 to a path, of so many bytes at most.

    Raises:
        SignatureError: what came is another file; it is not kept.
    """
    if held.has_parameters:
        return
    path, publication = held.folder / PARAMETERS_FILE, held.publication
    get_blob(publication.parameters_sha256, path, publication.parameters_bytes)
    if sha256_of_file(path) != publication.parameters_sha256:
        path.unlink()
        raise SignatureError(f"What came is not the initial parameters of study {held.hash[:12]}.")


_FETCH_AGAIN = "`echofed site studies` fetches it again."


def _all(state_folder: Path, member: Member) -> Iterator[tuple[str, HeldStudy | EchoFedError]]:
    for study_hash in study_hashes(state_folder):
        try:
            yield study_hash, read_held_study(state_folder, study_hash, member)
        except EchoFedError as error:
            yield study_hash, error


def _answer(path: Path, study_hash: str, member: Member) -> Answer | None:
    key = member.signing_key.public_key()
    signed = read_signed(_bytes(path))
    if signed.signer != key_id(key):
        return None
    answer = verify(signed, key, "answer", Answer)
    _check_place(answer, study_hash, member)
    if (answer.site, f"{answer.number:04d}.json") != (member.site, path.name):
        raise SignatureError(f"{path} is the answer of another site, or another of its answers.", "Put back the file.")
    return answer


def _check_place(document: Publication | Withdrawal | Answer, study_hash: str, member: Member) -> None:
    if document.consortium != member.consortium:
        raise SignatureError("The document is of another consortium.", "Do not use it.")
    if document.study_hash != study_hash:
        raise SignatureError("The document is for another study than the folder it lies in.", _FETCH_AGAIN)


def _read(path: Path, key: Ed25519PublicKey, purpose: Purpose, kind: type[_D]) -> _D:
    return verify(read_signed(_bytes(path)), key, purpose, kind)


def _bytes(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_SIGNED_BYTES)
    except OSError as error:
        raise StateFolderError(f"{path} cannot be read: {error.strerror}.", _FETCH_AGAIN) from error
