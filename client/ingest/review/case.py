"""A case that waits for a person, and what the person decides."""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from echofed.client.ingest.geometry import Box
from echofed.client.ingest.outcomes import Why
from echofed.protocol.document import Document
from echofed.protocol.membership import Time
from echofed.protocol.publication import Person
from echofed.protocol.study import PRINTABLE

MAX_BOXES = 500
"""Masked, or found, in one case."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""How a pseudonym is spelt; safe as a file's name and in an address."""


def _checked_box(box: Box) -> Box:
    if not (0 <= box.top < box.bottom and 0 <= box.left < box.right):
        raise ValueError("a box has at least one pixel, and none before the first")
    return box


Pseudonym = Annotated[str, Field(pattern=f"^{NAME}$")]
CheckedBox = Annotated[Box, AfterValidator(_checked_box)]
Boxes = Annotated[tuple[CheckedBox, ...], Field(max_length=MAX_BOXES)]
Line = Annotated[str, Field(max_length=200, pattern=PRINTABLE)]


class Case(Document):
    """An instance that waits, with what is known of it."""

    instance: Pseudonym
    exam: Pseudonym
    patient: Pseudonym
    why: Why = Field(description="it was not accepted automatically.")
    writing: Boxes = Field(description="where writing was found, in pixels of the region.")
    region: CheckedBox = Field(description="what is shown, in pixels of the whole frame.")
    frames: int = Field(ge=1, description="how many frames were picked.")
    layout_key: Pseudonym = Field(description="the same for instances of one device and layout.")
    device: Line = Field(description="vendor and model.")
    added_at: Time


class Decision(Document):
    """What a person decided on an instance."""

    instance: Pseudonym
    decision: Literal["accept", "reject"]
    boxes: Boxes = Field(description="to be masked in every frame, in pixels of the region.")
    remember: bool = Field(description="whether this device and layout is to be masked like this from now on.")
    by: Person
    decided_at: Time

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.decision == "reject" and self.boxes:
            raise ValueError("what is rejected is not masked")
        if self.remember and not self.boxes:
            raise ValueError("there is no mask to remember")
        return self

    def same_as(self, other: "Decision") -> bool:
        """Return whether both come to the same, whoever took them and when."""
        changes = {"by": other.by, "decided_at": other.decided_at}
        return self.model_copy(update=changes) == other


def mask_of(case: Case, decision: Decision) -> NDArray[np.bool_]:
    """Return what a decision masks, bool [rows, columns] of the case's region."""
    mask = np.zeros((case.region.height, case.region.width), np.bool_)
    for box in decision.boxes:
        mask[box.top : box.bottom, box.left : box.right] = True
    return mask
