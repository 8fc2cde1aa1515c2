"""Keeps a site's studies and the coordinator's knowledge of its answers up to date; the hospital alone approves."""

import logging
from pathlib import Path

from echofed.client.approvals import mark_sent, receive, unsent_answers
from echofed.client.held_studies import Member, fetch_parameters, held_studies
from echofed.client.link import Link
from echofed.protocol.audit_log import AuditLog
from echofed.protocol.errors import EchoFedError, TrustError

LOG = logging.getLogger("echofed.client")


def fetch_studies(
    state_folder: Path, member: Member, log: AuditLog, link: Link, deadline_seconds: float = 30.0
) -> list[EchoFedError]:
    """Fetch what the coordinator has published or taken back, and return why some of it was refused.

    Raises:
        LinkError: the coordinator cannot be reached.
    """
    received = receive(state_folder, link.get_studies(deadline_seconds=deadline_seconds), member=member, log=log)
    for held in held_studies(state_folder, member):
        if held.withdrawal is None:
            fetch_parameters(held, link.get_blob)
    return [error for _, error in received.refused]


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
