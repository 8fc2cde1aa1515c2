"""The report of a run, from synthetic results of every kind of task."""

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.learning.metrics import metric as measure
from echofed.protocol.errors import RunError
from echofed.protocol.study import METRIC_OF_TASK, Task, TaskKind
from echofed.simulations.report import write_figures, write_report, write_report_of_file
from echofed.simulations.report.evidence import calibration, operating_points, rates_at_half
from echofed.simulations.report.results import read_results
from echofed.simulations.report.wording import number

Results = dict[str, Any]
KINDS: tuple[TaskKind, ...] = ("binary", "multiclass", "multilabel", "segmentation", "regression")
LABELS: dict[TaskKind, list[str]] = {
    "binary": ["benign", "malignant"],
    "multiclass": ["cyst", "fibroadenoma", "carcinoma", "other"],
    "multilabel": ["mass", "calcification", "shadowing"],
    "segmentation": ["lesion"],
    "regression": ["diameter_mm"],
}
SCANNERS = ("GE Logiq 7", "Philips iU22", "Siemens Acuson", "Toshiba Aplio", "Hospital of Białystok")


def study_document(kind: TaskKind, private: bool, rounds: int, title: str) -> dict[str, Any]:
    task: dict[str, Any] = {"kind": kind, "labels": LABELS[kind]}
    if kind == "regression":
        task["value_range"] = [2.0, 60.0]
    model = {"name": "basic_unet"} if kind == "segmentation" else {"name": "scattering"}
    privacy = {"unit": "patient", "epsilon": 3.0, "clipping_norm": 1.0} if private else {"unit": "none"}
    return {
        "schema_version": 1,
        "title": title,
        "purpose": "To tell harmless from harmful lumps in ultrasound images.",
        "contact": "Dr. Ada Example, ada@example.org",
        "task": task,
        "model": model,
        "training": {"learning_rate": 0.5, "local_steps": 5, "sampling_probability": 0.2},
        "privacy": privacy,
        "federation": {"rounds": rounds},
    }


