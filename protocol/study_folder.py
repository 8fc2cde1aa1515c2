"""A study with its initial parameters, as two files in a folder; what a site holds of an approved study."""

from pathlib import Path

from echofed.protocol.arrays import Parameters, decode_parameters, read_metadata, sha256_of_file
from echofed.protocol.errors import ParametersError
from echofed.protocol.mapped_files import map_file
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study

STUDY_FILE = "study.yaml"
PARAMETERS_FILE = "initial.safetensors"


def read_study_folder(folder: Path) -> tuple[Study, Parameters, dict[str, str]]:
    """Return the study, all initial parameters and their file's metadata.

    Raises:
        StudyError: the study is not usable.
        ParametersError: the file is missing or not the one the study names by hash.
    """
    study = load_study(folder / STUDY_FILE)
    return study, *read_initial_parameters(folder / PARAMETERS_FILE, study)


def read_initial_parameters(path: Path, study: Study) -> tuple[Parameters, dict[str, str]]:
    """Return the initial parameters in a file, as read-only views of it, and its metadata; it must be the one the study names.

    Raises:
        ParametersError: the file is missing, not a safetensors file, or another than the study names by hash.
    """
    if not path.is_file():
        raise ParametersError(f"The study's initial parameters are not at {path}.")
    expected = study.model.initial_parameters_sha256
    if expected is not None and sha256_of_file(path) != expected:
        raise ParametersError(f"{path} is not the file the study names: its SHA-256 differs.")
    content = map_file(path)
    return decode_parameters(content, len(content)), read_metadata(content)
