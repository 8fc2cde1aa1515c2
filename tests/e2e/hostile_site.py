"""A hospital that has changed its own EchoFed: its executor plays the tricks its plan names.

    python hostile_site.py start STATE        instead of `echofed site start`
    python hostile_site.py execute ...        instead of the executor, with its arguments

The plan is STATE/plan.json: {round: [trick, ...]}. SuperLink, were it taken over, could send the coordinator the same bytes.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.cli import site_processes
from echofed.cli.supervisor import Program
from echofed.client import flower_executor
from echofed.client.sealed_answers import Opened, Reply, SealedAnswers
from echofed.protocol.arrays import decode_parameters, encode_parameters
from echofed.protocol.durable import replace_file
from echofed.protocol.seals import Blob, ReplySeal
from echofed.protocol.signing import Signed, sign

Sealed = tuple[str, Signed]
CONTENT_TRICKS: dict[str, Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "not a number": lambda said, update: (said, {name: array * np.float32(np.nan) for name, array in update.items()}),
    "huge": lambda said, update: (said, {name: np.full_like(array, 1e30) for name, array in update.items()}),
    "other layers": lambda said, update: (said, {f"{name}.other": array for name, array in update.items()}),
    "name of another": lambda said, update: (said.replace('"west"', '"north"'), update),
    "round of another": lambda said, update: (json.dumps({**json.loads(said), "round_number": 1}), update),
}
SEAL_TRICKS: dict[str, Callable[[ReplySeal], dict[str, Any]]] = {
    "seal of another site": lambda said: {"site": "north"},
    "seal of another round": lambda said: {"round_number": said.round_number - 1},
    "answer to nothing": lambda said: {"instruction": "0" * 64},
    "parameters not sent": lambda said: {"parameters": Blob(sha256=hashlib.sha256(b"another").hexdigest(), size=7)},
}


class HostileAnswers(SealedAnswers):
    """Plays a round's tricks in training, one each time it is asked; is honest when there is none left."""

    _asked = defaultdict[tuple[str, int], int](int)

    def answer(self, opened: Opened, make: Callable[[], Reply]) -> Sealed:
        """Return a reply, honest or not."""
        seal, state = opened.seal, self._state_folder
        if seal.kind != "train":
            return super().answer(opened, make)
        tricks = json.loads((state / "plan.json").read_bytes()).get(str(seal.round_number), [])
        asked = self._asked[seal.study_hash, seal.round_number]
        self._asked[seal.study_hash, seal.round_number] += 1
        trick = tricks[asked] if asked < len(tricks) else ""
        if change := CONTENT_TRICKS.get(trick):
            self._last = None
            return super().answer(opened, lambda: _changed(make(), change))
        document, signed = super().answer(opened, make)
        replace_file(_kept_in(state, seal.round_number), json.dumps([document, signed.model_dump_json()]).encode())
        return self._forged(trick, opened.seal.round_number, document, signed)

    def _forged(self, trick: str, round_number: int, document: str, signed: Signed) -> Sealed:
        key, said = self._identity.signing_key, ReplySeal.model_validate_json(signed.payload)
        if trick == "foreign key":
            return document, sign(Ed25519PrivateKey.generate(), "reply", said)
        if change := SEAL_TRICKS.get(trick):
            return document, sign(key, "reply", said.model_copy(update=change(said)))
        if trick == "document changed":
            return document.replace('"seconds"', '"Seconds"'), signed
        if trick == "last round again":
            return _kept(_kept_in(self._state_folder, round_number - 1))
        if trick == "reply of another site":
            return _kept(_kept_in(self._state_folder.with_name("south"), round_number))
        assert not trick, trick
        return document, signed


def _kept_in(state: Path, round_number: int) -> Path:
    return state / f"reply-{round_number}.json"


def _changed(reply: Reply, change: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]) -> Reply:
    said, update = change(reply[0], dict(decode_parameters(reply[1], 10**9)))
    return said, encode_parameters(update)


def _kept(path: Path) -> Sealed:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    document, signed = json.loads(path.read_bytes())
    return document, Signed.model_validate_json(signed)


def _programs(*arguments: Any) -> list[Program]:
    programs = _HONEST(*arguments)
    changed = [sys.executable, __file__, "execute", *programs[-1].command[3:]]
    return [*programs[:-1], dataclasses.replace(programs[-1], command=changed)]


_HONEST = site_processes._programs

if __name__ == "__main__":
    if sys.argv[1] == "start":
        site_processes._programs = _programs
        site_processes.run_site(Path(sys.argv[2]))
    else:
        flower_executor.SealedAnswers = HostileAnswers
        flower_executor.main(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
