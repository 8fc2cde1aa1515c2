"""One scenario: a study runs while faults drawn from a seed strike it, and what is left afterwards is checked."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from echofed.protocol.errors import EchoFedError
from tests.faults.faults import Fault
from tests.faults.harness import PARTIES, Harness
from tests.faults.studies import Variant

BEGIN_SECONDS = 8.0
"""For which a fault is tried to be begun: its victim may just be starting."""
LOST_SECONDS = 240.0
"""After the last fault has ended; a study that is not finished by then counts as lost."""


@dataclass
class _Planned:
    fault: Fault
    began: float | None = None
    ended: float | None = None
    given_up: bool = False


@dataclass
class Ran:
    """How a study fared.

    Args:
        study: its hash.
        variant: of the study.
        seconds: from its start to its end.
        recovery_seconds: from the end of the last fault to the end of the study.
        faults: that struck it, the kinds of those that did.
        problems: sentences on what must not be; none if all is well.
    """

    study: str
    variant: Variant
    seconds: float = 0.0
    recovery_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run_study(
    harness: Harness, study: str, variant: Variant, faults: Sequence[Fault], lost_seconds: float = LOST_SECONDS
) -> Ran:
    """Run a published and approved study under faults until it is finished, or lost."""
    planned, ran = [_Planned(fault) for fault in faults], Ran(study, variant)
    consortium = harness.consortium
    consortium.run(study)
    start = time.monotonic()
    last_end = start
    try:
        while True:
            harness.tend()
            now = time.monotonic()
            for one in planned:
                if _act(harness, study, one, now - start):
                    last_end = now
            status = _status(harness, study)
            if status == "finished":
                break
            if status == "stopped" or (now - last_end > lost_seconds and all(_is_over(one) for one in planned)):
                ran.problems.append(f"lost: {consortium.status(study)}")
                break
            time.sleep(0.03)
        ran.seconds, ran.recovery_seconds = time.monotonic() - start, time.monotonic() - last_end
    finally:
        for one in planned:
            if one.began is not None and one.ended is None:
                _end(harness, study, one)
    ran.faults = [one.fault.kind for one in planned if one.began is not None]
    _settle(harness)
    return ran


def _is_over(one: _Planned) -> bool:
    return one.given_up or one.ended is not None


def _act(harness: Harness, study: str, one: _Planned, elapsed: float) -> bool:
    """Begin or end a fault if it is time; return whether anything was done."""
    fault = one.fault
    if one.began is None and not one.given_up and elapsed >= fault.at:
        with contextlib.suppress(EchoFedError, OSError):
            if fault.begin(harness, study):
                one.began = elapsed
        one.given_up = one.began is None and elapsed > fault.at + BEGIN_SECONDS
        return one.began is not None
    if one.began is not None and one.ended is None and elapsed >= one.began + fault.lasts:
        with contextlib.suppress(EchoFedError, OSError):
            if fault.end(harness, study):
                one.ended = elapsed
        return one.ended is not None
    return False


def _end(harness: Harness, study: str, one: _Planned) -> None:
    def ended() -> bool:
        with contextlib.suppress(EchoFedError, OSError):
            return one.fault.end(harness, study)
        return False

    if not harness.wait(30.0, ended):
        raise RuntimeError(f"{one.fault.kind} cannot be ended")


def _status(harness: Harness, study: str) -> str | None:
    with contextlib.suppress(EchoFedError, OSError):
        status = harness.consortium.status(study)
        return status.state if status else None
    return None


def _settle(harness: Harness) -> None:
    """Let parties that were hurt at the very end start again, so that the next study finds them."""
    harness.wait(30.0, lambda: all(harness.process(party, "supervisor") for party in PARTIES))
