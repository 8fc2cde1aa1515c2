"""Studies on disk for tests: a document with its initial parameters, and who signs them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from echofed.protocol.arrays import encode_parameters, sha256_of_file
from echofed.protocol.publication import Publication
from echofed.protocol.signing import Signed, sign
from echofed.protocol.study import Study
from tests.studies import PRIVATE, make_study

CONSORTIUM = "c" * 64
COORDINATOR = Ed25519PrivateKey.generate()


@dataclass(frozen=True)
class Hospital:
    """Who a hospital is, as its answers need it."""

    site: str = "north"
    consortium: str = CONSORTIUM
    signing_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    coordinator_key: Ed25519PublicKey = field(default_factory=COORDINATOR.public_key)


@dataclass(frozen=True)
class StudyFiles:
    """A study and its two files."""

    study: Study
    study_path: Path
    parameters_path: Path

    def publication(self, **changes: Any) -> Publication:
        """Return the study's publication, with some fields changed."""
        fields = {
            "consortium": CONSORTIUM,
            "study_hash": self.study.hash,
            "study_yaml": self.study_path.read_text(),
            "parameters_sha256": sha256_of_file(self.parameters_path),
            "parameters_bytes": self.parameters_path.stat().st_size,
            "published_at": "2030-01-02T03:04:05+00:00",
        }
        return Publication.model_validate(fields | changes)

    def signed(self, key: Ed25519PrivateKey = COORDINATOR, **changes: Any) -> Signed:
        """Return the study's publication, signed."""
        return sign(key, "publication", self.publication(**changes))


def write_study_files(folder: Path, name: str = "study", **parts: Any) -> StudyFiles:
    """Write a small private study and its initial parameters; `parts` as for `make_study`."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = folder / f"{name}.safetensors"
    parameters.write_bytes(encode_parameters({"head": np.arange(6, dtype=np.float32)}))
    model = {"name": "small_resnet", "width": 8, "blocks": 1, **parts.pop("model", {})}
    model["initial_parameters_sha256"] = sha256_of_file(parameters)
    study = make_study(**{"privacy": PRIVATE, "model": model, "title": name, **parts})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False))
    return StudyFiles(study, path, parameters)
