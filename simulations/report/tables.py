"""The tables of a report."""

import json
from collections import defaultdict
from statistics import median

from echofed.simulations.report.evidence import class_rates, label_rates, operating_points, rates_at_half
from echofed.simulations.report.results import SPLITS, Results
from echofed.simulations.report.wording import (
    MISSING,
    counted,
    data_size,
    duration,
    facts,
    number,
    table,
    text,
)

LABEL_COLUMNS = 6  # beyond, labels get a table of their own


def rates_table(results: Results) -> str:
    """Sensitivity, specificity and predictive values; per finding when there are several."""
    if results.study.task.kind == "binary" and (rates := rates_at_half(results)):
        rows = [(r.name, f"{r.hits:,} of {r.of:,}", f"{r.value:.0%}", f"{r.low:.0%} to {r.high:.0%}") for r in rates]
        first = table(
            ("", "Patients", "Rate", "95% confidence interval"),
            rows,
            f"With the limit at a probability of 0.5, fixed in advance, for “{results.labels[1]}”. Intervals: Wilson "
            "(1927).",
        )
        points = [
            (f"{p.specificity:.0%}", f"{p.sensitivity:.0%}", _percents(p.interval)) for p in operating_points(results)
        ]
        return first + table(
            ("At this specificity", "the sensitivity is", "95% confidence interval"),
            points,
            "Read off the ROC curve of the test patients: what a limit could reach, not a limit to use.",
        )
    if results.study.task.kind == "multilabel" and (findings := label_rates(results)):
        return table(
            ("Finding", "Patients with it", "Sensitivity at 0.5", "Specificity at 0.5"),
            [(f.name, f"{f.positives:,}", _percent(f.sensitivity), _percent(f.specificity)) for f in findings],
            "Each finding over the test patients of all sites; the limit of 0.5 was fixed in advance.",
        )
    if results.study.task.kind == "multiclass" and (classes := class_rates(results)):
        return table(
            ("Class", "Patients", "Found (sensitivity)", "Right when said"),
            [(c.name, f"{c.positives:,}", _percent(c.sensitivity), _percent(c.predictive_value)) for c in classes],
            "Each class over the test patients of all sites, when the model says the most probable one. Right when "
            "said: positive predictive value.",
        )
    return ""


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _percents(bounds: tuple[float, float] | None) -> str:
    return MISSING if bounds is None else f"{bounds[0]:.0%} to {bounds[1]:.0%}"


def privacy_table(results: Results) -> str:
    """What each site spent, and the settings that follow from."""
    if not results.private:
        return ""
    rows = [
        (
            site.name,
            number(site.sampling_probability),
            number(site.spent.noise_multiplier if site.spent else None),
            number(site.spent.epsilon if site.spent else None),
            number(site.spent.delta if site.spent else None, 2),
        )
        for site in results.active_sites
    ]
    privacy = results.study.privacy
    return table(
        ("Site", "Sampling probability", "Noise multiplier", "ε spent", "δ"),
        rows,
        "Privacy at each site, for adding or removing one patient with all images. Limit of the study: ε "
        f"{number(privacy.epsilon)}; clipping norm "
        f"{number(privacy.clipping_norm)}.",
    )


def data_table(results: Results) -> str:
    """Patients and images by site and split, and patients by label."""
    labels = list(dict.fromkeys(label for site in results.active_sites for label in site.labels))
    shown = labels if len(labels) <= LABEL_COLUMNS else []
    head = ("Site", "Training", "Validation", "Test", "Images", *shown)
    rows = [
        (
            site.name,
            *(f"{site.patients.get(split, 0):,}" for split in SPLITS),
            f"{sum(site.images.values()):,}",
            *(f"{site.labels[label].patients:,}" if label in site.labels else MISSING for label in shown),
        )
        for site in results.active_sites
    ]
    if len(rows) > 1:
        rows.append(("All sites", *(_total([row[column] for row in rows]) for column in range(1, len(head)))))
    first = table(
        head,
        rows,
        "Patients by split, images, and patients by label. No patient is in two splits.",
        total=len(rows) > 1,
    )
    if shown or not labels:
        return first
    counts = [
        (
            label,
            *(
                f"{sum(getattr(s.labels[label], what) for s in results.active_sites if label in s.labels):,}"
                for what in ("patients", "images")
            ),
        )
        for label in labels
    ]
    return first + table(("Label", "Patients", "Images"), counts, "Labels over all sites.")


def _total(cells: list[str]) -> str:
    return f"{sum(int(cell.replace(',', '')) for cell in cells if cell != MISSING):,}"


def troubles(results: Results) -> str:
    """Sites left out, replies refused, rows quarantined."""
    parts = []
    out = [(site.name, site.left_out) for site in results.sites if site.left_out is not None]
    if out:
        parts.append(table(("Site", "Why it was left out"), out, "Sites that did not take part.", numeric_from=2))
    refused: dict[tuple[str, str], list[int]] = defaultdict(list)
    for r in results.rounds:
        for site, reason in r.refused.items():
            refused[site, reason].append(r.round_number)
    if refused:
        rows = [(site, reason, f"{len(rounds):,}", _span(rounds)) for (site, reason), rounds in refused.items()]
        parts.append(
            table(
                ("Site", "Reason", "Replies", "Rounds"),
                rows,
                "Replies refused; the round went on without them.",
                numeric_from=2,
            )
        )
    bad = [
        (site.name, reason, f"{count:,}")
        for site in results.sites
        for reason, count in site.quarantined.items()
        if count
    ]
    if bad:
        parts.append(
            table(
                ("Site", "Reason", "Rows"),
                bad,
                "Quarantined when the data were registered; never trained on.",
                numeric_from=2,
            )
        )
    return "".join(parts) or "<p>Every site took part, no reply was refused and no row was quarantined.</p>"


def _span(rounds: list[int]) -> str:
    return f"{min(rounds)}" if min(rounds) == max(rounds) else f"{min(rounds)} to {max(rounds)}"


def run_table(results: Results) -> str:
    """Traffic and time in numbers."""
    if not results.rounds:
        return "<p>No round was completed.</p>"
    down, up = sum(r.bytes_down for r in results.rounds), sum(r.bytes_up for r in results.rounds)
    replies = sum(len(r.replied) for r in results.rounds)
    times = [r.seconds for r in results.rounds if r.seconds is not None]
    again = sum(r.attempt > 1 for r in results.rounds)
    rows = [
        ("Rounds", f"{len({r.round_number for r in results.rounds}):,} ({counted(again, 'further attempt')})"),
        ("To the sites", data_size(down)),
        ("From the sites", data_size(up) + (f" ({data_size(up / replies)} a reply)" if replies else "")),
        ("Time of a round, median", duration(median(times)) if times else MISSING),
        ("Time of the slowest round", duration(max(times)) if times else MISSING),
        ("Time in all", duration(results.seconds)),
    ]
    return facts(rows)


def provenance(results: Results) -> str:
    """The study itself, and what is needed to repeat the run."""
    rows = [
        ("Study hash (SHA-256)", results.study_hash or results.study.hash),
        ("Seed", MISSING if results.seed is None else str(results.seed)),
        ("Started", results.started_at or MISSING),
        ("Machine", results.machine or MISSING),
        ("Workers", MISSING if results.workers is None else str(results.workers)),
        *((f"{name} version", version) for name, version in results.versions.items()),
    ]
    document = results.study_yaml or json.dumps(results.study.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return (
        f"{facts(rows)}<details><summary>The study, word for word</summary>\n"
        f"<pre><code>{text(document)}</code></pre></details>"
    )
