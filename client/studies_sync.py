"""Keeps a site's studies and the coordinator's knowledge of its answers up to date; the hospital alone approves."""

import logging
import shutil
from pathlib import Path

from echofed.client.approvals import mark_sent, receive, unsent_answers
from echofed.client.held_studies import HeldStudy, Member, fetch_parameters, held_studies
from echofed.client.link import Link
from echofed.client.policy import load_policy
from echofed.protocol.audit_log import AuditLog
from echofed.protocol.errors import EchoFedError, PolicyRefusalError, PrivacyParameterError, TooLargeError, TrustError

LOG = logging.getLogger("echofed.client")
SPARE_BYTES = 2**30
"""That stay free on the disk whatever the coordinator publishes."""
UNAPPROVED_BYTES = 2 * 2**30
"""For the parameters of all studies together that nobody here has approved; more if the policy lets one be larger."""
_MIB = 2**20
_REFUSED: set[tuple[str, str, str]] = set()
"""Whose parameters were not fetched, and why: it is asked for again and again, and logged once."""


def fetch_studies(
    state_folder: Path, member: Member, log: AuditLog, link: Link, deadline_seconds: float = 30.0
) -> list[EchoFedError]:
    """Fetch what the coordinator has published or taken back, and return why some of it was refused.

    Initial parameters are fetched of what the policy lets in and the disk has room for, approved studies first.

    Raises:
        LinkError: the coordinator cannot be reached.
    """
    received = receive(state_folder, link.get_studies(deadline_seconds=deadline_seconds), member=member, log=log)
    refused = [error for _, error in received.refused]
    try:
        limit = int(load_policy(state_folder).maximum_message_mb * _MIB)
    except PrivacyParameterError as error:  # a policy that cannot be read lets nothing in
        return [*refused, error]
    held = held_studies(state_folder, member)
    kept = sum(one.publication.parameters_bytes for one in held if one.has_parameters and not _was_approved(one))
    wanted = [one for one in held if one.withdrawal is None and not one.has_parameters]
    for one in sorted(wanted, key=lambda one: (one.state != "approved", one.state != "new")):
        try:
            _refuse_size(state_folder, one, limit, kept)
        except (PolicyRefusalError, TooLargeError) as error:
            refused.append(error)
            _log_once(state_folder, one, error, log)
            continue
        fetch_parameters(one, link.get_blob)
        kept += 0 if _was_approved(one) else one.publication.parameters_bytes
    return refused


def send_answers(state_folder: Path, link: Link) -> None:
    """Send the hospital's answers that the coordinator does not have yet.

    Raises:
        LinkError: the coordinator cannot be reached.
    """
    for path, signed in unsent_answers(state_folder):
        try:
            link.post_answer(signed)
        except TrustError as error:  # it is of an earlier enrolment, or older than what the site has said since
            LOG.warning("The coordinator does not take the answer %s: %s", path, error)
        mark_sent(path)


def _was_approved(held: HeldStudy) -> bool:
    return bool(held.answers) and held.answers[-1].decision == "approved"


def _refuse_size(state_folder: Path, held: HeldStudy, limit: int, kept: int) -> None:
    size = held.publication.parameters_bytes
    whose = f"The initial parameters of study {held.hash[:12]} ({size / _MIB:.1f} MiB)"
    if size > limit:
        raise PolicyRefusalError(f"{whose} are larger than maximum_message_mb allows: {limit / _MIB:g}.")
    if not _was_approved(held) and kept + size > max(UNAPPROVED_BYTES, limit):
        what = f"{whose} are one file too many of studies nobody here has approved."
        remedy = "Approve some, or remove initial.safetensors from the folders of those refused or taken back."
        raise TooLargeError(what, remedy)
    if shutil.disk_usage(state_folder).free < size + SPARE_BYTES:
        raise TooLargeError(f"{whose} do not fit: the hospital's disk is nearly full.", "Free some disk space.")


def _log_once(state_folder: Path, held: HeldStudy, error: EchoFedError, log: AuditLog) -> None:
    known = (str(state_folder.absolute()), held.hash, error.code)
    if known not in _REFUSED:
        log.append("refused request", study=held.hash, code=error.code, what=error.what)
        _REFUSED.add(known)
