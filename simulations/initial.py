"""Initial parameters of a simulated study: the file it names, or fresh ones drawn from the seed."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.learning.models import initial_parameters, initial_parameters_from
from echofed.protocol.arrays import encode_parameters, sha256_of_file
from echofed.protocol.errors import ParametersError, StudyInvalidError
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study
from echofed.protocol.study_folder import read_initial_parameters
from echofed.server.checkpoint import write_atomically
from echofed.simulations.phantoms import random_phantoms
from echofed.simulations.progress import Report, silent

PUBLIC_PHANTOMS, BLOCKS = 1024, 16
"""Fixed features are whitened on this many phantoms: images of nobody."""


def write_initial_parameters(
    study: Study, path: Path, seed: int, start_from: Path | None = None, report: Report = silent
) -> None:
    """Make a study's initial parameters and write their file.

    Args:
        study: names the model.
        path: of the safetensors file.
        seed: of the parameters and of the phantoms on which fixed features are standardised.
        start_from: a safetensors file whose encoder is taken over.
        report: told how far the work is.

    Raises:
        ParametersError: the encoder in `start_from` does not fit the study's model in full.
    """
    if start_from is not None:
        parameters, metadata, missing = initial_parameters_from(study, start_from, seed)
        if missing:
            raise ParametersError(
                f"{start_from} lacks {len(missing)} parameters of the encoder, such as '{missing[0]}'."
            )
    else:
        images = None
        if study.model.name == "scattering":
            images = _public_images(study.preprocessing.image_size_px, seed, report)
        parameters, metadata = initial_parameters(study, seed, images)
    write_atomically(path, encode_parameters(parameters, metadata))
    report("Preparing the model", BLOCKS + 1, BLOCKS + 1)


def _public_images(size_px: int, seed: int, report: Report) -> NDArray[np.uint8]:
    blocks = []
    for number in range(BLOCKS):
        report("Preparing the model", number, BLOCKS + 1)
        blocks.append(random_phantoms(PUBLIC_PHANTOMS // BLOCKS, size_px, BLOCKS * seed + number))
    report("Preparing the model", BLOCKS, BLOCKS + 1)
    return np.concatenate(blocks)


def initialise_study(study_file: Path, seed: int, start_from: Path | None = None, report: Report = silent) -> Path:
    """Write a study's initial-parameters file beside it, put its hash into the study, and return the file's path.

    The study's text, comments included, stays as it is but for the line with the hash.

    Raises:
        StudyError: the study is not usable, or its model block is not written one field a line.
        ParametersError: see `write_initial_parameters`.
    """
    study, path = load_study(study_file), study_file.with_suffix(".safetensors")
    text = study_file.read_text(encoding="utf-8")
    without = re.sub(r"^ +initial_parameters_sha256:.*\n", "", text, flags=re.MULTILINE)
    place = re.search(r"^model:[^\n]*\n(?: *#[^\n]*\n|\n)*( +)", without, re.MULTILINE)
    if place is None:
        raise StudyInvalidError(
            "The study's model is not written one field a line.", "Write model: and name: below it."
        )
    write_initial_parameters(study, path, seed, start_from, report)
    line = f"{place[1]}initial_parameters_sha256: {sha256_of_file(path)}\n"
    write_atomically(study_file, (without[: place.start(1)] + line + without[place.start(1) :]).encode())
    read_initial_parameters(path, load_study(study_file))
    return path


def provide_initial_parameters(
    study: Study, path: Path, given: Path | None, seed: int, report: Report = silent
) -> None:
    """Put a study's initial parameters at `path`: a copy of the file given, or fresh ones if the study names none.

    Raises:
        ParametersError: the study names a file by hash and it is not the one given.
    """
    if given is not None:
        read_initial_parameters(given, study)
        write_atomically(path, given.read_bytes())
    elif study.model.initial_parameters_sha256 is None and not path.exists():
        write_initial_parameters(study, path, seed, report=report)
    read_initial_parameters(path, study)
