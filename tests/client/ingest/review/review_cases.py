"""Cases as the pipeline puts them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.geometry import Box
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.review.case import Case, Decision
from echofed.client.ingest.review.queue import put_case

NOON = "2030-01-31T12:00:00+00:00"
WRITTEN = Box(20, 30, 40, 150)
"""Where the cases below have writing."""


def a_case(
    number: int = 0,
    *,
    frames: int = 1,
    height: int = 120,
    width: int = 200,
    why: Why = Why.WRITING,
    layout: str = "layout1",
    writing: tuple[Box, ...] = (WRITTEN,),
) -> Case:
    """Return a case; in the overview, a higher number comes later."""
    return Case(
        instance=f"INSTANCE{number:04d}",
        exam=f"EXAM{number:04d}",
        patient="PATIENT0001",
        why=why,
        writing=writing,
        region=Box(7, 9, 7 + height, 9 + width),
        frames=frames,
        layout_key=layout,
        device="Maker Model 9",
        added_at=NOON,
    )


def frames_for(case: Case) -> NDArray[np.uint8]:
    """Return frames unlike those of any other case: the first pixel says which frame it is."""
    random = np.random.default_rng(int(case.instance[-4:]))
    frames = random.integers(20, 90, (case.frames, case.region.height, case.region.width), np.uint8)
    for box in case.writing:
        frames[:, box.top : box.bottom : 3, box.left : box.right] = 255
    frames[:, 0, 0] = np.arange(case.frames)
    return frames


def put(folder: Path, case: Case, raw: Path | None = None) -> Case:
    """Put a case with its frames and return it."""
    put_case(folder, case, frames_for(case), raw)
    return case


def accepting(case: Case, *boxes: Box, remember: bool = False, by: str = "Dr A. Martin") -> Decision:
    """Return the decision to accept a case with masks."""
    return Decision(instance=case.instance, decision="accept", boxes=boxes, remember=remember, by=by, decided_at=NOON)


def rejecting(case: Case) -> Decision:
    """Return the decision to reject a case."""
    return Decision(
        instance=case.instance, decision="reject", boxes=(), remember=False, by="Dr A. Martin", decided_at=NOON
    )
