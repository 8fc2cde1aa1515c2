"""`echofed study sign|publish|withdraw` and `run|pause|resume|stop|extend|status|log`: studies on the coordinator's side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echofed.server.studies import PublishedStudy, WantedState
    from echofed.server.study_status import StudyStatus

State = Annotated[Path, typer.Option(help="the coordinator's state folder")]
StudyHash = Annotated[str, typer.Argument(help="the study's hash, its first 8 digits or more", metavar="STUDY")]
Parameters = Annotated[
    Path | None, typer.Option(help="the initial parameters; otherwise the file of the study's name, .safetensors")
]
Rounds = Annotated[int, typer.Option(min=1, max=10_000, help="the last round to run; at most the study's own number")]
SIGNED_SUFFIX = ".signed.json"


def sign(
    file: Annotated[Path, typer.Argument(help="the study document, YAML", metavar="STUDY")],
    parameters: Parameters = None,
    state: State = Path("consortium"),
) -> None:
    """Sign a study with its initial parameters, and write the signed publication beside it; nothing is published."""
    from echofed.server.authority import load_signing_key, read_consortium
    from echofed.server.publishing import sign_study
    from echofed.server.studies import write_state

    found = parameters or file.with_suffix(".safetensors")
    signed = sign_study(file, found, load_signing_key(state), read_consortium(state).id)
    target = file.with_suffix(SIGNED_SUFFIX)
    write_state(target, signed)
    typer.echo(f"Wrote {target}. Publish it with: echofed study publish {target}")


def publish(
    file: Annotated[Path, typer.Argument(help="a study document, or one signed before", metavar="STUDY")],
    parameters: Parameters = None,
    state: State = Path("consortium"),
) -> None:
    """Publish a study to the hospitals: they see it, and approve or refuse it. It starts with `echofed study run`."""
    from echofed.protocol.signing import MAX_SIGNED_BYTES, read_signed
    from echofed.protocol.state_folder import read_limited
    from echofed.server.publishing import publish_signed, publish_study

    is_signed = file.name.endswith(SIGNED_SUFFIX)
    beside = file.with_name(file.name.removesuffix(SIGNED_SUFFIX)) if is_signed else file.with_suffix("")
    found = parameters or beside.with_name(f"{beside.name}.safetensors")
    if is_signed:
        published = publish_signed(state, read_signed(read_limited(file, MAX_SIGNED_BYTES)), found)
    else:
        published = publish_study(state, file, found)
    typer.echo(
        f"Published {published.study.title}\n  {published.hash}\n"
        f"The hospitals see it with `echofed site studies`. Start it with: echofed study run {published.hash[:12]}"
    )


def withdraw(
    study: StudyHash,
    reason: Annotated[str, typer.Option(help="told to the hospitals")],
    state: State = Path("consortium"),
) -> None:
    """Take a study back for good: its run stops, and no hospital answers it any more."""
    from echofed.server.publishing import withdraw_study

    study_hash = _found(state, study)
    withdraw_study(state, study_hash, reason)
    typer.echo(f"Took {study_hash[:12]} back. The hospitals hear of it within a minute.")


def run(
    study: StudyHash,
    rounds: Annotated[int | None, typer.Option(min=1, max=10_000, help="stop after this round; absent: all")] = None,
    state: State = Path("consortium"),
) -> None:
    """Start a study: the running server begins its rounds once enough hospitals have approved it and are online."""
    _want(state, study, "running", rounds, "Runs as soon as enough hospitals are online; see: echofed study status")


def pause(study: StudyHash, state: State = Path("consortium")) -> None:
    """Pause a study after the round under way."""
    _want(state, study, "paused", None, "Pauses after the round under way. Go on with: echofed study resume")


def resume(study: StudyHash, state: State = Path("consortium")) -> None:
    """Go on with a paused study."""
    _want(state, study, "running", None, "Goes on.")


def stop(study: StudyHash, state: State = Path("consortium")) -> None:
    """End a study for good; the round under way is dropped, the last published model stays."""
    _want(state, study, "stopped", None, "Stops, for good.")


def extend(study: StudyHash, rounds: Rounds, state: State = Path("consortium")) -> None:
    """Let a study run up to a later round, at most to the number the hospitals have approved."""
    from echofed.server.studies import read_control

    again: WantedState | None = "running" if read_control(state, _found(state, study)).state == "finished" else None
    _want(state, study, again, rounds, f"Runs up to round {rounds}.")


def status(
    study: Annotated[str | None, typer.Argument(help="a study's hash; absent: all studies", metavar="STUDY")] = None,
    state: State = Path("consortium"),
) -> None:
    """Show where studies stand: what is wanted, what runs, who has approved."""
    from echofed.cli.audit import escaped
    from echofed.protocol.errors import EchoFedError
    from echofed.protocol.state_folder import check_state_folder
    from echofed.server.studies import all_studies, read_study

    check_state_folder(state, "consortium")
    wanted = [_found(state, study)] if study else all_studies(state)
    for study_hash in wanted:
        try:
            lines = _status_lines(state, read_study(state, study_hash))
        except EchoFedError as error:
            if study:
                raise
            lines = [f"{study_hash[:12]}  DAMAGED", f"  because  {error}"]
        typer.echo("\n".join(map(escaped, lines)))
    if not wanted:
        typer.echo("No study has been published.")


def log(study: StudyHash, state: State = Path("consortium")) -> None:
    """Show a study's published rounds: who answered, how long it took, how the model does."""
    from echofed.cli.audit import escaped
    from echofed.server.history import read_history
    from echofed.server.studies import study_folder
    from echofed.server.study_status import read_status

    folder = study_folder(state, _found(state, study))
    fares = read_status(folder)
    rounds = read_history(folder, fares.round_number) if fares else []
    if not rounds:
        typer.echo("No round has been published yet.")
    for one in rounds:
        sites = ", ".join(site for site, said in sorted(one.sites.items()) if said.trained)
        metric = "" if one.validation_metric is None else f"  metric {one.validation_metric:.4f}"
        refused = "".join(f"\n        {site}: {escaped(why)}" for site, why in sorted(one.refused.items()))
        tries = "" if one.attempts == 1 else f" ({one.attempts} attempts)"
        typer.echo(f"{one.round_number:6}  {one.seconds:8.1f} s{tries}{metric}  {sites}{refused}")


