"""Initial parameters: drawn from the seed, or the file a study names by its hash."""

from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.arrays import decode_parameters, read_metadata, sha256_of_file
from echofed.protocol.errors import ParametersError, StudyInvalidError
from echofed.protocol.study_file import load_study
from echofed.simulations.initial import initialise_study, provide_initial_parameters, write_initial_parameters
from tests.small_simulations import small_study, write_study

STUDY = """\
schema_version: 1
title: A study  # of something
purpose: To test.
contact: tests
task: {kind: binary, labels: [benign, malignant]}
preprocessing: {image_size_px: 32}

model:
  # small on purpose
  name: small_resnet   # the model
  width: 8
  blocks: 1
training: {learning_rate: 0.1, local_steps: 1, sampling_probability: 0.5}
privacy: {unit: none}
federation: {rounds: 1}
"""


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    study = small_study()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_initial_parameters(study, tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_scattering_is_standardised_on_phantoms(tmp_path: Path) -> None:
    study = small_study(model={"name": "scattering", "scales": 2, "angles": 2, "projection": 16})
    write_initial_parameters(study, tmp_path / "a", 0)
    raw = (tmp_path / "a").read_bytes()
    arrays = decode_parameters(raw, len(raw))
    assert "trainable" in read_metadata(raw)
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_init_writes_the_hash_into_the_study_and_leaves_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    for seed in (0, 1):  # the second time replaces the hash
        written = initialise_study(file, seed)
        study = load_study(file)
        assert study.model.initial_parameters_sha256 == sha256_of_file(written)
        lines = [line for line in file.read_text().splitlines() if "initial_parameters_sha256" not in line]
        assert lines == STUDY.splitlines()


def test_init_takes_an_encoder_over(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    write_initial_parameters(load_study(file), tmp_path / "given.safetensors", 7)
    raw = initialise_study(file, 0, tmp_path / "given.safetensors").read_bytes()
    given_raw = (tmp_path / "given.safetensors").read_bytes()
    arrays, given = decode_parameters(raw, len(raw)), decode_parameters(given_raw, len(given_raw))
    same = [name for name in arrays if np.array_equal(arrays[name], given[name])]
    assert any("encoder" in name for name in same)


def test_a_model_block_on_one_line_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    text = STUDY.replace(STUDY[STUDY.index("model:") : STUDY.index("training:")], "model: {name: small_resnet}\n")
    file.write_text(text)
    with pytest.raises(StudyInvalidError, match="one field a line"):
        initialise_study(file, 0)
    assert file.read_text() == text


def test_only_the_file_named_by_the_study_is_used(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    named = initialise_study(file, 0)
    study = load_study(file)
    provide_initial_parameters(study, tmp_path / "used", named, 0)
    assert (tmp_path / "used").read_bytes() == named.read_bytes()
    write_initial_parameters(study, tmp_path / "other", 1)
    with pytest.raises(ParametersError, match="SHA-256 differs"):
        provide_initial_parameters(study, tmp_path / "refused", tmp_path / "other", 0)
    with pytest.raises(ParametersError, match="not at"):
        provide_initial_parameters(study, tmp_path / "absent", None, 0)
    assert not (tmp_path / "refused").exists()


def test_parameters_once_drawn_are_kept(tmp_path: Path) -> None:
    study = small_study()
    write_study(tmp_path / "study.yaml", study)
    provide_initial_parameters(study, tmp_path / "used", None, 0)
    before = (tmp_path / "used").read_bytes()
    provide_initial_parameters(study, tmp_path / "used", None, 1)
    assert (tmp_path / "used").read_bytes() == before
