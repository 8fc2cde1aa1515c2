"""What the review page is answered: its own files, the cases, their pictures, and decisions."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.review.case import NAME, Boxes, Case, Decision, Pseudonym
from echofed.client.ingest.review.png import grey_png, smaller
from echofed.client.ingest.review.queue import case_of, cases, decide, frames_of, undo, undoable
from echofed.protocol.document import Document
from echofed.protocol.publication import Person, utc_now

THUMBNAIL_PX = 256
_FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    **{name: (name, "text/javascript; charset=utf-8") for name in ("review.js", "picture.js", "texts.js")},
}
_PICTURE = re.compile(rf"picture/(?P<instance>{NAME})/(?P<what>thumbnail|brightest|[0-9]{{1,6}})\.png")


@dataclass(frozen=True)
class Review:
    """What a page is about.

    Args:
        folder: of the queue.
        who: decides; None: the page asks.
        on_decision: called after each decision is on disk.
    """

    folder: Path
    who: str | None = None
    on_decision: Callable[[Decision], None] | None = None


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    kind: str
    content: bytes
    headers: tuple[tuple[str, str], ...] = ()


class _Asked(Document):
    """A decision as the page sends it."""

    instance: Pseudonym
    decision: Literal["accept", "reject"]
    boxes: Boxes
    remember: bool
    by: Person | None = Field(description="None: whoever the command named.")


class _Undone(Document):
    instance: Pseudonym


def answer_get(review: Review, inside: str) -> Answer:
    """Return the answer to a reader.

    Args:
        review: what the page is about.
        inside: the path within the page.

    Raises:
        EchoFedError: there is no such thing, or it is damaged.
    """
    if (known := _FILES.get(inside)) is not None:
        name, kind = known
        return Answer(200, kind, files(__package__).joinpath(name).read_bytes())
    if inside == "cases":
        return _json(_state(review))
    if (match := _PICTURE.fullmatch(inside)) is not None:
        frames = frames_of(review.folder, match["instance"])
        return Answer(200, "image/png", grey_png(_picture(frames, match["what"])))
    raise IngestError("The page has no such part.", "Load the page again.")


def answer_post(review: Review, inside: str, content: object) -> Answer:
    """Carry out what the page asks; arguments as for `answer_get`, and what was sent.

    Raises:
        EchoFedError: it is not sound, comes too late, or contradicts a decision there is.
        OSError: it cannot be written.
    """
    text = json.dumps(content)
    try:
        if inside == "undo":
            return _json(_shown(undo(review.folder, _Undone.model_validate_json(text).instance)))
        if inside == "decision":
            asked = _Asked.model_validate_json(text)
            by = review.who or asked.by
            known = asked.model_dump(exclude={"by"}) | {"boxes": asked.boxes, "by": by, "decided_at": utc_now()}
            decision = Decision.model_validate(known)
            decide(review.folder, decision)
            if review.on_decision is not None:
                review.on_decision(decision)
            return _json({"instance": decision.instance})
    except ValidationError as error:
        where = ", ".join(".".join(map(str, problem["loc"])) or "decision" for problem in error.errors()[:3])
        raise IngestError(f"The decision is not sound: {where}.", "Load the page again.") from error
    raise IngestError("The page has no such part.", "Load the page again.")


def _state(review: Review) -> dict[str, Any]:
    done = undoable(review.folder)
    masks = {}
    for decision in done:
        if decision.remember:
            masks[case_of(review.folder, decision.instance).layout_key] = _plain(decision)["boxes"]
    return {
        "who": review.who,
        "cases": [_shown(case) for case in cases(review.folder)],
        "undoable": [decision.instance for decision in done],
        "masks": masks,
    }


def _shown(case: Case) -> dict[str, Any]:
    """Return what the page is told of a case: nothing that names anyone, not even by pseudonym of the patient."""
    known = _plain(case)
    shown = {name: known[name] for name in ("instance", "writing", "frames", "layout_key", "device")}
    return shown | {"why": case.why.name, "height": case.region.height, "width": case.region.width}


def _picture(frames: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    if what == "thumbnail":
        return smaller(frames[len(frames) // 2], THUMBNAIL_PX)
    if what == "brightest":
        brightest: NDArray[np.uint8] = frames.max(axis=0)
        return brightest
    if int(what) >= len(frames):
        raise IngestError("The clip has no such frame.", "Load the page again.")
    frame: NDArray[np.uint8] = frames[int(what)]
    return frame


def _plain(document: Document) -> dict[str, Any]:
    plain: dict[str, Any] = document.model_dump(mode="json")
    return plain


def _json(content: object) -> Answer:
    return Answer(200, "application/json", json.dumps(content).encode())
