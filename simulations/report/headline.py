"""The head of the report: what was found, for whom, under which protection."""

from collections.abc import Iterator

from echofed.simulations.report.forest import decimals_of
from echofed.simulations.report.results import Results
from echofed.simulations.report.wording import MISSING, counted, data_size, duration, fixed, interval, number, text

WEAK_EPSILON = 10
SPLIT_NAMES = {"training": "train", "validation": "val.", "test": "test"}


def headline(results: Results) -> str:
    """Return title, result in one sentence, banners and tiles."""
    return (
        f'<header>\n<p class="kicker">{text(_kind_of_run(results))}</p>\n<h1>{text(results.title)}</h1>\n'
        f'<p class="finding">{_finding(results)}</p>\n'
        f"{_protection(results)}\n{''.join(_notes(results))}\n"
        f'<dl class="tiles">{"".join(_tiles(results))}</dl>\n</header>'
    )


def _kind_of_run(results: Results) -> str:
    run = "Federated simulation" if results.simulated else "Federated study"
    return f"EchoFed · {run}" + (" on phantoms" if results.phantoms else "")


def _finding(results: Results) -> str:
    pooled, decimals = results.test.pooled, decimals_of(results)
    people = "simulated patient" if results.phantoms else "patient"
    sites = counted(len(results.active_sites), "site")
    if pooled.metric is None:
        why = "no patient was kept for testing" if not results.pooled.patients else "the test patients do not allow it"
        return (
            f"One model was trained across {sites} and {counted(results.patients(), people)}; its "
            f"{text(results.metric_name)} cannot be given, because {why}."
        )
    bounds = interval(pooled.interval, decimals)
    brackets = "" if bounds == MISSING else f" (95% confidence interval {bounds})"
    article = "an" if results.metric == "auc" else "a"
    return (
        f"One model, trained across {sites} and {counted(results.patients(), people)} without sharing an image, "
        f"reached {article} {text(results.metric_name)} of "
        f"<strong>{fixed(pooled.metric, decimals)}</strong>{_of_what(results)}{brackets} on "
        f"{counted(pooled.patients, people)} it had never seen."
    )


def _of_what(results: Results) -> str:
    return f" ({text(results.labels[0])})" if results.study.task.kind == "regression" else ""


def _banner(colour: str, strong: str, rest: str) -> str:
    return f'<p class="banner {colour}"><strong>{text(strong)}</strong> {text(rest)}</p>\n'


def _protection(results: Results) -> str:
    if not results.private:
        return _banner(
            "red",
            "Trained without privacy.",
            "The model may remember single patients. Images were not shared, but nothing limits what the model itself "
            "could reveal: treat it like patient data and do not share it outside the sites.",
        )
    if not _spent(results):
        return _banner(
            "amber", "Privacy not on record.", "The study asks for privacy, but no site's spending is known."
        )
    return _banner(
        "green",
        f"Patient-level differential privacy, {_epsilons(results)}.",
        "Each site added noise before anything left it; ε limits how much the model can depend on any one patient.",
    )


def _spent(results: Results) -> list[float]:
    return [s.spent.epsilon for s in results.active_sites if s.spent is not None and s.spent.epsilon is not None]


def _epsilons(results: Results) -> str:
    low, high = number(min(_spent(results))), number(max(_spent(results)))
    deltas = [s.spent.delta for s in results.active_sites if s.spent is not None and s.spent.delta is not None]
    delta = f", δ up to {number(max(deltas), 2)}" if deltas else ""
    return f"ε {low}{delta}" if low == high else f"ε {low} to {high} by site{delta}"


def _notes(results: Results) -> Iterator[str]:
    if results.simulated and results.dp_noise_seeded and results.private:
        yield _banner(
            "amber",
            "Simulated noise.",
            "The privacy noise was drawn from a seed so that this run can be repeated. Whoever knows the seed can "
            "remove it: the ε shown is what hospitals would spend, and does not protect this model.",
        )
    elif results.simulated:
        yield _banner("amber", "Simulation.", "All sites ran on one machine, which saw all the data.")
    if results.private and max(_spent(results), default=0) > WEAK_EPSILON:
        yield _banner("amber", "Weak privacy.", f"Above ε {WEAK_EPSILON}, the guarantee says little about one patient.")
    if not results.completed:
        done = max((r.round_number for r in results.rounds), default=0)
        planned = results.study.federation.rounds
        yield _banner(
            "amber",
            "Not finished.",
            f"The run stopped after round {done} of {planned}; what follows describes the run so far.",
        )
    out = [site.name for site in results.sites if site.left_out is not None]
    if out:
        yield _banner("amber", f"{counted(len(out), 'site')} left out.", "See “Left out and refused” for each reason.")


def _tiles(results: Results) -> Iterator[str]:
    pooled, decimals = results.test.pooled, decimals_of(results)

    def tile(name: str, value: str, below: str) -> str:
        return f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd class=below>{text(below)}</dd></div>"

    bounds = interval(pooled.interval, decimals)
    name = results.metric_name
    yield tile(
        name[0].upper() + name[1:], fixed(pooled.metric, decimals), "" if bounds == MISSING else f"95% CI {bounds}"
    )
    yield tile("Sites", f"{len(results.active_sites)}", f"of {len(results.sites)} invited")
    splits = ", ".join(f"{results.patients(split):,} {name}" for split, name in SPLIT_NAMES.items())
    yield tile(
        "Phantom patients" if results.phantoms else "Patients",
        f"{results.patients():,}",
        splits,
    )
    yield tile("Privacy", _largest_epsilon(results), "largest, per patient" if results.private else "no guarantee")
    done = max((r.round_number for r in results.rounds), default=0)
    yield tile("Rounds", f"{done}", f"best: {results.best_round}" if results.best_round else "")
    yield tile(
        "Traffic", data_size(sum(r.bytes_down + r.bytes_up for r in results.rounds)), f"in {duration(results.seconds)}"
    )


def _largest_epsilon(results: Results) -> str:
    if not results.private:
        return "none"
    return f"ε {number(max(_spent(results)))}" if _spent(results) else MISSING