def predictions(kind: TaskKind, patients: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    outputs = len(LABELS[kind])
    if kind == "binary":
        target = (rng.random((patients, 1)) < 0.35).astype(float)
        return target, 1 / (1 + np.exp(-(rng.normal(size=(patients, 1)) + 2.4 * target - 1.3)))
    if kind == "multiclass":
        target = rng.integers(outputs, size=(patients, 1)).astype(float)
        logits = rng.normal(size=(patients, outputs)) + 1.5 * (target == np.arange(outputs))
        return target, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if kind == "multilabel":
        target = (rng.random((patients, outputs)) < 0.3).astype(float)
        return target, 1 / (1 + np.exp(-(rng.normal(size=(patients, outputs)) + 1.8 * target - 1)))
    if kind == "segmentation":
        return np.empty((patients, 0)), rng.beta(8, 2, size=(patients, 1))
    target = rng.uniform(5, 50, size=(patients, 1))
    return target, target + rng.normal(1, 4, size=(patients, 1))


def measured(kind: TaskKind, target: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    if kind == "regression":
        value: float | None = float(np.abs(score - target).mean()) if len(score) else None
    else:
        value = measure(Task(kind=kind, labels=tuple(LABELS[kind])), score, target)
    spread = 0.9 / np.sqrt(max(len(score), 1)) * (10 if kind == "regression" else 1)
    interval = (
        None if value is None else [value - spread, value + spread if kind == "regression" else min(1, value + spread)]
    )
    return {"metric": value, "interval": interval, "patients": len(score)}


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def sample(kind: TaskKind, site: str, rng: np.random.Generator) -> dict[str, Any]:
    y, x = np.mgrid[:64, :64]
    inside = (x - 32 - rng.integers(-8, 8)) ** 2 / 2 + (y - 32) ** 2 < rng.integers(90, 220)
    image = np.clip(rng.gamma(3, 30, size=(64, 64)) * np.where(inside, 0.35, 1), 0, 255)
    target, score = predictions(kind, 1, rng)
    outlined = kind == "segmentation"
    return {
        "site": site,
        "image": png(image),
        "target": target[0].tolist(),
        "score": score[0].tolist(),
        "mask": png(inside * 255) if outlined else None,
        "prediction": png(np.roll(inside, 3, axis=1) * 255) if outlined else None,
    }


def site_of(kind: TaskKind, name: str, test: int, private: bool, rng: np.random.Generator) -> dict[str, Any]:
    training = int(rng.integers(60, 320))
    labels = {} if kind in ("segmentation", "regression") else LABELS[kind]
    return {
        "name": name,
        "patients": {"training": training, "validation": training // 5, "test": test},
        "images": {"training": training * 2, "validation": training // 4, "test": test * 2},
        "labels": {
            label: {"patients": training // (i + 2), "images": training // (i + 1)} for i, label in enumerate(labels)
        },
        "quarantined": {"unreadable": 2, "duplicate": int(rng.integers(9))},
        "left_out": None,
        "spent": {"epsilon": 2.6 + 0.3 * rng.random(), "delta": 0.1 / training, "noise_multiplier": 1.9}
        if private
        else None,
        "sampling_probability": 0.2,
    }


def round_of(number: int, rounds: int, names: list[str], private: bool, rng: np.random.Generator) -> dict[str, Any]:
    progress = 1 - np.exp(-4 * number / rounds)
    metric = {
        name: 0.55 + 0.25 * progress + 0.03 * i / len(names) + rng.normal(0, 0.012) for i, name in enumerate(names)
    }
    loss = {name: 0.7 - 0.25 * progress + rng.normal(0, 0.01) for name in names}
    return {
        "round_number": number,
        "attempt": 1,
        "seconds": 1.1 + rng.random() / 3,
        "bytes_down": 218_000 * len(names),
        "bytes_up": 214_000 * len(names),
        "replied": names,
        "refused": {names[-1]: "update is not finite"} if number == 3 else {},
        "training_loss": dict.fromkeys(names) if private else loss,
        "validation": {name: {"metric": metric[name], "loss": loss[name], "patients": 20} for name in names},
        "validation_metric": float(np.mean(list(metric.values()))),
        "validation_loss": float(np.mean(list(loss.values()))),
        "epsilon": {n: 2.8 * np.sqrt(number / rounds) * (1 - 0.02 * (i % 7)) for i, n in enumerate(names)}
        if private
        else {},
    }


def synthetic_results(
    kind: TaskKind = "binary",
    *,
    names: tuple[str, ...] = SCANNERS,
    rounds: int = 30,
    test_patients: int = 60,
    private: bool = True,
    title: str = "Malignant or benign? Breast ultrasound across five centres",
) -> Results:
    """The results of a run that never was, all of it drawn from a fixed seed."""
    rng = np.random.default_rng(7)
    study = study_document(kind, private, rounds, title)
    per_site = {
        name: predictions(kind, max(test_patients - 9 * (i % 5), 0) if test_patients else 0, rng)
        for i, name in enumerate(names)
    }
    target = np.concatenate([t for t, _ in per_site.values()])
    score = np.concatenate([s for _, s in per_site.values()])
    pooled = measured(kind, target, score)
    shift = 0.8 if kind == "regression" else -0.04
    others = ["All data in one place", *(f"Only {name}" for name in names)] if pooled["metric"] is not None else []
    return {
        "format": 1,
        "title": title,
        "study": study,
        "study_yaml": f"schema_version: 1\ntitle: {title}\n# what is learned\ntask:\n  kind: {kind}\n",
        "study_hash": "8c" * 32,
        "seed": 20,
        "simulated": True,
        "phantoms": False,
        "started_at": "2026-11-22T09:30:00+00:00",
        "seconds": 74.2,
        "workers": 2,
        "versions": {"echofed": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "machine": "2 cores, 8 GB",
        "private": private,
        "dp_noise_seeded": private,
        "metric": METRIC_OF_TASK[kind],
        "best_round": max(1, rounds * 4 // 5),
        "completed": True,
        "sites": [site_of(kind, name, len(per_site[name][1]), private, rng) for name in names],
        "rounds": [round_of(number, rounds, list(names), private, rng) for number in range(1, rounds + 1)],
        "test": {
            "unit": "patient",
            "labels": LABELS[kind],
            "predictions": {
                n: {"patient": list(range(len(s))), "target": t.tolist(), "score": s.tolist()}
                for n, (t, s) in per_site.items()
            },
            "pooled": pooled,
            "per_site": {name: measured(kind, *answers) for name, answers in per_site.items()},
        },
        "comparisons": [
            {
                "name": n,
                "metric": pooled["metric"] + shift * i / 2,
                "interval": [b + shift * i / 2 for b in pooled["interval"]],
            }
            for i, n in enumerate(others)
        ],
        "samples": [],
    }


VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = """<script>alert('x')</script> "quoted" & $\\frac{$ \x00"""


class Page(HTMLParser):
    """Reads a page strictly: every element closed, in order, and no identifier twice."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.open, self.elements, self.words = source, [], [], []  # type: ignore[var-annotated]
        self.feed(source)
        self.close()
        assert self.open == []
        identifiers = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of_class(self, name: str) -> int:
        return sum(name in attributes.get("class", "").split() for _, attributes in self.elements)

    @property
    def figures(self) -> set[str]:
        return {attributes["id"] for tag, attributes in self.elements if tag == "figure"}


def page_of(results: Results, folder: Path) -> Page:
    write_report(results, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


ALWAYS = {"test-by-site", "comparison", "learning-curves", "privacy-budget", "traffic-and-time"}
OF_KIND = {
    "binary": {"roc", "calibration", "confusion"},
    "multiclass": {"roc", "calibration", "confusion", "test-by-label"},
    "multilabel": {"roc", "calibration", "test-by-label"},
    "segmentation": {"dice-by-site"},
    "regression": {"scatter", "bland-altman"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_gets_its_figures_and_its_numbers(kind: TaskKind, tmp_path: Path) -> None:
    results = synthetic_results(kind)
    page = page_of(results, tmp_path)
    assert page.figures == ALWAYS | OF_KIND[kind]
    pooled = results["test"]["pooled"]
    assert f"{pooled['metric']:.2f}" in page.text
    assert f"95% confidence interval {pooled['interval'][0]:.2f} to {pooled['interval'][1]:.2f}" in page.text
    assert f"{pooled['patients']} patients it had never seen" in page.text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    captions = sum(tag == "figcaption" for tag, _ in page.elements)
    assert captions == len(page.figures)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_from_elsewhere(kind: TaskKind, tmp_path: Path) -> None:
    results = synthetic_results(kind)
    results["phantoms"] = True
    results["samples"] = [sample(kind, SCANNERS[0], np.random.default_rng(i)) for i in range(3)]
    page = page_of(results, tmp_path)
    assert "samples" in page.figures
    assert "//" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=\s]+", "", page.source)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    assert "@import" not in page.source
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_letters_in_figures_are_text(tmp_path: Path) -> None:
    page = page_of(synthetic_results(), tmp_path)
    assert sum(tag == "text" for tag, _ in page.elements) > 50
    assert re.search(r"<text[^>]*>GE Logiq 7: 0\.\d\d", page.source)


@pytest.mark.parametrize("private", [True, False])
def test_red_if_and_only_if_trained_without_privacy(private: bool, tmp_path: Path) -> None:
    page = page_of(synthetic_results(private=private), tmp_path)
    assert page.of_class("red") == (not private)
    assert page.of_class("green") == private
    assert ("Trained without privacy." in page.text) == (not private)
    assert ("Simulated noise." in page.text) == private
    assert ("privacy-budget" in page.figures) == private
    assert page.of_class("amber") == 1


def test_the_privacy_badge_gives_the_range_over_sites(tmp_path: Path) -> None:
    results = synthetic_results()
    for site, epsilon in zip(results["sites"], (1.25, 2.0, 2.5, 2.9, 2.99), strict=True):
        site["spent"] = {"epsilon": epsilon, "delta": 2e-4, "noise_multiplier": 1.9}
    assert "ε 1.25 to 2.99 by site, δ up to 2 × 10⁻⁴." in page_of(results, tmp_path).text
    results["sites"][0]["spent"]["epsilon"] = 40.0
    assert "Weak privacy." in page_of(results, tmp_path).text
    for site in results["sites"]:
        site["spent"] = None
    page = page_of(results, tmp_path)
    assert "Privacy not on record." in page.text
    assert page.of_class("green") == 0


def test_results_that_contradict_their_study_on_privacy_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="private does not agree with the study"):
        write_report({**synthetic_results(private=False), "private": True}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_nothing_from_the_data_becomes_markup(tmp_path: Path) -> None:
    results = synthetic_results(names=(HOSTILE, "_hidden", "病院", "</svg><b>"), title=HOSTILE.replace("\x00", ""))
    for key in ("study_yaml", "machine", "started_at", "study_hash"):
        results[key] = HOSTILE
    results["versions"] = {HOSTILE: HOSTILE}
    results["sites"][0]["quarantined"] = {HOSTILE: 3}
    results["sites"][1]["left_out"] = HOSTILE
    results["rounds"][1]["refused"] = {HOSTILE: HOSTILE}
    results["comparisons"][0].update(name=HOSTILE, note=HOSTILE, metric=None, interval=None)
    results["test"]["labels"] = [HOSTILE, "</title>"]
    results["sites"][0]["labels"] = {HOSTILE: {"patients": 1, "images": 1}}
    page = page_of(results, tmp_path)
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert "<script" not in page.source
    assert "\x00" not in page.source
    assert page.text.count("<script>alert('x')</script>") > 8
    assert all("病院" in name for name in re.findall(r"<text[^>]*>(.院[^<]*)", page.source))


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    results = synthetic_results("segmentation", names=SCANNERS[:2], rounds=3)
    no_comparisons(results)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_report(results, folder / "report.html")
        write_figures(results, folder / "figures")
        written.append({file.name: file.read_bytes() for file in folder.rglob("*.*")})
        write_report(synthetic_results("regression"), tmp_path / "between.html")
    assert written[0] == written[1]


def one_class_only(results: Results) -> None:
    for part in results["test"]["predictions"].values():
        part["target"] = [[0.0]] * len(part["target"])
    results["test"]["pooled"].update(metric=None, interval=None)
    for value in results["test"]["per_site"].values():
        value.update(metric=None, interval=None)


def site_without_a_metric(results: Results) -> None:
    name = results["sites"][0]["name"]
    results["test"]["per_site"][name] = {"metric": None, "interval": None, "patients": 1}
    for one in results["rounds"]:
        one["validation"][name]["metric"] = None


def no_comparisons(results: Results) -> None:
    results["comparisons"] = []


def no_rounds(results: Results) -> None:
    results.update(rounds=[], best_round=0, completed=False)


def no_validation(results: Results) -> None:
    for one in results["rounds"]:
        one.update(validation={}, validation_metric=None, validation_loss=None)


def everyone_left_out(results: Results) -> None:
    for site in results["sites"]:
        site["left_out"] = "fewer than 10 usable patients"
    results["test"].update(predictions={}, per_site={}, pooled=None)
    results.update(rounds=[], comparisons=[])


def only_what_is_required(results: Results) -> None:
    for key in set(results) - {"format", "title", "study", "private", "metric"}:
        del results[key]


def not_a_number(results: Results) -> None:
    results["test"]["pooled"].update(metric=float("nan"), interval=[float("nan"), float("inf")])


@pytest.mark.parametrize(
    ("spoil", "words", "absent"),
    [
        (one_class_only, "the test patients do not allow it", {"roc"}),
        (site_without_a_metric, "cannot be computed", set()),
        (no_comparisons, "95% confidence interval", {"comparison"}),
        (no_rounds, "No round was completed.", {"learning-curves", "traffic-and-time", "privacy-budget"}),
        (no_validation, "95% confidence interval", {"learning-curves"}),
        (everyone_left_out, "fewer than 10 usable patients", {"roc", "test-by-site", "comparison"}),
        (only_what_is_required, "there is no final test", {"roc", "test-by-site", "comparison"}),
        (not_a_number, "cannot be given", set()),
    ],
)
def test_what_is_missing_is_said_and_left_out(
    spoil: Callable[[Results], None], words: str, absent: set[str], tmp_path: Path
) -> None:
    results = synthetic_results()
    spoil(results)
    page = page_of(results, tmp_path)
    assert words in page.text
    assert not absent & page.figures
    assert "nan" not in page.text.lower().split()


def test_a_study_without_test_patients(tmp_path: Path) -> None:
    page = page_of(synthetic_results(test_patients=0), tmp_path)
    assert "because no patient was kept for testing" in page.text
    assert page.figures == {"learning-curves", "privacy-budget", "traffic-and-time"}


def test_one_site_and_one_round(tmp_path: Path) -> None:
    page = page_of(synthetic_results(names=("Alone",), rounds=1), tmp_path)
    assert "across 1 site and" in page.text
    assert "test-by-site" not in page.figures
    assert "learning-curves" in page.figures


def test_many_sites_and_rounds_stay_legible(tmp_path: Path) -> None:
    names = tuple(f"Hospital {i + 1:02d}" for i in range(46))
    page = page_of(synthetic_results(names=names, rounds=300, private=False), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    drawings = [part.split("</figure>")[0] for part in page.source.split("<figure")]
    curves = next(part for part in drawings if 'id="learning-curves"' in part)
    assert "Hospital" not in curves
    assert "each site" in curves
    assert "all sites" in curves
    assert all(name in next(part for part in drawings if 'id="test-by-site"' in part) for name in names)


def test_a_site_keeps_its_colour_where_another_has_nothing_to_show(tmp_path: Path) -> None:
    results = synthetic_results(private=False)
    site_without_a_metric(results)
    source = page_of(results, tmp_path).source
    curves = next(part for part in source.split("<figure") if 'id="learning-curves"' in part).split("</figure>")[0]
    # Vermillion: the second site's lines in both panels and in the legend, though the first has no metric.
    assert len(re.findall(r"<path[^>]*stroke: #d55e00", curves)) == 3
    assert curves.count(">GE Logiq 7<") == 1


def test_a_private_report_shows_what_the_coordinator_is_told(tmp_path: Path) -> None:
    results = synthetic_results()
    for one in results["rounds"]:
        one["validation"] = {}
        due = one["round_number"] % 10 == 0
        one |= {
            "validation_metric": 0.8 if due else None,
            "validation_noise": 0.03 if due else None,
            "validation_loss": None,
        }
    results["told"] = {
        "round_number": 30,
        "metric": 0.8,
        "noise": 0.03,
        "calibration": [[0.2, 0.25, 40.0], [0.8, 0.7, 33.1]],
    }
    page = page_of(results, tmp_path)
    assert "with noise that hides each" in page.text
    assert "Orange squares" in page.text
    curves = next(part for part in page.source.split("<figure") if 'id="learning-curves"' in part)
    assert "with privacy noise" in curves


def test_trouble_is_counted(tmp_path: Path) -> None:
    results = synthetic_results()
    results["sites"][2]["left_out"] = "no usable patient"
    for round_index in (4, 5, 8):
        results["rounds"][round_index]["refused"] = {SCANNERS[0]: "took too long"}
    results["sites"][0]["quarantined"] = {"unreadable": 1234, "duplicate": 0}
    results["completed"] = False
    text = page_of(results, tmp_path).text
    assert "Siemens Acuson no usable patient" in text
    assert "GE Logiq 7 took too long 3 5 to 9" in text
    assert "GE Logiq 7 unreadable 1,234" in text
    assert "GE Logiq 7 duplicate" not in text
    assert "The run stopped after round 30 of 30" in text
    assert "Sites 4 of 5 invited" in text


def test_samples_are_shown_of_phantoms_only(tmp_path: Path) -> None:
    results = synthetic_results("segmentation")
    results["samples"] = [sample("segmentation", SCANNERS[0], np.random.default_rng(0))]
    page = page_of(results, tmp_path)
    assert "samples" not in page.figures
    assert "data:image" not in page.source
    results["phantoms"] = True
    results["samples"][0]["image"] = base64.b64encode(b"GIF89a").decode()
    with pytest.raises(RunError, match="not a PNG"):
        page_of(results, tmp_path)


def test_rates_and_operating_points_by_hand() -> None:
    results = synthetic_results(names=("A",))
    results["test"]["predictions"] = {
        "A": {"target": [[1], [1], [0], [0], [0]], "score": [[0.9], [0.5], [0.6], [0.2], [0.1]]}
    }
    read = read_results(results)
    rates = {rate.name: (rate.hits, rate.of) for rate in rates_at_half(read)}
    assert rates == {
        "Sensitivity": (2, 2),
        "Specificity": (2, 3),
        "Positive predictive value": (2, 3),
        "Negative predictive value": (2, 2),
    }
    # Wilson (1927) for 2 of 3.
    assert rates_at_half(read)[1].low == pytest.approx(0.2077, abs=1e-4)
    assert [point.sensitivity for point in operating_points(read)] == [0.5, 0.5, 0.5]
    measured_calibration = calibration(read)
    assert measured_calibration is not None
    assert measured_calibration.error == pytest.approx((0.1 + 0.5 + 0.6 + 0.2 + 0.1) / 5)
    assert measured_calibration.brier == pytest.approx((0.01 + 0.25 + 0.36 + 0.04 + 0.01) / 5)


@pytest.mark.parametrize("kind", ["multiclass", "segmentation"])
def test_figures_for_publication(kind: TaskKind, tmp_path: Path) -> None:
    files = write_figures(synthetic_results(kind), tmp_path / "deep" / "figures")
    assert {file.stem for file in files} == ALWAYS | OF_KIND[kind]
    assert sorted(files) == sorted((tmp_path / "deep" / "figures").iterdir())
    for file in files:
        if file.suffix == ".pdf":
            assert file.read_bytes().startswith(b"%PDF-")
            continue
        drawing = file.read_text(encoding="utf-8")
        width = re.search(r'width="([\d.]+)pt"', drawing)
        assert width is not None
        assert float(width[1]) in (3.5 * 72, 7 * 72)
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", drawing)]
        assert sizes
        assert min(sizes) >= 7


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = deepcopy(dict(matplotlib.rcParams))
    write_report(synthetic_results(), tmp_path / "report.html")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_to_draw() -> None:
    look = "import sys, echofed.simulations.report; print(sorted({'matplotlib', 'PIL', 'torch'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def too_few_outputs(results: Results) -> None:
    results["test"]["predictions"][SCANNERS[0]]["score"][0] = []


def unknown_class(results: Results) -> None:
    results["test"]["predictions"][SCANNERS[0]]["target"][0] = [2.0]


def another_format(results: Results) -> None:
    results["format"] = 2


def no_study(results: Results) -> None:
    del results["study"]


@pytest.mark.parametrize("spoil", [too_few_outputs, unknown_class, another_format, no_study])
def test_results_that_cannot_be_trusted_are_refused(spoil: Callable[[Results], None], tmp_path: Path) -> None:
    results = synthetic_results()
    spoil(results)
    with pytest.raises(RunError, match="not the results of a run"):
        write_report(results, tmp_path / "report.html")


def test_from_a_file(tmp_path: Path) -> None:
    results = synthetic_results("regression")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    write_report_of_file(tmp_path / "results.json", tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).source == page_of(results, tmp_path).source
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    for missing in ("results.json", "nowhere.json"):
        with pytest.raises(RunError, match="cannot be read"):
            write_report_of_file(tmp_path / missing, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.0, "0"),
        (2.8163, "2.82"),
        (-6.057, "−6.06"),
        (1e-5, "1.0 × 10⁻⁵"),
        (1234.0, "1,234"),
        (123456.0, "123,456"),
    ],
)
def test_numbers_as_people_read_them(value: float | None, words: str) -> None:
    assert number(value) == words
