"""A study on one page for the hospital that is asked to approve it: with its own exams, its own budget and its own policy."""

import math
import textwrap
from pathlib import Path

from echofed.client.held_studies import HeldStudy
from echofed.client.ledger import read_ledger
from echofed.client.policy import FILE_NAME, SitePolicy, load_policy
from echofed.client.policy_check import violations
from echofed.client.registry import count_patients, open_registry
from echofed.client.site import open_site
from echofed.client.study_cost import study_cost_lines
from echofed.protocol.errors import DataError, PrivacyError
from echofed.protocol.study import Study
from echofed.protocol.study_summary import summary

_WIDTH = 96
_MIB = 2**20


def study_page(state_folder: Path, held: HeldStudy) -> str:
    """Return the page; the site's data are counted on the spot, nothing is decoded and nothing is sent.

    Args:
        state_folder: the site's.
        held: the study.

    Raises:
        PrivacyParameterError: the site's policy is not sound.
    """
    policy = load_policy(state_folder)
    sections = (
        ("On which of our exams (counted here just now)", _exams(state_folder, held.study)),
        ("What leaves our hospital, and when", _leaves(held, policy)),
        ("What it costs our patients", _cost(state_folder, held.study, policy)),
        (f"What our policy says ({FILE_NAME})", _policy(held, policy)),
        ("Where it stands", _standing(held)),
    )
    blocks = [summary(held.study)]
    for heading, lines in sections:
        blocks.append("\n".join([heading, *map(_filled, lines)]))
    return "\n\n".join(blocks)


def _exams(state_folder: Path, study: Study) -> list[str]:
    try:
        report = open_site(state_folder).check(study)
    except DataError as error:
        return [f"{error.what} {error.remedy}"]
    return [*report.text().split("\n")[1:], "These counts stay here."]


def _leaves(held: HeldStudy, policy: SitePolicy) -> list[str]:
    study, size = held.study, _size(held.publication.parameters_bytes)
    rounds = study.federation.rounds
    hours = "whenever the coordinator asks" if policy.hours is None else f"at {policy.hours}, our time"
    lines = [
        f"- {rounds} times, {hours}: one update of at most {size}, signed by us and encrypted on its way;",
        f"- {rounds} times, before it: the model of the round comes in, of at most {size};",
    ]
    if study.evaluations:
        times = "once" if study.evaluations == 1 else f"{study.evaluations} times"
        lines.append(f"- {times}: how the model does on our validation patients, a few kilobytes.")
    return [
        *lines,
        "Each message is in our own audit log, with its size, its hash and what it holds, before it leaves: "
        "`echofed audit show`.",
    ]


def _cost(state_folder: Path, study: Study, policy: SitePolicy) -> list[str]:
    try:
        with open_registry(state_folder) as registry:
            patients = count_patients(registry)
        chain = read_ledger(state_folder, policy)
        return study_cost_lines(state_folder, study, policy, patients, chain.entries if chain else ())[1:]
    except (DataError, PrivacyError) as error:
        return [f"{error.what} {error.remedy}"]


def _policy(held: HeldStudy, policy: SitePolicy) -> list[str]:
    found = violations(policy, held.study, held.publication.parameters_bytes)
    if not found:
        return ["It allows the study."]
    return ["IT DOES NOT ALLOW THE STUDY:", *(f"- {sentence}" for sentence in found)]


def _standing(held: HeldStudy) -> list[str]:
    lines = [f"Published {held.publication.published_at}."]
    if not held.has_parameters:
        lines.append("Its initial parameters are not here yet; without them it cannot be approved.")
    for answer in held.answers:
        reason = f": {answer.reason}" if answer.reason else ""
        lines.append(f"{answer.decision.capitalize()} {answer.decided_at} by {answer.person}{reason}")
    if held.withdrawal:
        lines.append(f"TAKEN BACK BY THE COORDINATOR {held.withdrawal.withdrawn_at}: {held.withdrawal.reason}")
    elif held.state == "approved":
        lines.append(f'To stop taking part: echofed site withdraw {held.hash[:12]} --by "NAME"')
    else:
        lines.append(f'To approve: echofed site approve {held.hash[:12]} --by "NAME"')
        lines.append(f'To refuse:  echofed site refuse {held.hash[:12]} --by "NAME" --reason "..."')
    return lines


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{math.ceil(count / 1024)} KiB"


def _filled(line: str) -> str:
    indent = "    " if line.startswith("- ") else "  "
    keeps_columns = line.startswith("  ")
    if keeps_columns or len(line) <= _WIDTH - 2:
        return f"  {line}"
    return textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent=indent)
