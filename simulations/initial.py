"""Initial parameters of a simulated study: the file it names, or fresh ones drawn from the seed."""

from pathlib import Path

from echofed.learning.models import initial_parameters
from echofed.protocol.arrays import encode_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_folder import read_initial_parameters
from echofed.server.checkpoint import write_atomically
from echofed.simulations.phantoms import random_phantoms

PUBLIC_PHANTOMS = 256
"""Fixed features are standardised on this many phantoms: images of nobody."""


def write_initial_parameters(study: Study, path: Path, seed: int) -> None:
    """Draw a study's initial parameters and write their file.

    Args:
        study: names the model.
        path: of the safetensors file.
        seed: of the parameters and of the phantoms on which fixed features are standardised.
    """
    images = None
    if study.model.name == "scattering":
        images = random_phantoms(PUBLIC_PHANTOMS, study.preprocessing.image_size_px, seed)
    parameters, metadata = initial_parameters(study, seed, images)
    write_atomically(path, encode_parameters(parameters, metadata))


def provide_initial_parameters(study: Study, path: Path, given: Path | None, seed: int) -> None:
    """Put a study's initial parameters at `path`: a copy of the file given, or fresh ones if the study names none.

    Raises:
        ParametersError: the study names a file by hash and it is not the one given.
    """
    if given is not None:
        read_initial_parameters(given, study)
        write_atomically(path, given.read_bytes())
    elif study.model.initial_parameters_sha256 is None and not path.exists():
        write_initial_parameters(study, path, seed)
    read_initial_parameters(path, study)
