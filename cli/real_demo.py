"""`echofed demo --real`: a whole consortium on this machine, and a view of it while its study runs."""

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from echofed.cli.progress import progress_bars
from echofed.server.gateway_nodes import read_nodes
from echofed.server.history import Round, read_history
from echofed.server.studies import answers, study_folder
from echofed.server.study_status import StudyStatus
from echofed.simulations.local_consortium import LocalConsortium
from echofed.simulations.real_demo import run_real_demo

LOOKS_A_SECOND = 2.0


def show_real_demo(out: Path, sites: int, patients: int, rounds: int, seed: int, console: Console) -> Path:
    """Run the demonstration over real processes, showing its parties, and return the folder of the study."""
    live = Live(console=console, refresh_per_second=LOOKS_A_SECOND)

    def view(consortium: LocalConsortium, study_hash: str, status: StudyStatus | None) -> None:
        if not live.is_started:
            bars.__exit__(None, None, None)
            live.start()
        live.update(_table(consortium, study_hash, status))

    bars = progress_bars(console)
    show = bars.__enter__()
    try:
        return run_real_demo(out, sites, patients, rounds, seed, show, view)
    finally:
        live.stop()


def _table(consortium: LocalConsortium, study_hash: str, status: StudyStatus | None) -> Table:
    folder = study_folder(consortium.coordinator, study_hash)
    history = read_history(folder, status.round_number) if status and status.round_number else []
    table = Table(title=_title(consortium, status, history), title_justify="left", expand=False)
    for column in ("hospital", "processes", "heard of", "answer", "rounds it is in", "last noise multiplier"):
        table.add_column(column)
    nodes, said, now = (
        read_nodes(consortium.coordinator),
        answers(consortium.coordinator, study_hash),
        datetime.now(UTC),
    )
    for site in consortium.sites:
        node, replies = nodes.get(site), [one.sites[site] for one in history if site in one.sites]
        seen = f"{(now - datetime.fromisoformat(node.seen_at)).total_seconds():.0f} s ago" if node else "not yet"
        spent = replies[-1].spent if replies else None
        table.add_row(
            site,
            ", ".join(consortium.process_ids(site)),
            seen,
            said[site].decision if site in said else "-",
            str(sum(one.trained for one in replies)),
            f"{spent.noise_multiplier:.2f}" if spent else "-",
        )
    return table


def _title(consortium: LocalConsortium, status: StudyStatus | None, history: list[Round]) -> str:
    if status is None:
        return f"Gateway at {consortium.address} (TLS 1.3, both sides with certificates); the study begins"
    measured = [one.validation_metric for one in history if one.validation_metric is not None]
    figure = f"; AUC on noisy figures {measured[-1]:.3f}" if measured else ""
    return f"Gateway at {consortium.address}; {status.state}, round {status.round_number} of {status.rounds}{figure}"
