"""How a study's run fares, as the conductor last wrote it: `status.json` in the study's folder."""

from pathlib import Path

from pydantic import Field, ValidationError

from echofed.protocol.document import Document, canonical_json
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import StateFolderError
from echofed.protocol.membership import Time
from echofed.protocol.state_folder import read_limited

STATUS_FILE = "status.json"
_MAX_BYTES = 2**20


class Waiting(Document):
    """Whom a running round waits for."""

    sites: tuple[str, ...] = Field(description="asked, online, and not heard of yet.")
    since: Time = Field(description="when they were asked.")
    until: Time = Field(description="when the round goes on without them, at the latest.")


class StudyStatus(Document):
    """What a run does."""

    state: str = Field(max_length=100)
    round_number: int = Field(ge=0, description="the last published round; 0 before the first.")
    rounds: int = Field(ge=1)
    offline: tuple[str, ...] = Field(default=(), description="sites that have approved it and are not online.")
    waiting: Waiting | None = None
    error: str | None = None
    updated_at: Time


def write_status(study_folder: Path, status: StudyStatus) -> None:
    """Write how a run fares, in one step."""
    replace_file(study_folder / STATUS_FILE, canonical_json(status.model_dump(mode="json")) + b"\n")


def read_status(study_folder: Path) -> StudyStatus | None:
    """Return how a run fares, None before it began.

    Raises:
        StateFolderError: the file is damaged or cannot be read.
    """
    path = study_folder / STATUS_FILE
    try:
        return StudyStatus.model_validate_json(read_limited(path, _MAX_BYTES)) if path.exists() else None
    except (OSError, ValidationError) as error:
        raise StateFolderError(f"{path} is damaged.", "Remove it: the running server writes it anew.") from error
