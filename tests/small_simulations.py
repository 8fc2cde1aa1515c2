"""Small simulations for tests: phantoms of a few patients, studies of a few rounds, the installed command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from echofed.client.settings import Columns
from echofed.protocol.study import Study
from echofed.simulations.phantoms import PhantomSite, write_phantom_sites
from echofed.simulations.sites import DataSource
from tests.studies import make_study

ECHOFED = Path(sys.executable).with_name("echofed")
COLUMNS = Columns(exam="exam_id")
TASKS: dict[str, dict[str, Any]] = {
    "binary": {"kind": "binary", "labels": ("benign", "malignant"), "excluded_labels": ("normal",)},
    "exam": {"kind": "binary", "unit": "exam", "labels": ("benign", "malignant"), "excluded_labels": ("normal",)},
    "multiclass": {"kind": "multiclass", "labels": ("normal", "benign", "malignant")},
    "multilabel": {"kind": "multilabel", "labels": ("irregular_shape", "shadowing", "halo")},
    "segmentation": {"kind": "segmentation", "labels": ("lesion",)},
    "regression": {"kind": "regression", "labels": ("size_mm",), "value_range": (0.0, 60.0)},
}
PATIENTS = {"north": 14, "south": 10, "west": 12}


def draw_sites(folder: Path) -> Path:
    """Draw phantoms for three hospitals, a folder each, and return `folder`."""
    shares = {"normal": 0.2, "benign": 0.4, "malignant": 0.4}
    scanners = (("aquila", "linear"), ("borealis", "linear_wide"), ("corvus", "linear_high"))
    sites = [
        PhantomSite(name, vendor, patients, (1, 4), shares, probe)
        for (name, patients), (vendor, probe) in zip(PATIENTS.items(), scanners, strict=True)
    ]
    write_phantom_sites(folder, sites, 0, (72, 72))
    return folder


def small_study(task: str = "binary", **parts: Any) -> Study:
    """Return a study of the phantoms that trains in seconds; `parts` as for `make_study`."""
    models = {"segmentation": {"name": "basic_unet", "width": 8}}
    model = models.get(task, {"name": "small_resnet", "width": 8, "blocks": 1})
    return make_study(**{"task": TASKS[task], "model": model, **parts})


def write_study(path: Path, study: Study) -> Path:
    """Write a study as YAML and return the file's path."""
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False))
    return path


def source(folder: Path) -> DataSource:
    """Return phantoms as a source of data."""
    return DataSource(folder, columns=COLUMNS)


def environment() -> dict[str, str]:
    """Return the environment commands run in: one core, warnings from Python as they come."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def echofed(*arguments: object, cwd: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command and return what it said; its exit status must be as given, and no traceback seen."""
    command = [str(ECHOFED), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done
