"""The study: everything a consortium agrees on before a round, as one document.

A study is data, not code. A site approves the hash of the whole document (`Study.hash`), runs only what it has
installed itself, and finds here all that will be computed, on which exams, and what will leave.
"""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from echofed.protocol.document import Document, canonical_hash
from echofed.protocol.models import SEGMENTATION_MODELS, Model

SCHEMA_VERSION = 1
# No control character, so that no text can pass for another part of the summary or steer a terminal; none that turns the
# order of letters or cannot be seen, so that what is read is what is signed.
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]*$"
Label = Annotated[str, Field(min_length=1, max_length=60, pattern=PRINTABLE)]
Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=PRINTABLE)]
TaskKind = Literal["binary", "multiclass", "multilabel", "segmentation", "regression"]

METRIC_OF_TASK: dict[TaskKind, str] = {
    "binary": "auc",
    "multiclass": "auc",
    "multilabel": "auc",
    "segmentation": "dice",
    "regression": "mean_absolute_error",
}
LOWER_IS_BETTER = frozenset({"mean_absolute_error"})
LABEL_COUNTS: dict[TaskKind, tuple[int, int]] = {
    "binary": (2, 2),
    "multiclass": (3, 100),
    "multilabel": (1, 100),
    "segmentation": (1, 1),
    "regression": (1, 1),
}


