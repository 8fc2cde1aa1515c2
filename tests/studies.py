"""Studies for tests: one valid document, changed where a test needs it."""

from typing import Any

from echofed.protocol.study import Study

_BASE: dict[str, Any] = {
    "schema_version": 1,
    "title": "A test study",
    "purpose": "To test.",
    "contact": "tests",
    "task": {"kind": "binary", "labels": ("benign", "malignant")},
    "preprocessing": {"image_size_px": 32},
    "model": {"name": "small_resnet", "width": 8, "blocks": 1},
    "training": {"learning_rate": 0.1, "local_steps": 2, "sampling_probability": 0.5},
    "privacy": {"unit": "none"},
    "federation": {"rounds": 2, "minimum_sites": 2, "minimum_replies": 2, "retries": 0, "round_timeout_seconds": 60.0},
    "evaluation": {"minimum_patients": 1},
}
PRIVATE = {"unit": "patient", "epsilon": 8.0, "clipping_norm": 1.0}


def make_study(**parts: Any) -> Study:
    """Return the base study with some parts changed; a dictionary is merged into the part of that name."""
    content = dict(_BASE)
    for name, part in parts.items():
        replaces = not isinstance(part, dict) or name in ("privacy", "model")
        content[name] = part if replaces else {**content.get(name, {}), **part}
    return Study.model_validate(content)
