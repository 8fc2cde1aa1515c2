"""The report of a run, from synthetic results of every kind of task."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from echofed.learning.metrics import metric as measure
from echofed.protocol.study import METRIC_OF_TASK, Task, TaskKind

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
    interval = None if value is None else [value - spread, value + spread if kind == "regression" else min(1, value + spread)]
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
        "labels": {label: {"patients": training // (i + 2), "images": training // (i + 1)} for i, label in enumerate(labels)},
        "quarantined": {"unreadable": 2, "duplicate": int(rng.integers(9))},
        "left_out": None,
        "spent": {"epsilon": 2.6 + 0.3 * rng.random(), "delta": 0.1 / training, "noise_multiplier": 1.9} if private else None,
        "sampling_probability": 0.2,
    }


def round_of(number: int, rounds: int, names: list[str], private: bool, rng: np.random.Generator) -> dict[str, Any]:
    progress = 1 - np.exp(-4 * number / rounds)
    metric = {name: 0.55 + 0.25 * progress + 0.03 * i / len(names) + rng.normal(0, 0.012) for i, name in enumerate(names)}
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
        "epsilon": {n: 2.8 * np.sqrt(number / rounds) * (1 - 0.02 * (i % 7)) for i, n in enumerate(names)} if private else {},
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
    per_site = {name: predictions(kind, max(test_patients - 9 * (i % 5), 0) if test_patients else 0, rng) for i, name in enumerate(names)}
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
            "predictions": {n: {"patient": list(range(len(s))), "target": t.tolist(), "score": s.tolist()} for n, (t, s) in per_site.items()},
            "pooled": pooled,
            "per_site": {name: measured(kind, *answers) for name, answers in per_site.items()},
        },
        "comparisons": [
            {"name": n, "metric": pooled["metric"] + shift * i / 2, "interval": [b + shift * i / 2 for b in pooled["interval"]]}
            for i, n in enumerate(others)
        ],
        "samples": [],
    }
