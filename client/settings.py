"""What a site says of its own data: where they lie and what its columns are called."""

from pathlib import Path

from pydantic import Field

from echofed.protocol.document import Document
from echofed.protocol.errors import RegistrationError, StudyError
from echofed.protocol.messages import SiteName
from echofed.protocol.yaml_text import read_document


class Columns(Document):
    """Names of the index's columns; exam, mask and label are used if there, and required if written here."""

    file: str = Field(default="file", description="path of the image, relative to the data folder.")
    patient: str = Field(default="patient_id", description="any text that is the same for all images of a patient.")
    exam: str | None = Field(default="exam", description="tells a patient's exams apart.")
    mask: str | None = Field(default="mask", description="path of the outline, same size as its image; may be empty.")
    label: str | None = Field(default="label", description="the diagnosis, for binary and multiclass studies.")
    findings: dict[str, str] = Field(
        default_factory=dict, description="study's name of a finding or value: column holding it, if they differ."
    )


class SiteSettings(Document):
    """A site's own settings (`site.yaml`); nothing here leaves the site but its name."""

    name: SiteName
    data_folder: Path = Field(description="folder holding the images: PNG, JPEG or frames of an ingest.")
    index_file: Path = Field(default=Path("index.csv"), description="CSV with one row an image; in the data folder.")
    columns: Columns = Columns()
    minimum_image_side_px: int = Field(default=32, ge=1, le=4096, description="smaller images are quarantined.")

    @property
    def index_path(self) -> Path:
        """Path of the index; an absolute `index_file` may lie outside the data folder."""
        return self.data_folder / self.index_file


def load_settings(path: Path) -> SiteSettings:
    """Return the settings in a `site.yaml`; a relative data folder is taken from where that file lies.

    Raises:
        RegistrationError: the file cannot be read or its content is not sound.
    """
    try:
        settings = read_document(path, SiteSettings)
    except StudyError as error:
        raise RegistrationError(error.what, remedy="Correct the site's settings.") from error
    return settings.model_copy(update={"data_folder": path.parent.absolute() / settings.data_folder})
