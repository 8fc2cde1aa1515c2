"""A small hospital on disk, with images drawn by Pillow."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.client.settings import SiteSettings
from echofed.client.site import Site, create_site
from echofed.protocol.study import Study

STUDY: dict[str, Any] = {
    "schema_version": 1,
    "title": "A study",
    "purpose": "To test.",
    "contact": "nobody@example.org",
    "task": {"kind": "binary", "labels": ["benign", "malignant"]},
    "preprocessing": {"image_size_px": 32},
    "model": {"name": "small_resnet"},
    "training": {"learning_rate": 0.1, "local_steps": 1, "sampling_probability": 0.5},
    "privacy": {"unit": "none"},
    "federation": {"rounds": 1},
}


@dataclass
class Hospital:
    """A data folder, its index and its state folder."""

    folder: Path
    state: Path
    rows: list[dict[str, str]] = field(default_factory=list)

    def picture(self, seed: int, height: int = 48, width: int = 64) -> np.ndarray:
        """Return an image that looks like no other: smooth blobs under a little noise, uint8 [height, width]."""
        rng = np.random.default_rng(seed)
        blobs = Image.fromarray(rng.integers(0, 220, (8, 8), dtype=np.uint8)).resize((width, height))
        return np.asarray(blobs) + rng.integers(0, 30, (height, width), dtype=np.uint8)

    def save(self, file: str, pixels: np.ndarray) -> str:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return file

    def add(self, patient: str, pixels: np.ndarray | None = None, **columns: str) -> str:
        """Add an image and its row; return its file name."""
        file = columns.pop("file", f"{len(self.rows):05d}.png")
        if not (self.folder / file).exists():
            self.save(file, self.picture(len(self.rows)) if pixels is None else pixels)
        self.rows.append({"file": file, "patient_id": patient, "label": "benign", **columns})
        return file

    def fill(self, patients: int, images: int = 1) -> None:
        for number in range(patients):
            for _ in range(images):
                self.add(f"p{number}", label=("benign", "malignant")[number % 2])

    def write_index(self) -> None:
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        with (self.folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def site(self, **settings: Any) -> Site:
        """Write the index and return the site, not yet registered."""
        self.write_index()
        return create_site(self.state, SiteSettings(name="a", data_folder=self.folder, **settings), bytes(32))

    def registered(self, **settings: Any) -> Site:
        site = self.site(**settings)
        site.register()
        return site


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    (tmp_path / "data").mkdir()
    return Hospital(tmp_path / "data", tmp_path / "state")


@pytest.fixture
def make_study() -> Any:
    """Return a study; keyword arguments replace fields of its parts."""

    def make(**parts: dict[str, Any]) -> Study:
        content = {
            name: {**part, **parts.get(name, {})} if isinstance(part, dict) else part for name, part in STUDY.items()
        }
        content |= {name: part for name, part in parts.items() if name not in content}
        if content["task"]["kind"] == "segmentation":
            content["model"] = {"name": "unet"}
        return Study.model_validate(content, strict=False)

    return make
