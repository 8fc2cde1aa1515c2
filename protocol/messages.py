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
MAX_FIGURES = 2400
"""100 classes in 2 histograms of 12 bins."""
MOST_PATIENTS = 10**6
"""More than any site has; a number that a site says counts in the means."""
Count = Annotated[int, Field(ge=0, le=MOST_PATIENTS)]
LEAST_NOISE, MOST_NOISE = 1e-3, 1e7
"""Noise multipliers, somewhat beyond those that a calibration can give."""


class Instruction(Document):
    """What the coordinator asks of a site."""

    kind: Literal["train", "evaluate", "describe"]
    study_hash: Sha256
    round_number: int = Field(ge=0, le=10_000, description="1-based; 0 before the first round.")


class SpentPrivacy(Document):
    """The training mechanism a site has run in this study, this round included; any accountant turns it into an epsilon.

    The number of patients it said it had, with the study's `count_noise`, was spent once beside it.
    """

    noise_multiplier: float = Field(
        ge=LEAST_NOISE, le=MOST_NOISE, description="noise standard deviation / clipping norm."
    )
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
    patients: Count | None = Field(
        description="training patients, only if the study weights by patients; with noise if it is private."
    )
    training_loss: float | None = Field(description="mean loss, only in a study without privacy.")
    spent: SpentPrivacy | None
    seconds: float | None = Field(ge=0, description="of training, only in a study without privacy.")


class ExactFigures(Document):
    """How the model does on a site's validation patients; in a study without privacy."""

    patients: int = Field(ge=1, le=MOST_PATIENTS)
    loss: float
    metric: float | None = Field(description="absent if undefined, e.g. AUC with a single class.")


class NoisyFigures(Document):
    """Sums over a site's validation patients (`echofed.protocol.figures`) with noise that hides each; in a private study."""

    sums: tuple[float, ...] = Field(max_length=MAX_FIGURES)
    noise_stddev: float = Field(gt=0)


class EvaluateReply(_Reply):
    """How the global model does on the site's validation patients; no figures with fewer than the minimum."""

    kind: Literal["evaluate"] = "evaluate"
    exact: ExactFigures | None = None
    noisy: NoisyFigures | None = None


class DescribeReply(_Reply):
    """What the site can bring to a study; a number under the minimum, or that would cost privacy, is not given."""

    kind: Literal["describe"] = "describe"
    can_train: bool
    training_patients: Count | None = Field(description="in a private study with noise.")
    validation_patients: Count | None
    test_patients: Count | None
