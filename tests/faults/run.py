"""Studies under faults on real processes: what strikes them is drawn from a seed, what must hold is checked after each.

    ECHOFED_FAULTS=220 ECHOFED_FAULT_SEED=0 python -m tests.faults.run

Needs root, for network namespaces and small disks, and a C compiler, for clocks that are off. It touches no interface, no process
and no mount of the machine but its own. `ECHOFED_FAULTS=1 ECHOFED_FAULT_SEED=123` repeats one scenario.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.faults import KINDS, draw_faults
from tests.faults.harness import PARTIES, Harness
from tests.faults.invariants import Spent, check, spent_in
from tests.faults.replay import Replay, check_model
from tests.faults.scenario import Ran, run_study
from tests.faults.studies import VARIANTS, Variant, write_scenario_study

PER_CONSORTIUM = 24
"""Studies after which the whole consortium is made anew."""


@dataclass
class Reference:
    """What an undisturbed study of each kind does."""

    spent: dict[Variant, Spent] = field(default_factory=dict)
    seconds: dict[Variant, float] = field(default_factory=dict)


@dataclass
class Result:
    """A scenario and what came of it."""

    seed: int
    ran: Ran
    model: str


def variant_of(seed: int) -> Variant:
    """Return the kind of study of a scenario."""
    return VARIANTS[seed // len(KINDS) % len(VARIANTS)]


class Run:
    """Runs scenarios, some on one consortium, then on the next.

    Args:
        folder: for everything.
        seeds: of the scenarios.
        keep: whether logs are kept, and all of a consortium with a scenario that failed.
    """

    def __init__(self, folder: Path, seeds: Sequence[int], *, keep: bool) -> None:
        self.folder, self.seeds, self.keep = folder, seeds, keep
        self.reference, self.results = Reference(), list[Result]()
        self.replay: Replay | None = None
        self.noise: Counter[str] = Counter()

    def all(self) -> list[Result]:
        """Run all scenarios and return what came of them."""
        todo = list(self.seeds)
        while todo:
            harness = Harness(self.folder, isolated=True, seed=todo[0])
            harness.prepare()
            self.replay = self.replay or Replay(harness.template)
            with harness.running():
                done = self._some(harness, todo[:PER_CONSORTIUM])
                self._look_into_logs(harness)
                if self.keep:
                    self._keep(harness, todo[0], whole=any(one.ran.problems for one in self.results[-done:]))
            del todo[:done]
        return self.results

    def _some(self, harness: Harness, seeds: Sequence[int]) -> int:
        """Run scenarios on one consortium until one fails; return how many were run."""
        fresh: list[Variant] = [
            "all sites"
        ]  # everything is started, and read for the first time, during the first study
        fresh += [variant for variant in VARIANTS if variant not in self.reference.seconds]
        names = [(variant, f"Undisturbed {number}") for number, variant in enumerate(fresh)]
        names += [(variant_of(seed), f"Scenario {seed}") for seed in seeds]
        studies = []
        for number, (variant, name) in enumerate(names):
            paths = write_scenario_study(self.folder / "studies" / str(number), variant, name)
            studies.append(harness.consortium.publish(*paths))
        harness.approve(studies)
        for (variant, _), study in zip(names[: len(fresh)], studies, strict=False):
            self._undisturbed(harness, study, variant)
        for done, (seed, study) in enumerate(zip(seeds, studies[len(fresh) :], strict=True), start=1):
            if self._one(harness, seed, study):
                return done
        return len(seeds)

    def _undisturbed(self, harness: Harness, study: str, variant: Variant) -> None:
        assert self.replay is not None
        ran = run_study(harness, study, variant, [])
        if not ran.problems:
            expected = self.reference.spent.setdefault(variant, spent_in(harness, study))
            ran.problems += check(harness, ran, expected)
            check_model(harness, ran, self.replay)
        if ran.problems:
            raise SystemExit(f"An undisturbed study ({variant}) is not as it must be: {ran.problems}")
        self.reference.seconds[variant] = min(ran.seconds, self.reference.seconds.get(variant, ran.seconds))
        print(f"undisturbed, {variant}: {ran.seconds:.1f} s", flush=True)

    def _one(self, harness: Harness, seed: int, study: str) -> bool:
        """Run one scenario; return whether the consortium must be made anew."""
        assert self.replay is not None
        variant = variant_of(seed)
        faults = draw_faults(seed)
        print(f"seed {seed}, {variant}:", flush=True)
        for fault in faults:
            print(f"    at {fault.at:4.1f} s for {fault.lasts:4.1f} s  {fault.kind}: {fault.what}", flush=True)
        ran = run_study(harness, study, variant, faults)
        model = "none"
        if not ran.problems:
            ran.problems += check(harness, ran, self.reference.spent[variant])
            model = check_model(harness, ran, self.replay)
        self.results.append(Result(seed, ran, model))
        said = "; ".join(ran.problems) or "ok"
        print(
            f"    {ran.seconds:.1f} s, {ran.recovery_seconds:.1f} s after the last fault; model against {model}: {said}",
            flush=True,
        )
        return bool(ran.problems)

    def _look_into_logs(self, harness: Harness) -> None:
        """Count the exceptions that parties' processes died of or logged: to be looked at, not forbidden."""
        for party in PARTIES:
            text = (harness.consortium.folder / "logs" / f"{party}.log").read_text(errors="replace")
            self.noise.update(re.findall(r"^(\[\w+\] \w+(?:\.\w+)*(?:Error|Exception|Timeout)\b.{0,100})", text, re.M))

    def _keep(self, harness: Harness, seed: int, *, whole: bool) -> None:
        """Keep the logs of a consortium, or all of it."""
        source = harness.consortium.folder if whole else harness.consortium.folder / "logs"
        place = self.folder / f"{'failed' if whole else 'logs'}-{seed}"
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("ballast", "*.sock"))
        print(f"    kept in {place}", flush=True)


