"""A study as a file."""

from pathlib import Path
from typing import Any

from echofed.protocol.errors import NotBuiltError
from echofed.protocol.study import Study
from echofed.protocol.yaml_text import read_document


def load_study(path: Path) -> Study:
    """Return the study in a YAML file.

    Raises:
        StudySyntaxError: the file cannot be read or is not plain YAML.
        StudyVersionError: it is written for another version of the schema.
        UnknownNameError: it names a model or another choice that does not exist.
        StudyInvalidError: its content does not make a study.
        NotBuiltError: it requires secure aggregation, which this version does not have.
    """
    study = read_document(path, Study)
    if study.secure_aggregation.mode == "required":
        raise NotBuiltError(f"{path.name} requires secure aggregation, which this version of EchoFed does not have.")
    return study


def study_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a study, for editors and reviewers."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
