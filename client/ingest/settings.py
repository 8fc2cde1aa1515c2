"""How a site ingests: `ingest.yaml` in the ingest's folder, written by the hospital; what is not written has its default."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from echofed.client.ingest.cleaning import Check
from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.frame_choice import FrameRule as Rule
from echofed.client.ingest.labels import LabelSettings
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.politeness import Politeness
from echofed.client.ingest.sources.settings import DicomWebSource, DimseSource, ReceiverSettings
from echofed.protocol.document import Document
from echofed.protocol.errors import StudyError
from echofed.protocol.yaml_text import AnyDocument, read_document

FILE_NAME = "ingest.yaml"


class FrameRule(Document):
    """Which frames of a clip are kept."""

    rule: Rule = Field(
        default="every", description="every: each `step`-th; different: those least like each other; all."
    )
    step: int = Field(default=10, ge=1, le=10_000, description="of the rule every.")
    most: int = Field(default=25, ge=1, le=10_000, description="frames kept of one clip, whatever the rule.")


class IngestSettings(Document):
    """All of `ingest.yaml`."""

    source: DicomWebSource | DimseSource | None = Field(
        default=None, discriminator="kind", description="the PACS to ask when no folder is given."
    )
    filters: Filters = Filters()
    politeness: Politeness = Politeness()
    receiver: ReceiverSettings = ReceiverSettings()
    frames: FrameRule = FrameRule()
    text_check: Check = Field(
        default="ocr",
        description="ocr: text recognition; person: also, every still waits for one; strokes: only for images of nobody.",
    )
    ages: Literal["band", "none"] = Field(default="band", description="whether five-year bands of age are kept.")
    merges: Path | None = Field(default=None, description="CSV of patients with two ids: patient_id, same_as.")
    labels: LabelSettings = LabelSettings()
    keep_dicom: bool = Field(
        default=False, description="whether a de-identified DICOM copy of each instance is kept, too."
    )
    encryption: Literal["none", "passphrase", "keyring"] = Field(default="none", description="of the stored frames.")
    workers: int | None = Field(default=None, ge=1, le=256, description="processes that decode; null: one a core.")
    seconds_per_instance: float = Field(
        default=300.0, gt=0, le=3600, description="after which reading one is given up."
    )
    memory_mb_per_worker: int = Field(default=2048, ge=512, le=2**20, description="beyond what a process starts with.")

    @model_validator(mode="after")
    def _fits_together(self) -> "IngestSettings":
        if self.keep_dicom and self.encryption != "none":
            raise ValueError("DICOM copies are not encrypted: write keep_dicom: false, or encryption: none")
        return self

    @property
    def processes(self) -> int:
        """Number of processes that decode."""
        return self.workers or os.cpu_count() or 1

    @property
    def wanted(self) -> Filters:
        """The filters, with structured reports let through if they give labels."""
        modalities = self.filters.modalities
        if self.labels.reports and "SR" not in modalities:
            modalities = (*modalities, "SR")
        return self.filters.model_copy(update={"modalities": modalities})


def read_settings(folder: Path) -> IngestSettings:
    """Return the settings in a folder's `ingest.yaml`, the defaults if there is none; relative paths in it start from the folder.

    Raises:
        IngestError: the file cannot be read or is not sound.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return IngestSettings()
    try:
        return _with_absolute_paths(read_document(path, IngestSettings), folder.absolute())
    except StudyError as error:
        raise IngestError(error.what) from error


def _with_absolute_paths(document: AnyDocument, folder: Path) -> AnyDocument:
    def absolute(value: object) -> object:
        if isinstance(value, Path):
            return folder / value
        if isinstance(value, Document):
            return _with_absolute_paths(value, folder)
        return tuple(map(absolute, value)) if isinstance(value, tuple) else value

    return document.model_copy(update={name: absolute(getattr(document, name)) for name in type(document).model_fields})
