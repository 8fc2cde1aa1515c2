"""The text of `echofed site budget`: what a site's patients have spent, what is left, and what a study would cost."""

from datetime import UTC, datetime
from pathlib import Path

from echofed.client.ledger import read_ledger
from echofed.client.ledger_chain import LEDGER_PATH, Chain, Entry
from echofed.client.policy import FILE_NAME, SitePolicy, limits_for, load_policy
from echofed.client.registry import count_patients, open_registry
from echofed.client.study_cost import mechanisms_text, rounded_down, rounded_up, study_cost_lines
from echofed.client.yearly_budget import spends_of_last_year
from echofed.privacy.budget import Limits
from echofed.privacy.spends import Spend, composed_epsilon, largest_further_epsilon
from echofed.protocol.study_file import load_study

_TITLE_WIDTH = 40


def budget_text(state_folder: Path, study_file: Path | None) -> str:
    """Return the site's budget as text, with a study's share if one is named."""
    policy = load_policy(state_folder)
    with open_registry(state_folder) as registry:
        patients = count_patients(registry)
    chain = read_ledger(state_folder, policy)
    entries = chain.entries if chain else ()
    limits = limits_for(policy, patients)
    parts = [
        _policy_lines(state_folder, policy, patients, limits),
        _ledger_lines(state_folder, chain),
        _study_lines(entries, limits),
        _total_lines([entry.spend for entry in entries], limits) + _year_lines(entries, policy, limits),
        _without_privacy_lines(entries),
    ]
    if study_file is not None:
        parts.append(study_cost_lines(state_folder, load_study(study_file), policy, patients, entries))
    return "\n\n".join("\n".join(part) for part in parts if part)


def _policy_lines(state_folder: Path, policy: SitePolicy, patients: int, limits: Limits) -> list[str]:
    path = state_folder / FILE_NAME
    allowed = "allowed" if policy.allow_without_privacy else "refused"
    return [
        f"Policy    {path}" + ("" if path.exists() else " (not written, these are the defaults)"),
        f"Cohort    {patients} usable patients; all studies together up to epsilon {policy.epsilon_per_cohort:g} "
        f"at delta {limits.delta:.2g}",
        f"A study   up to epsilon {policy.epsilon_per_study:g} at the study's delta; without privacy: {allowed}",
        f"Minimum   {policy.minimum_patients} patients",
        f"Witness   {policy.ledger_witness}"
        + ("" if policy.ledger_witness.parent.is_dir() else " (its folder does not exist: nothing will leave)")
        if policy.ledger_witness
        else "Witness   none; restoring the whole state folder from an old copy would go unnoticed",
    ]


def _ledger_lines(state_folder: Path, chain: Chain | None) -> list[str]:
    if chain is None:
        return ["Ledger    none yet; nothing has been released"]
    count = len(chain.entries)
    until = f", the last of {chain.entries[-1].written_at}" if count else ""
    return [
        f"Ledger    {state_folder / LEDGER_PATH}: {count} {'entry' if count == 1 else 'entries'}, whole{until}",
        f"Head      {chain.hash_at(count)}",
    ]


def _study_lines(entries: tuple[Entry, ...], limits: Limits) -> list[str]:
    heading = f"{'Study':{_TITLE_WIDTH}}  {'Hash':12}  Rounds  Epsilon at delta {limits.delta:.2g}, and mechanisms"
    lines = [heading] if entries else []
    for study in dict.fromkeys(entry.study_hash for entry in entries):
        own = [entry for entry in entries if entry.study_hash == study]
        rounds = len({entry.round_number for entry in own if entry.purpose == "training"})
        private = [entry.spend for entry in own if entry.mechanism is not None]
        epsilon = rounded_up(composed_epsilon(private, limits.delta)) if private else "NONE"
        title = own[0].study_title
        title = title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 3] + "..."
        mechanisms = mechanisms_text(private) or "NO PRIVACY"
        lines.append(f"{title:{_TITLE_WIDTH}}  {study[:12]}  {rounds:6}  {epsilon:>7}  {mechanisms}")
    return lines


def _total_lines(spends: list[Spend], limits: Limits) -> list[str]:
    total = composed_epsilon(spends, limits.delta)
    left = largest_further_epsilon(spends, limits.delta, limits.epsilon_per_cohort)
    left = min(left, limits.epsilon_per_study)
    together = f"epsilon {rounded_up(total)} of {limits.epsilon_per_cohort:g} at delta {limits.delta:.2g}, all studies together"
    return [
        f"Spent     {together}",
        f"Left      room for a further study of epsilon {rounded_down(left)} or less; what running studies are still to spend "
        "is not taken off",
    ]


def _year_lines(entries: tuple[Entry, ...], policy: SitePolicy, limits: Limits) -> list[str]:
    if policy.epsilon_per_year is None:
        return []
    total = composed_epsilon(spends_of_last_year(entries, datetime.now(UTC)), limits.delta)
    return [
        f"A year    epsilon {rounded_up(total)} of {policy.epsilon_per_year:g} at delta {limits.delta:.2g}, last 365 days"
    ]


def _without_privacy_lines(entries: tuple[Entry, ...]) -> list[str]:
    bare = [entry for entry in entries if entry.mechanism is None]
    if not bare:
        return []
    rounds = len({(entry.study_hash, entry.round_number) for entry in bare})
    titles = ", ".join(dict.fromkeys(entry.study_title for entry in bare))
    return [f"WITHOUT PRIVACY: {rounds} ROUND{'S' if rounds > 1 else ''} OF {titles}. NO EPSILON COVERS THEM."]
