"""A study is signed, published to the hospitals and, if need be, taken back for good."""

import os
import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from echofed.protocol.arrays import sha256_of_file
from echofed.protocol.audit_log import open_audit_log
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import ParametersError, RunError, SignatureError, StudyInvalidError
from echofed.protocol.publication import Publication, Withdrawal, study_of, utc_now
from echofed.protocol.signing import Signed, digest, sign, verify
from echofed.protocol.state_folder import locked, read_limited
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_initial_parameters
from echofed.server.authority import load_signing_key, read_consortium
from echofed.server.blobs import PUBLISHED
from echofed.server.studies import (
    ANSWERS_FOLDER,
    CONTROL_FILE,
    PUBLICATION_FILE,
    STUDIES_FOLDER,
    WITHDRAWAL_FILE,
    Control,
    PublishedStudy,
    read_study,
    write_control,
    write_state,
)


def sign_study(study_path: Path, parameters_path: Path, signing_key: Ed25519PrivateKey, consortium: str) -> Signed:
    """Return a study's publication, signed; nothing is published by it.

    Args:
        study_path: the document, YAML; must name its initial parameters.
        parameters_path: their file.
        signing_key: the coordinator's.
        consortium: SHA-256 of its root certificate.

    Raises:
        StudyError: the document is not usable, or names no initial parameters.
        ParametersError: the file is not there, or another than the study names.
    """
    study = load_study(study_path)
    if study.model.initial_parameters_sha256 is None:
        what = f"{study_path.name} names no initial parameters."
        raise StudyInvalidError(what, f"Run: echofed study init {study_path}")
    read_initial_parameters(parameters_path, study)
    publication = Publication(
        consortium=consortium,
        study_hash=study.hash,
        study_yaml=read_limited(study_path).decode(),
        parameters_sha256=study.model.initial_parameters_sha256,
        parameters_bytes=parameters_path.stat().st_size,
        published_at=utc_now(),
    )
    return sign(signing_key, "publication", publication)


def publish_signed(folder: Path, signed: Signed, parameters_path: Path) -> PublishedStudy:
    """Make a signed study and its initial parameters available to all sites; safe to repeat, also after a crash.

    Args:
        folder: the coordinator's.
        signed: what `sign_study` returned.
        parameters_path: the initial parameters.

    Raises:
        SignatureError: it is not signed by this consortium's coordinator.
        ParametersError: the file is not the one the study is signed with.
        RunError: the study was taken back.
        TrustError: the folder cannot be used, or nothing can be logged.
        OSError: the disk is full or the folder cannot be written; nothing is published.
    """
    consortium = read_consortium(folder)
    publication = verify(signed, consortium.signing_key, "publication", Publication)
    study = study_of(publication)
    if publication.consortium != consortium.id:
        raise SignatureError("The study was signed for another consortium.")
    if not parameters_path.is_file() or sha256_of_file(parameters_path) != publication.parameters_sha256:
        raise ParametersError(f"{parameters_path} is not the file study {study.hash[:12]} is signed with.")
    target = folder / STUDIES_FOLDER / study.hash
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with locked(target.parent):
        if target.exists():
            if read_study(folder, study.hash).withdrawal:
                remedy = "Change the study, its title for instance: it is then another one."
                raise RunError(f"Study {study.hash[:12]} was taken back; it cannot be published again.", remedy)
        else:
            with open_audit_log(folder, owner=consortium.settings.name) as log:
                log.append(
                    "published",
                    study=study.hash,
                    title=study.title,
                    parameters=publication.parameters_sha256,
                    digest=digest(signed),
                )
            _make_folder(target, signed, publication, parameters_path)
        _keep_blob(folder, target / PARAMETERS_FILE, publication.parameters_sha256)
    return read_study(folder, study.hash)


def publish_study(
    folder: Path, study_path: Path, parameters_path: Path, signing_key: Ed25519PrivateKey | None = None
) -> PublishedStudy:
    """Sign a study and make it available to all sites.

    Args:
        folder: the coordinator's.
        study_path: the document, YAML; must name its initial parameters.
        parameters_path: their file.
        signing_key: the coordinator's; None: the one in the folder.

    Raises:
        EchoFedError: as `sign_study` and `publish_signed`; KeyFileError: the key cannot be used.
    """
    key = signing_key or load_signing_key(folder)
    signed = sign_study(study_path, parameters_path, key, read_consortium(folder).id)
    return publish_signed(folder, signed, parameters_path)


def withdraw_study(folder: Path, study_hash: str, reason: str, signing_key: Ed25519PrivateKey | None = None) -> Signed:
    """Take a study back for good: its run stops, and sites that hear of it answer no more; safe to repeat.

    Args:
        folder: the coordinator's.
        study_hash: of a published study.
        reason: told to the hospitals.
        signing_key: the coordinator's; None: the one in the folder.

    Raises:
        RunError: there is no such study, or the reason cannot be signed.
        TrustError: the folder or the key cannot be used, or nothing can be logged.
    """
    held, consortium = read_study(folder, study_hash), read_consortium(folder)
    if held.withdrawal is None:
        try:
            withdrawal = Withdrawal(
                consortium=consortium.id, study_hash=study_hash, withdrawn_at=utc_now(), reason=reason
            )
        except ValidationError as error:
            remedy = "Write it on one line, in printable letters, 1 to 2000."
            raise RunError("The reason cannot be signed as it is written; nothing was done.", remedy) from error
        signed = sign(signing_key or load_signing_key(folder), "withdrawn publication", withdrawal)
        with locked(held.folder.parent), open_audit_log(folder, owner=consortium.settings.name) as log:
            log.append("withdrawn publication", study=study_hash, reason=reason, digest=digest(signed))
            write_state(held.folder / WITHDRAWAL_FILE, signed)
    else:
        signed = held.withdrawal[1]
    # Also where an earlier call was cut short before it: the conductor follows the control alone.
    write_control(folder, study_hash, "stopped")
    return signed


def _make_folder(target: Path, signed: Signed, publication: Publication, parameters_path: Path) -> None:
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / ANSWERS_FOLDER).mkdir(parents=True, mode=0o700)
    staging.chmod(0o700)
    replace_file(staging / STUDY_FILE, publication.study_yaml.encode())
    _copy(parameters_path, staging / PARAMETERS_FILE)
    write_state(staging / CONTROL_FILE, Control())
    write_state(staging / PUBLICATION_FILE, signed)
    if sha256_of_file(staging / PARAMETERS_FILE) != publication.parameters_sha256:
        raise ParametersError(f"{parameters_path} was changed while it was copied.", "Publish again.")
    staging.replace(target)
    _sync(target.parent)


def _keep_blob(folder: Path, parameters: Path, name: str) -> None:
    blob = folder / PUBLISHED / name
    if blob.exists() and blob.stat().st_size == parameters.stat().st_size:
        return
    blob.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = blob.with_name(f"{name}.{os.getpid()}.part")
    _copy(parameters, part)
    part.replace(blob)
    _sync(blob.parent)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 2**20)
        writing.flush()
        os.fsync(writing.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
