"""What a hospital says to studies: each answer by a named person, signed by the site, kept and logged.

An answer is in the audit log before it is in the study's folder, so nothing takes effect unlogged; a crash in between leaves
an entry of an answer that was not given, and the person who gave it without an acknowledgement.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from echofed.client.held_studies import (
    ANSWERS_FOLDER,
    MAX_STUDIES,
    PUBLICATION_FILE,
    STUDIES_FOLDER,
    WITHDRAWAL_FILE,
    HeldStudy,
    Member,
    answer_files,
    check_publication,
    check_withdrawal,
    keep_publication,
    read_held_study,
    study_folder,
    study_hashes,
    write_signed,
)
from echofed.client.policy import load_policy
from echofed.client.policy_check import refuse_by_policy
from echofed.protocol.audit_log import AuditLog
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import EchoFedError, NotApprovedError, SignatureError, StateFolderError, StudyError
from echofed.protocol.publication import Answer, Decision, utc_now
from echofed.protocol.signing import MAX_SIGNED_BYTES, Signed, digest, key_id, read_signed, sign
from echofed.protocol.state_folder import locked, read_limited
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE

_Stamp = tuple[object, ...]
_CHECKED: dict[tuple[str, str], _Stamp] = {}
"""Approved studies whose files this process has read and checked, as they were then."""
_REFUSED: set[str] = set()
"""Digests of what was refused: a coordinator is asked again and again, its bad study is logged once."""


@dataclass(frozen=True)
class Received:
    """What came of a list of publications; hashes of studies.

    Args:
        new: not held before.
        withdrawn: taken back by the coordinator since.
        refused: what could not be believed, with the reason.
    """

    new: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    refused: list[tuple[str, EchoFedError]] = field(default_factory=list)


def receive(state_folder: Path, documents: Sequence[Signed], *, member: Member, log: AuditLog) -> Received:
    """Keep what the coordinator has published or withdrawn, each in its folder; nothing is approved by it.

    A study that is held already stays as it is; where its files were damaged they are written again. A study published again
    with another text is refused. One bad document does not keep the others away.

    Args:
        state_folder: the site's.
        documents: as the coordinator's server lists them.
        member: the site in its consortium.
        log: the site's.

    Raises:
        AuditLogError: the log cannot be written.
        StateFolderError: the folder cannot be written.
    """
    received = Received()
    with _studies_locked(state_folder):
        for signed in documents:
            try:
                if signed.purpose == "withdrawn publication":
                    _receive_withdrawal(state_folder, signed, member, log, received)
                else:
                    _receive_publication(state_folder, signed, member, log, received)
            except (SignatureError, NotApprovedError, StudyError) as error:
                _note_refused(signed, error, log, received)
    return received


def approve(
    state_folder: Path, study_hash: str, person: str, reason: str | None = None, *, member: Member, log: AuditLog
) -> Signed:
    """Approve a study, with exactly its initial parameters; also again, after it was refused or withdrawn.

    Args:
        state_folder: the site's.
        study_hash: of the study, 64 hexadecimal digits.
        person: who decides, by name.
        reason: if there is something to say.
        member: the site in its consortium.
        log: the site's.

    Returns:
        The answer, signed and kept; it is to be sent to the coordinator.

    Raises:
        NotApprovedError: the hospital holds no such study or not its parameters, the coordinator took it back, or the person
            is not named.
        PolicyRefusalError: the hospital's policy does not allow it.
        StudyError: this version cannot run it.
        TrustError: what is held cannot be trusted, or cannot be written.
    """
    with _studies_locked(state_folder):
        held = read_held_study(state_folder, study_hash, member)
        if held.withdrawal is not None:
            raise NotApprovedError(
                f"The coordinator took study {study_hash[:12]} back on {held.withdrawal.withdrawn_at}: "
                f"{held.withdrawal.reason}",
                "It cannot be approved any more.",
            )
        study = load_study(held.folder / STUDY_FILE)
        refuse_by_policy(load_policy(state_folder), study, None, held.publication.parameters_bytes)
        held.check_parameters()
        return _give(held, "approved", person, reason, member, log)


def refuse(state_folder: Path, study_hash: str, person: str, reason: str, *, member: Member, log: AuditLog) -> Signed:
    """Refuse a study; arguments as for `approve`, the reason is sent to the coordinator.

    Raises:
        NotApprovedError: the hospital holds no such study, has approved it, or the person is not named.
        TrustError: what is held cannot be trusted, or cannot be written.
    """
    with _studies_locked(state_folder):
        held = read_held_study(state_folder, study_hash, member)
        if held.answers and held.answers[-1].decision == "approved":
            remedy = "Withdraw from it: `echofed site withdraw`."
            raise NotApprovedError(f"Study {study_hash[:12]} is approved.", remedy)
        return _give(held, "refused", person, reason, member, log)


def withdraw(
    state_folder: Path, study_hash: str, person: str, reason: str | None = None, *, member: Member, log: AuditLog
) -> Signed:
    """Withdraw from an approved study, at any time: from its return on, nothing more is computed for it.

    Arguments as for `approve`.

    Raises:
        NotApprovedError: the hospital holds no such study, has not approved it, or the person is not named.
        TrustError: what is held cannot be trusted, or cannot be written.
    """
    with _studies_locked(state_folder):
        held = read_held_study(state_folder, study_hash, member)
        if not held.answers or held.answers[-1].decision != "approved":
            raise NotApprovedError(f"Study {study_hash[:12]} is not approved.", "There is nothing to withdraw from.")
        return _give(held, "withdrawn", person, reason, member, log)


def approved_folder(state_folder: Path, study_hash: str, member: Member) -> Path:
    """Return the folder of a study that may run.

    Guarantee: the study's text and its initial parameters are, byte for byte, what the coordinator signed and this site
    approved, and neither has taken it back. All is read the first time a process asks, and again once a file has changed; a
    withdrawal counts from the moment it is on disk. What the policy says is another question (`refuse_by_policy`).

    Args:
        state_folder: the site's.
        study_hash: of the study.
        member: the site in its consortium.

    Raises:
        NotApprovedError: it is not held, not approved, taken back, or its parameters are others.
        TrustError: a signature does not fit, or a file cannot be read.
        StudyError: a newer EchoFed wrote the study.
    """
    folder = study_folder(state_folder, study_hash)
    stamp = _stamp(folder, member)
    known = (str(folder.absolute()), study_hash)
    if _CHECKED.get(known) == stamp:
        return folder
    held = read_held_study(state_folder, study_hash, member)
    if held.state != "approved":
        said = {"new": "has not been approved", "refused": "was refused"}.get(held.state, f"was {held.state}")
        raise NotApprovedError(f"Study {study_hash[:12]} {said} at {member.site}.")
    if held.answers[-1].parameters_sha256 != held.publication.parameters_sha256:
        raise NotApprovedError(f"Study {study_hash[:12]} was approved with other initial parameters.")
    held.check_parameters()
    _CHECKED[known] = stamp
    return folder


def unsent_answers(state_folder: Path) -> list[tuple[Path, Signed]]:
    """Return the last answer to each study that the coordinator has not acknowledged, with its file for `mark_sent`."""
    unsent = []
    folder = state_folder / STUDIES_FOLDER
    for study in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (files := answer_files(study)) and not files[-1].with_suffix(".sent").exists():
            with contextlib.suppress(SignatureError, OSError):
                unsent.append((files[-1], read_signed(read_limited(files[-1], MAX_SIGNED_BYTES))))
    return unsent


def mark_sent(path: Path) -> None:
    """Note that the coordinator has an answer."""
    replace_file(path.with_suffix(".sent"), b"")


def _receive_publication(state_folder: Path, signed: Signed, member: Member, log: AuditLog, received: Received) -> None:
    publication, _ = check_publication(signed, member)
    folder = study_folder(state_folder, publication.study_hash)
    if folder.exists():
        try:
            held = read_held_study(state_folder, publication.study_hash, member).publication
        except (SignatureError, StateFolderError):
            keep_publication(state_folder, signed, publication)  # damaged here: written again
            return
        if held.study_yaml != publication.study_yaml:
            what = f"Study {publication.study_hash[:12]} was published again with another text."
            raise SignatureError(what, "The first one stays; ask the coordinator why.")
        return
    if len(study_hashes(state_folder)) >= MAX_STUDIES:
        raise NotApprovedError(f"The hospital holds {MAX_STUDIES} studies already.", "Remove old ones from its folder.")
    log.append(
        "study received",
        study=publication.study_hash,
        parameters=publication.parameters_sha256,
        published_at=publication.published_at,
        digest=digest(signed),
    )
    keep_publication(state_folder, signed, publication)
    received.new.append(publication.study_hash)


def _receive_withdrawal(state_folder: Path, signed: Signed, member: Member, log: AuditLog, received: Received) -> None:
    withdrawal = check_withdrawal(signed, member)
    folder = study_folder(state_folder, withdrawal.study_hash)
    if not folder.exists() or (folder / WITHDRAWAL_FILE).exists():
        return
    log.append(
        "withdrawn publication",
        study=withdrawal.study_hash,
        reason=withdrawal.reason,
        withdrawn_at=withdrawal.withdrawn_at,
        digest=digest(signed),
    )
    write_signed(folder / WITHDRAWAL_FILE, signed)
    received.withdrawn.append(withdrawal.study_hash)


def _note_refused(signed: Signed, error: EchoFedError, log: AuditLog, received: Received) -> None:
    what = digest(signed)
    received.refused.append((what, error))
    if what not in _REFUSED:
        log.append("refused request", purpose=signed.purpose, digest=what, code=error.code, what=error.what)
        _REFUSED.add(what)


def _give(
    held: HeldStudy, decision: Decision, person: str, reason: str | None, member: Member, log: AuditLog
) -> Signed:
    files = answer_files(held.folder)
    number = int(files[-1].stem) + 1 if files else 1
    try:
        answer = Answer(
            consortium=member.consortium,
            site=member.site,
            study_hash=held.hash,
            parameters_sha256=held.publication.parameters_sha256,
            number=number,
            decision=decision,
            reason=reason,
            person=person.strip(" "),
            decided_at=utc_now(),
        )
    except ValidationError as error:
        part = error.errors()[0]["loc"][0]
        remedy = 'Write it on one line, in printable letters, as in --by "Dr A. Martin": 2 to 200, a reason up to 2000.'
        raise NotApprovedError(
            f"The {part} cannot be signed as it is written; nothing was answered.", remedy
        ) from error
    signed = sign(member.signing_key, "answer", answer)
    log.append(
        decision,
        study=held.hash,
        title=held.study.title,
        parameters=answer.parameters_sha256,
        number=number,
        person=answer.person,
        reason=reason,
        digest=digest(signed),
    )
    answers = held.folder / ANSWERS_FOLDER
    answers.mkdir(mode=0o700, exist_ok=True)
    write_signed(answers / f"{number:04d}.json", signed)
    return signed


def _stamp(folder: Path, member: Member) -> _Stamp:
    """Return what changes when a file of the study does, an answer comes, or the keys are others."""
    last = answer_files(folder)[-1:]
    files = [folder / name for name in (STUDY_FILE, PARAMETERS_FILE, PUBLICATION_FILE, WITHDRAWAL_FILE)] + last
    keys = (member.consortium, member.site, key_id(member.coordinator_key), key_id(member.signing_key.public_key()))
    return *keys, *(_file_stamp(path) for path in files), *(path.name for path in last)


def _file_stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def _studies_locked(state_folder: Path) -> Iterator[None]:
    """Hold the only right to change the studies, and say what to do where the disk does not let us."""
    folder = state_folder / STUDIES_FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with locked(folder):
            yield
    except OSError as error:
        remedy = "Free some disk space and check the permissions of the state folder."
        raise StateFolderError(f"The studies in {folder} cannot be changed: {error.strerror}.", remedy) from error