def _status_lines(state: Path, published: "PublishedStudy") -> list[str]:
    from echofed.server.studies import read_control
    from echofed.server.study_status import read_status

    control, fares = read_control(state, published.hash), read_status(published.folder)
    rounds = control.rounds or published.study.federation.rounds
    lines = [f"{published.hash[:12]}  {published.study.title}", f"  wanted   {control.state}, up to round {rounds}"]
    if published.withdrawal:
        withdrawal = published.withdrawal[0]
        lines.append(f"  TAKEN BACK {withdrawal.withdrawn_at}: {withdrawal.reason}")
    if fares is None:
        lines.append("  run      not begun")
    else:
        whole = published.study.federation.rounds
        said = f"{fares.state}, round {fares.round_number} of {rounds}"
        if fares.state == "finished" and fares.round_number == rounds < whole:
            said = f"stopped after round {rounds} of {whole}; go on: echofed study extend {published.hash[:12]}"
        lines.append(f"  run      {said} ({fares.updated_at})")
        if waiting := fares.waiting:
            lines.append(f"  waits    for {', '.join(waiting.sites)}, since {waiting.since}, until {waiting.until}")
        lines += [f"  offline  {', '.join(fares.offline)}"] if fares.offline else []
        lines += [f"  because  {fares.error}"] if fares.error else []
    return lines + _site_lines(state, published, fares)


def _site_lines(state: Path, published: "PublishedStudy", fares: "StudyStatus | None") -> list[str]:
    """Return a line for each site that has answered, and what to look into."""
    from echofed.server.site_heads import forked_sites
    from echofed.server.studies import answers

    lines, warnings = [], forked_sites(state)
    said = _patients(published.folder, fares)
    for site, answer in answers(state, published.hash).items():
        reason = f": {answer.reason}" if answer.reason else ""
        patients = f"; says {said[site]} training patients" if site in said else ""
        lines.append(f"  {site:20}  {answer.decision} by {answer.person}, {answer.decided_at}{reason}{patients}")
        if site in warnings:
            lines.append(f"  WARNING  {warnings[site]}")
        if len(said) > 1 and 2 * said.get(site, 0) > sum(said.values()):
            share = said[site] / sum(said.values())
            lines.append(f"  WARNING  {site} says it has {share:.0%} of the patients; the model follows it most.")
    return lines


def _patients(folder: Path, fares: "StudyStatus | None") -> dict[str, int]:
    """Return how many training patients each site said it has in the last round, where that weighs its update."""
    from contextlib import suppress

    from echofed.protocol.errors import CheckpointError
    from echofed.server.history import read_history

    with suppress(CheckpointError):  # `echofed study log` says what is wrong with it
        if fares and (rounds := read_history(folder, fares.round_number)):
            return {site: one.patients for site, one in rounds[-1].sites.items() if one.patients}
    return {}


def _want(state: Path, study: str, wanted: "WantedState | None", rounds: int | None, said: str) -> None:
    from echofed.server.studies import write_control

    study_hash = _found(state, study)
    write_control(state, study_hash, wanted, rounds=rounds)
    typer.echo(f"{study_hash[:12]}  {said}")


def _found(state: Path, prefix: str) -> str:
    from echofed.protocol.publication import find_hash
    from echofed.protocol.state_folder import check_state_folder
    from echofed.server.studies import all_studies

    check_state_folder(state, "consortium")
    return find_hash(prefix, all_studies(state))
