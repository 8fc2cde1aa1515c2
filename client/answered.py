"""The last round of a study a site has trained, so that no round is trained twice.

A private study's noise is calibrated for its rounds once each: a second answer to a round, with noise of its own, would
cost more privacy than agreed. The round is on disk before the site trains; a crash in between loses it and spends nothing
twice.
"""

from pathlib import Path

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import RepeatedRoundError
from echofed.protocol.study import Study


def claim_round(state_folder: Path, study: Study, round_number: int) -> None:
    """Note that a round is being answered; synced before return.

    Raises:
        RepeatedRoundError: the round, or a later one, has been answered before.
    """
    path = state_folder / "answered" / study.hash
    last = int(path.read_text()) if path.exists() else 0
    if round_number <= last:
        raise RepeatedRoundError(f"Round {round_number} was answered before; the last is {last}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, str(round_number).encode())
