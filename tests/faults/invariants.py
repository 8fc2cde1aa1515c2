"""What must hold after a study, whatever went wrong: read from the files and logs of all parties."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from echofed.client.ledger import read_ledger
from echofed.client.ledger_chain import Entry as LedgerEntry
from echofed.client.ledger_chain import Purpose
from echofed.client.policy import load_policy
from echofed.protocol.audit_entries import Entry
from echofed.protocol.audit_export import compare, export_of
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.errors import EchoFedError
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import STUDY_FILE
from echofed.server.blobs import INCOMING
from echofed.server.checkpoint import read_checkpoint
from echofed.server.history import Round, read_history
from echofed.server.studies import study_folder
from tests.faults.harness import SITES, Harness
from tests.faults.scenario import Ran

PURPOSE: dict[str, Purpose] = {"train": "training", "evaluate": "figures", "describe": "count"}


Spent = dict[tuple[str, str, int], str]
"""What a site is charged, by site, purpose and round: the mechanism."""


def check(harness: Harness, ran: Ran, expected: Spent | None = None) -> list[str]:
    """Return a sentence for each thing that is not as it must be after a finished study.

    Args:
        harness: running.
        ran: the study.
        expected: what sites were charged in a study of the same kind that nothing struck, if one was run.
    """
    try:
        logs = {party: entries_of(harness.state(party)) for party in ("coordinator", *SITES)}
        ledgers = {site: ledger_of(harness.state(site)) for site in SITES}
        folder = study_folder(harness.state("coordinator"), ran.study)
        return [
            *_logs_agree(harness),
            *published_once(ran.study, folder, logs["coordinator"]),
            *paid_for(harness, ran.study, logs, ledgers),
            *spent_once(ran, folder, ledgers, expected),
        ]
    except EchoFedError as error:
        return [f"{type(error).__name__}: {error}"]


def rounds_of(harness: Harness, ran: Ran) -> list[Round]:
    """Return the published rounds of a finished study."""
    folder = study_folder(harness.state("coordinator"), ran.study)
    return read_history(folder, load_study(folder / STUDY_FILE).federation.rounds)


def spent_in(harness: Harness, study: str) -> Spent:
    """Return what sites were charged in a study, from their ledgers."""
    return _spent({site: ledger_of(harness.state(site)) for site in SITES}, study)


def _spent(ledgers: dict[str, tuple[LedgerEntry, ...]], study: str) -> Spent:
    return {
        (site, entry.purpose, entry.round_number): str(entry.mechanism)
        for site, entries in ledgers.items()
        for entry in entries
        if entry.study_hash == study
    }


def entries_of(state: Path) -> list[Entry]:
    """Return the entries of a party's audit log, after checking it."""
    with open_existing_log(state) as log:
        log.verify()
        return list(log.entries())


def ledger_of(state: Path) -> tuple[LedgerEntry, ...]:
    """Return the entries of a site's ledger, after checking it."""
    chain = read_ledger(state, load_policy(state))
    return chain.entries if chain else ()


def _logs_agree(harness: Harness) -> Iterator[str]:
    with open_existing_log(harness.state("coordinator")) as log:
        coordinator = export_of(log)
    for site in SITES:
        with open_existing_log(harness.state(site)) as log:
            found = compare(coordinator, export_of(log))
        if not found.compared:
            yield f"{site} and the coordinator have exchanged no head of their logs"
        yield from (f"logs of {site} and the coordinator: {said}" for said in found.contradictions)