class Task(Document):
    """What the model learns to say, of what."""

    kind: TaskKind
    unit: Literal["image", "exam"] = Field(
        default="image", description="exam: one answer for all images of an exam, by attention pooling."
    )
    labels: tuple[Label, ...] = Field(
        description="binary: negative then positive; multiclass: all classes; multilabel: one finding each, a 0/1 "
        "column per name; segmentation: the structure outlined; regression: the column holding the value."
    )
    excluded_labels: tuple[Label, ...] = Field(default=(), description="exams so labelled are left out on purpose.")
    one_label_per_patient: bool = Field(default=False, description="quarantine patients found under several labels.")
    class_weights: tuple[Annotated[float, Field(gt=0, le=1000)], ...] | None = Field(
        default=None,
        description="loss weight of each label, against imbalance; from published prevalence, not from sites' data.",
    )
    value_range: tuple[float, float] | None = Field(
        default=None, description="regression only: smallest and largest plausible value, in the value's own unit."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = LABEL_COUNTS[self.kind]
        if not low <= len(self.labels) <= high:
            count = f"exactly {low}" if low == high else f"at least {low}"
            raise ValueError(f"a {self.kind} task has {count} labels, this one has {len(self.labels)}")
        if len(set(self.labels) | set(self.excluded_labels)) != len(self.labels) + len(self.excluded_labels):
            raise ValueError("a label appears twice; write each once, in labels or in excluded_labels")
        if self.class_weights is not None and len(self.class_weights) != len(self.labels):
            raise ValueError("write one class weight per label, or none")
        if (self.kind == "regression") != (self.value_range is not None):
            raise ValueError("write value_range for a regression task, and for no other")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("write value_range as [smallest, largest]")
        if self.kind == "segmentation" and self.unit == "exam":
            raise ValueError("segmentation is per image; write unit: image")
        return self


class Preprocessing(Document):
    """From the stored image to what the network sees."""

    image_size_px: int = Field(default=96, ge=16, le=512, description="side of the square the image is resized to.")
    resize: Literal["pad", "stretch"] = Field(default="pad", description="pad keeps the aspect ratio.")
    standardise: Literal["none", "image"] = Field(
        default="none", description="image: subtract the image's own mean and divide by its standard deviation."
    )
    max_images_per_patient: int = Field(
        default=50, ge=1, le=1000, description="further images are left out, and counted."
    )


class Augmentation(Document):
    """Random changes that keep the finding: all off by default."""

    flip: bool = Field(default=False, description="mirror left and right.")
    gain: float = Field(default=0.0, ge=0, le=0.5, description="brightness changes by up to this fraction.")
    shift: float = Field(default=0.0, ge=0, le=0.2, description="moves by up to this fraction of the side.")
    zoom: float = Field(default=0.0, ge=0, le=0.3, description="scales by up to this fraction.")
    speckle: float = Field(default=0.0, ge=0, le=0.5, description="multiplicative noise of this standard deviation.")
    copies: int = Field(default=1, ge=1, le=16, description="augmented copies averaged before clipping.")

    @property
    def is_on(self) -> bool:
        """Whether any change is asked for."""
        return self.flip or any((self.gain, self.shift, self.zoom, self.speckle))


class Training(Document):
    """What a site does in one round."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(gt=0, le=100)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd only; starts anew every round.")
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    local_steps: int = Field(ge=1, le=10_000, description="steps a site takes each round.")
    sampling_probability: float = Field(
        gt=0, le=1, description="each step draws each patient with this probability (Poisson sampling)."
    )
    centring_rounds: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="first rounds, in which the mean of the features is learnt and then taken out; scattering only.",
    )
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer == "adam" and self.momentum:
            raise ValueError("momentum belongs to sgd; leave it out for adam")
        return self


class Privacy(Document):
    """Patient-level differential privacy at each site (add or remove one patient)."""

    unit: Literal["patient", "none"]
    epsilon: float | None = Field(default=None, gt=0, le=1000, description="for the whole study, at each site.")
    delta: float | None = Field(
        default=None, gt=0, lt=1, description="absent: 1 / (10 x the site's noisy number of training patients)."
    )
    clipping_norm: float | None = Field(
        default=None, ge=1e-6, le=1e6, description="C, largest norm of one patient's gradient."
    )
    count_noise: float = Field(
        default=10.0,
        ge=1,
        le=20,
        description="standard deviation, in patients, of the noise in the number of training patients a site says it has.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unit == "patient" and (self.epsilon is None or self.clipping_norm is None):
            raise ValueError("patient-level privacy needs epsilon and clipping_norm")
        if self.unit == "none" and (self.epsilon or self.delta or self.clipping_norm):
            raise ValueError("unit: none takes no epsilon, delta or clipping_norm; did you mean unit: patient?")
        return self


class SecureAggregation(Document):
    """Whether the coordinator may only ever see the sum of the updates."""

    mode: Literal["none", "required"] = "none"


class ServerOptimizer(Document):
    """How the server applies the mean update (Reddi et al. (2021), Alg. 2 for the adaptive ones)."""

    name: Literal["sgd", "momentum", "adam", "yogi", "adagrad"] = "sgd"
    learning_rate: float = Field(default=1.0, gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="beta_1 of adam and yogi.")
    second_momentum: float = Field(default=0.99, ge=0, lt=1, description="beta_2 of adam and yogi.")
    adaptivity: float = Field(default=1e-3, gt=0, le=1, description="tau of adam, yogi and adagrad.")


class ClientTerm(Document):
    """What is added to a site's loss."""

    name: Literal["none", "proximal"] = "none"
    strength: float = Field(default=0.0, ge=0, le=100, description="mu of FedProx (Li et al. (2020)).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.name == "proximal") != (self.strength > 0):
            raise ValueError("write strength with name: proximal, and with no other")
        return self


PRESETS: dict[str, dict[str, dict[str, Any] | str]] = {
    "FedAvg": {},
    "FedAvgM": {"server_optimizer": {"name": "momentum"}},
    "FedAdam": {"server_optimizer": {"name": "adam", "learning_rate": 0.01}},
    "FedYogi": {"server_optimizer": {"name": "yogi", "learning_rate": 0.01}},
    "FedAdagrad": {"server_optimizer": {"name": "adagrad", "learning_rate": 0.01}},
    "FedProx": {"client_term": {"name": "proximal", "strength": 0.01}},
    "FedBN": {"shared_layers": "all_but_normalisation"},
}


class Strategy(Document):
    """How updates become one model; a preset fills the parts, and a part written beside it wins."""

    preset: Literal["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx", "FedBN"] | None = None
    aggregation: Literal["mean"] = "mean"
    weighting: Literal["uniform", "patients", "precision"] = Field(
        default="uniform",
        description="patients: by training patients, whose number then leaves the site; precision: the same, but less where "
        "a site's privacy noise outweighs its patients.",
    )
    server_optimizer: ServerOptimizer = ServerOptimizer()
    client_term: ClientTerm = ClientTerm()
    shared_layers: Literal["all", "all_but_normalisation"] = "all"
    maximum_update_norm: float = Field(default=1e4, gt=0, le=1e9, description="a larger update is refused.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, content: Any) -> Any:
        if not (isinstance(content, dict) and isinstance(content.get("preset"), str)):
            return content
        filled = {**PRESETS.get(content["preset"], {}), **content}
        for part, default in PRESETS.get(content["preset"], {}).items():
            if isinstance(default, dict) and isinstance(content.get(part), dict):
                filled[part] = {**default, **content[part]}
        return filled


class Federation(Document):
    """Rounds, and how many sites they need."""

    rounds: int = Field(ge=1, le=10_000)
    minimum_sites: int = Field(
        default=2, ge=1, le=1000, description="sites that must take part for the study to start."
    )
    minimum_replies: int = Field(default=2, ge=1, le=1000, description="updates a round needs before it is published.")
    retries: int = Field(default=2, ge=0, le=100, description="times a round without enough replies is tried again.")
    round_timeout_seconds: float = Field(default=3600, gt=0, le=7 * 86400)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum_replies > self.minimum_sites:
            raise ValueError("minimum_replies cannot exceed minimum_sites")
        return self


class Evaluation(Document):
    """How the model is judged; patients are split once, by a keyed hash of their id on the site."""

    validation_fraction: float = Field(
        default=0.15, ge=0, le=0.5, description="patients used to choose the best model."
    )
    test_fraction: float = Field(default=0.2, ge=0, le=0.5, description="patients kept for the final report.")
    every_rounds: int = Field(default=1, ge=1, le=10_000)
    figures: Literal["sent", "none"] = Field(
        default="sent",
        description="how the model does on validation patients; in a private study with noise, under the study's epsilon.",
    )
    minimum_patients: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="no number of patients and no figure over fewer leaves a site, and none with fewer trains privately.",
    )

    def is_due(self, round_number: int, rounds: int) -> bool:
        """Whether a round, 1-based, of so many rounds is evaluated."""
        due = round_number % self.every_rounds == 0 or round_number == rounds
        return self.figures == "sent" and 1 <= round_number <= rounds and due


class Study(Document):
    """A federated study."""

    schema_version: Literal[1]
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]
    purpose: Text = Field(description="why, in words a patient understands.")
    contact: Text = Field(description="who answers questions: a name and an address.")
    task: Task
    preprocessing: Preprocessing = Preprocessing()
    model: Model
    training: Training
    privacy: Privacy
    secure_aggregation: SecureAggregation = SecureAggregation()
    strategy: Strategy = Strategy()
    federation: Federation
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        segmenting = self.model.name in SEGMENTATION_MODELS
        if segmenting != (self.task.kind == "segmentation"):
            names = ", ".join(sorted(SEGMENTATION_MODELS))
            raise ValueError(f"a segmentation task takes one of these models, and no other task does: {names}")
        if self.model.name == "scattering" and self.preprocessing.image_size_px <= 2 ** (self.model.scales + 1):
            smallest = 2 ** (self.model.scales + 1) + 1
            raise ValueError(f"scattering over {self.model.scales} scales needs an image_size_px of {smallest} or more")
        if self.training.centring_rounds and (self.model.name != "scattering" or self.training.augmentation.is_on):
            raise ValueError("centring_rounds goes with model: scattering and without augmentation")
        if self.training.centring_rounds and self.strategy.server_optimizer != ServerOptimizer():
            raise ValueError("centring_rounds goes with the plain server optimizer, sgd with learning_rate 1")
        if self.training.centring_rounds >= self.federation.rounds:
            raise ValueError("centring_rounds leaves no round to train the head; write more rounds")
        if self.evaluation.validation_fraction + self.evaluation.test_fraction > 0.8:
            raise ValueError("validation_fraction and test_fraction leave too few patients to train on")
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the whole document, 64 hexadecimal digits; this is what a site approves."""
        return canonical_hash(self, "echofed study 1")

    @property
    def metric(self) -> str:
        """Name of the metric that chooses the best model."""
        return METRIC_OF_TASK[self.task.kind]

    @property
    def steps(self) -> int:
        """Steps each site takes over the whole study."""
        return self.federation.rounds * self.training.local_steps

    @property
    def evaluations(self) -> int:
        """Rounds that are evaluated over the whole study."""
        rounds = self.federation.rounds
        return sum(self.evaluation.is_due(number, rounds) for number in range(1, rounds + 1))

    @property
    def is_private(self) -> bool:
        """Whether updates carry patient-level differential privacy."""
        return self.privacy.unit == "patient"