def table(results: Sequence[Result]) -> str:
    """Return by kind of fault what came of the scenarios in which one struck, as Markdown."""
    lines = ["| kind | scenarios | passed | recovery, s: median | longest |", "|---|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        found = [one.ran for one in results if one.ran.faults and kind in (*one.ran.faults, "all")]
        if found:
            recovery = [one.recovery_seconds for one in found]
            passed = sum(not one.problems for one in found)
            cells = (kind, len(found), passed, f"{statistics.median(recovery):.0f}", f"{max(recovery):.0f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run what the environment asks for; return 1 if an invariant does not hold."""
    parser = argparse.ArgumentParser(description="Studies under faults on real processes.")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("ECHOFED_FAULT_SEED", "0")))
    parser.add_argument("--scenarios", type=int, default=int(os.environ.get("ECHOFED_FAULTS", "220")))
    parser.add_argument("--folder", type=Path, help="for everything, kept; else a temporary one")
    given = parser.parse_args()
    if os.geteuid():
        print("This needs root: it makes network namespaces and small disks for the parties.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is undone then, too
    started = time.monotonic()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="echofed-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, range(given.seed, given.seed + given.scenarios), keep=given.folder is not None)
    try:
        run.all()
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        if run.results:
            print(table(run.results))
        for line, times in run.noise.most_common(40):
            print(f"{times:5d}  {line}")
    failed = [one.seed for one in run.results if one.ran.problems]
    checked = Counter(one.model for one in run.results)
    spared = sum(not one.ran.faults for one in run.results)
    print(f"{len(run.results)} scenarios, {len(failed)} failed {failed or ''}; models against: {dict(checked)}")
    print(f"In {spared} the study was over before a fault struck; the table leaves them out.")
    undisturbed = {variant: round(seconds, 1) for variant, seconds in run.reference.seconds.items()}
    print(f"undisturbed, s: {undisturbed}; in all {(time.monotonic() - started) / 60:.0f} min")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