def published_once(study: str, folder: Path, log: list[Entry], minimum: int | None = None) -> Iterator[str]:
    """Check that the coordinator's log, history and checkpoint hold every round once, with enough replies it accepted."""
    federation = load_study(folder / STUDY_FILE).federation
    rounds, minimum = federation.rounds, minimum or federation.minimum_replies
    published = [entry for entry in log if entry.event == "round published" and entry.facts["study"] == study]
    numbers = [entry.facts["round"] for entry in published]
    if numbers != list(range(1, rounds + 1)):
        yield f"rounds published, by the log: {numbers}"
    history = read_history(folder, rounds)
    if [record.round_number for record in history] != list(range(1, rounds + 1)):
        yield f"rounds in the history: {[record.round_number for record in history]}"
    accepted = {
        (entry.facts["round"], entry.facts["site"])
        for entry in log
        if entry.event == "reply" and entry.facts["study"] == study and entry.facts["kind"] == "train"
    }
    for record, entry in zip(history, published, strict=False):
        trained = sorted(site for site, one in record.sites.items() if one.trained)
        if len(trained) < minimum:
            yield f"round {record.round_number} was published with {len(trained)} replies, {minimum} are needed"
        if trained != entry.facts["sites"]:
            yield f"round {record.round_number}: history says {trained}, the log {entry.facts['sites']}"
        if missing := [site for site in trained if (record.round_number, site) not in accepted]:
            yield f"round {record.round_number}: no reply of {missing} is in the coordinator's log"
    checkpoint = read_checkpoint(folder, study)
    if checkpoint is None or checkpoint.round_number != rounds:
        yield f"the checkpoint is of round {checkpoint and checkpoint.round_number}"
    elif history and list(checkpoint.replied) != sorted(s for s, one in history[-1].sites.items() if one.trained):
        yield f"the checkpoint's last round is of {checkpoint.replied}"


def paid_for(
    harness: Harness, study: str, logs: dict[str, list[Entry]], ledgers: dict[str, tuple[LedgerEntry, ...]]
) -> Iterator[str]:
    """Check that nothing is out without its entry in the ledger and in the site's own log."""
    for site in SITES:
        paid = {(e.round_number, e.purpose): e.number for e in ledgers[site] if e.study_hash == study}
        sent = [e for e in logs[site] if _is_release(e, study)]
        said = {_place(e): e.facts["parameters"] for e in sent}
        for place in said:
            if place not in paid:
                yield f"{site} sent {place}, and it is not in its ledger"
        for entry in logs["coordinator"]:
            if entry.event != "reply" or (entry.facts["site"], entry.facts["study"]) != (site, study):
                continue
            if entry.facts["kind"] == "error" or (_place(entry) not in said and entry.facts["kind"] == "evaluate"):
                continue  # it says nothing of a patient
            if said.get(_place(entry), "") != entry.facts["parameters"]:
                yield f"the coordinator has a reply of {site} that is not in the site's log: {_place(entry)}"
            if paid.get(_place(entry), sys.maxsize) > int(str(entry.facts["ledger_entries"] or 0)):
                yield f"the coordinator has a reply of {site}, signed before its ledger had it: {_place(entry)}"
        out = {str(e.facts["parameters"]) for e in logs[site] if e.event == "reply" and e.facts["parameters"]}
        incoming = harness.state("coordinator") / INCOMING / site
        for path in incoming.iterdir() if incoming.is_dir() else ():
            if not path.name.endswith(".part") and path.name not in out:
                yield f"the coordinator holds parameters of {site} that are not in the site's log"


def _is_release(entry: Entry, study: str) -> bool:
    """Return whether an entry of a site's log is of a reply that says something of its patients."""
    if entry.event != "reply" or entry.facts["study"] != study or entry.facts["kind"] == "error":
        return False
    return entry.facts["kind"] != "evaluate" or bool({"exact", "noisy"} & set(entry.facts["holds"] or ()))  # type: ignore[arg-type]


def _place(entry: Entry) -> tuple[int, Purpose]:
    return int(str(entry.facts["round"])), PURPOSE[str(entry.facts["kind"])]


def spent_once(
    ran: Ran, folder: Path, ledgers: dict[str, tuple[LedgerEntry, ...]], expected: Spent | None
) -> Iterator[str]:
    """Check that nothing was charged twice, and nothing otherwise than in an undisturbed study of the same kind."""
    spent = _spent(ledgers, ran.study)
    for site in SITES:
        entries = [entry for entry in ledgers[site] if entry.study_hash == ran.study]
        times = Counter((entry.purpose, entry.round_number) for entry in entries)
        if twice := [place for place, number in times.items() if number > 1]:
            yield f"{site} was charged twice for {twice}"
    known = spent if expected is None else expected
    if other := sorted(place for place, mechanism in spent.items() if known.get(place) != mechanism):
        yield f"charged otherwise than in an undisturbed study: {other}"
    for record in read_history(folder, load_study(folder / STUDY_FILE).federation.rounds):
        trained = [site for site, one in record.sites.items() if one.trained]
        if unpaid := [site for site in trained if (site, "training", record.round_number) not in spent]:
            yield f"round {record.round_number}: {unpaid} took part and were not charged"
