"""What travels between the coordinator and a site: the whole allow-list.

A message is one record of parameters (a safetensors buffer) and one JSON document of the models below. Anything else is
refused. `docs/architecture.md` has the same list as a table.
"""

from typing import Annotated, Literal

from pydantic import Field

from echofed.protocol.document import Document
from echofed.protocol.models import Sha256

PARAMETERS_RECORD = "parameters"
"""Flower ArrayRecord: one entry, ARRAY_KEY."""
ARRAY_KEY = "safetensors"
DOCUMENT_RECORD = "document"
"""Flower ConfigRecord: one entry, DOCUMENT_KEY, holding JSON."""
DOCUMENT_KEY = "json"

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Count = Annotated[int, Field(ge=0, le=10**9)]


class Instruction(Document):
    """What the coordinator asks of a site."""

    kind: Literal["train", "evaluate", "describe"]
    study_hash: Sha256
    round_number: int = Field(ge=0, le=10_000, description="1-based; 0 before the first round.")


class SpentPrivacy(Document):
    """The mechanism a site has run in this study, this round included; any accountant turns it into an epsilon."""

    noise_multiplier: float = Field(gt=0, description="noise standard deviation / clipping norm.")
    sampling_probability: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    delta: float = Field(gt=0, lt=1)


class _Reply(Document):
    site: SiteName
    study_hash: Sha256
    round_number: int = Field(ge=0, le=10_000)


class TrainReply(_Reply):
    """Beside an update (local - global): what the site says of its training."""

    kind: Literal["train"] = "train"
    patients: Count | None = Field(description="training patients, only if the study weights by patients.")
    training_loss: float | None = Field(description="mean loss, only in a study without privacy.")
    spent: SpentPrivacy | None
    seconds: float = Field(ge=0)


class EvaluateReply(_Reply):
    """How the global model does on the site's validation patients."""

    kind: Literal["evaluate"] = "evaluate"
    patients: Count
    loss: float | None = Field(description="absent with fewer validation patients than the study's minimum.")
    metric: float | None = Field(description="absent if undefined, e.g. AUC with a single class.")


class DescribeReply(_Reply):
    """What the site can bring to a study."""

    kind: Literal["describe"] = "describe"
    training_patients: Count
    validation_patients: Count
    test_patients: Count
