"""What can go wrong, drawn from a seed: which faults strike a study, when, whom, and for how long."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from echofed.server.gateway_nodes import NODES_FILE
from echofed.server.studies import WantedState, read_control, write_control
from tests.faults.harness import SITES, Harness
from tests.faults.network import CUT, FAIR, Weather
from tests.faults.relay import Mischief

Act = Callable[[Harness, str], bool]
"""Does something to a consortium while a study, given by its hash, runs; False if it could not be done just now."""
HOUR_SECONDS = 3600
WINDOW_SECONDS = 8.0
"""After a study's start, in which faults begin: about as long as an undisturbed one takes on an idle machine."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: one of `KINDS`.
        what: in words, with whom it strikes.
        at: seconds after the study began.
        lasts: seconds until `end` is done.
        begin: makes it so.
        end: undoes it; nothing is to be undone of what is killed.
    """

    kind: str
    what: str
    at: float
    lasts: float
    begin: Act
    end: Act


def _nothing(harness: Harness, study: str) -> bool:
    return True


def _killed(party: str | None, process: str) -> Callable[[random.Random], tuple[str, float, Act, Act]]:
    def draw(rng: random.Random) -> tuple[str, float, Act, Act]:
        whose = party or rng.choice(SITES)
        return f"{whose}'s {process}", 0.0, lambda here, study: here.send(whose, process, signal.SIGKILL), _nothing

    return draw


def _any_process(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        return "coordinator", rng.choice(("superlink", "gateway", "conductor", "supervisor"))
    return rng.choice(SITES), rng.choice(("proxy", "supernode", "executor", "supervisor"))


def _stopped(rng: random.Random) -> tuple[str, float, Act, Act]:
    party, process = _any_process(rng)
    pids: list[int] = []

    def begin(here: Harness, study: str) -> bool:
        pid = here.process(party, process)
        pids.extend([] if pid is None else [pid])
        return here.send(party, process, signal.SIGSTOP)

    def end(here: Harness, study: str) -> bool:
        if here.process(party, process) in pids:
            here.send(party, process, signal.SIGCONT)
        return True

    return f"{party}'s {process}", rng.uniform(1, 9), begin, end


def _restarted(rng: random.Random) -> tuple[str, float, Act, Act]:
    party, process = rng.choice(
        (("coordinator", "superlink"), ("coordinator", "gateway"), ("coordinator", "supervisor"), _any_process(rng))
    )
    return f"{party}'s {process}", 0.0, lambda here, study: here.send(party, process, signal.SIGTERM), _nothing


def _nodes_lost(rng: random.Random) -> tuple[str, float, Act, Act]:
    def begin(here: Harness, study: str) -> bool:
        if not here.send("coordinator", "superlink", signal.SIGKILL):
            return False
        here.send("coordinator", "gateway", signal.SIGKILL)
        (here.state("coordinator") / NODES_FILE).unlink(missing_ok=True)
        return True

    return "the coordinator's", 0.0, begin, _nothing


def _cut(rng: random.Random) -> tuple[str, float, Act, Act]:
    whose = rng.sample(SITES, rng.choice((1, 1, 2, 3)))
    ways = rng.choice((("there", "back"), ("there", "back"), ("there",), ("back",), ("down",)))

    def begin(here: Harness, study: str) -> bool:
        for site in whose:
            if "there" in ways:
                here.network.set(site, "coordinator", CUT)
            if "back" in ways:
                here.network.set("coordinator", site, CUT)
            if "down" in ways:
                here.network.link(site, "down")
        return True

    def end(here: Harness, study: str) -> bool:
        for site in whose:
            here.network.set(site, "coordinator", FAIR)
            here.network.set("coordinator", site, FAIR)
            here.network.link(site, "up")
        return True

    what = f"{' and '.join(whose)}, {' and '.join(ways)}"
    return what, rng.choice((rng.uniform(0.2, 3), rng.uniform(3, 12))), begin, end


def _half_open(rng: random.Random) -> tuple[str, float, Act, Act]:
    """Cut a site off and kill one end meanwhile: the other end keeps connections that lead nowhere."""
    site = rng.choice(SITES)
    end_party, end_process = rng.choice((("coordinator", "gateway"), (site, "proxy"), (site, "supervisor")))

    def begin(here: Harness, study: str) -> bool:
        here.network.set(site, "coordinator", CUT)
        here.network.set("coordinator", site, CUT)
        return here.send(end_party, end_process, signal.SIGKILL)

    def end(here: Harness, study: str) -> bool:
        here.network.set(site, "coordinator", FAIR)
        here.network.set("coordinator", site, FAIR)
        return True

    return f"{site}, and {end_party}'s {end_process} killed meanwhile", rng.uniform(2, 8), begin, end


def _slow(rng: random.Random) -> tuple[str, float, Act, Act]:
    whose = rng.sample(SITES, rng.choice((1, 2, 3)))
    weather = Weather(
        lost=rng.choice((0.0, 0.05, 0.2)),
        doubled=rng.choice((0.0, 0.2)),
        delay_seconds=rng.choice((0.0, 0.1, 0.5)),
        jitter_seconds=rng.choice((0.0, 0.2)),
        bytes_per_second=rng.choice((None, 8_000.0, 40_000.0)),
    )

    def apply(here: Harness, kind: Weather) -> bool:
        for site in whose:
            here.network.set(site, "coordinator", kind)
            here.network.set("coordinator", site, kind)
        return True

    return (
        f"{' and '.join(whose)}: {weather}",
        rng.uniform(4, 12),
        lambda here, study: apply(here, weather),
        lambda here, study: apply(here, FAIR),
    )


def _messages(rng: random.Random) -> tuple[str, float, Act, Act]:
    mischief = Mischief(
        request_lost=rng.choice((0.0, 0.05)),
        answer_lost=rng.choice((0.0, 0.05, 0.15)),
        doubled=rng.choice((0.1, 0.5)),
        delayed=rng.choice((0.1, 0.5)),
        repeated=rng.choice((0.0, 0.2)),
        delay_seconds=rng.choice((0.3, 1.5)),
    )

    before: list[int] = []

    def begin(here: Harness, study: str) -> bool:
        assert here.relay is not None
        before.append(here.relay.times)
        here.relay.mischief = mischief
        return True

    def end(here: Harness, study: str) -> bool:
        assert here.relay is not None
        here.relay.mischief = Mischief()
        here.say(f"    {here.relay.times - before[0]} requests were doubled, held back, repeated or lost")
        return True

    return str(mischief), rng.uniform(4, 12), begin, end


def _full_disk(rng: random.Random) -> tuple[str, float, Act, Act]:
    party = rng.choice(("coordinator", *SITES))

    def begin(here: Harness, study: str) -> bool:
        here.fill_disk(party)
        return True

    def end(here: Harness, study: str) -> bool:
        here.free_disk(party)
        return True

    return party, rng.uniform(1, 8), begin, end


def _clock(rng: random.Random) -> tuple[str, float, Act, Act]:
    party, offset = rng.choice(("coordinator", "coordinator", *SITES)), rng.choice((-HOUR_SECONDS, HOUR_SECONDS))

    def begin(here: Harness, study: str) -> bool:
        here.set_clock(party, offset)
        return True

    def end(here: Harness, study: str) -> bool:
        here.set_clock(party, 0)
        return True

    return f"{party}, {offset:+d} s", rng.uniform(2, 10), begin, end


def _paused(rng: random.Random) -> tuple[str, float, Act, Act]:
    def write(here: Harness, study: str, state: WantedState) -> bool:
        folder = here.state("coordinator")
        if read_control(folder, study).state not in ("running", "paused"):
            return True  # it has finished
        write_control(folder, study, state)
        return True

    return (
        "the study",
        rng.uniform(0.5, 6),
        lambda here, study: write(here, study, "paused"),
        lambda here, study: write(here, study, "running"),
    )


_DRAWS: dict[str, Callable[[random.Random], tuple[str, float, Act, Act]]] = {
    "SuperLink killed": _killed("coordinator", "superlink"),
    "gateway killed": _killed("coordinator", "gateway"),
    "conductor killed": _killed("coordinator", "conductor"),
    "coordinator's supervisor killed": _killed("coordinator", "supervisor"),
    "outbound proxy killed": _killed(None, "proxy"),
    "SuperNode killed": _killed(None, "supernode"),
    "executor killed": _killed(None, "executor"),
    "site's supervisor killed": _killed(None, "supervisor"),
    "process stopped for seconds": _stopped,
    "process or party restarted": _restarted,
    "SuperLink and the list of nodes lost": _nodes_lost,
    "study paused and resumed": _paused,
    "network cut": _cut,
    "half-open connections": _half_open,
    "slow and lossy network": _slow,
    "messages doubled, swapped, lost": _messages,
    "disk full": _full_disk,
    "clock an hour off": _clock,
}
KINDS = tuple(_DRAWS)
LOOPBACK_KINDS = KINDS[: KINDS.index("network cut")]
"""What can be done without networks, disks and clocks of their own."""


def draw_faults(seed: int, kinds: tuple[str, ...] = KINDS, window_seconds: float = WINDOW_SECONDS) -> list[Fault]:
    """Return the faults of a scenario: one of the kind whose turn it is, often others with it, in the order they begin.

    Args:
        seed: of the scenario; the kinds take turns by it.
        kinds: to draw from.
        window_seconds: after the study's start, in which they begin.
    """
    rng = random.Random(seed)
    others = rng.choices(kinds, k=rng.choice((0, 0, 1, 1, 2)))
    faults = []
    for kind in (kinds[seed % len(kinds)], *others):
        at = rng.uniform(0, window_seconds)
        what, lasts, begin, end = _DRAWS[kind](rng)
        faults.append(Fault(kind, what, at, lasts, begin, end))
    return sorted(faults, key=lambda fault: fault.at)
