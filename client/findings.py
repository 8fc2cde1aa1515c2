"""What a look at a site finds: good, doubtful or bad, and what to do; no look takes long, and none raises."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from echofed.protocol.errors import EchoFedError

State = Literal["good", "warning", "bad"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: of it; the same in every version.
        state: "bad" keeps the site from working or from being safe, "warning" may.
        what: was found, a sentence.
        remedy: what to do about it; empty if it is good.
    """

    name: str
    state: State
    what: str
    remedy: str = ""


def good(name: str, what: str) -> Finding:
    """Return a good finding."""
    return Finding(name, "good", what)


def warning(name: str, what: str, remedy: str) -> Finding:
    """Return a doubtful finding."""
    return Finding(name, "warning", what, remedy)


def bad(name: str, what: str, remedy: str) -> Finding:
    """Return a bad finding."""
    return Finding(name, "bad", what, remedy)


def from_error(name: str, error: BaseException) -> Finding:
    """Return the bad finding that an error stands for."""
    if isinstance(error, EchoFedError):
        return bad(name, f"[{error.code}] {error.what}", error.remedy)
    if isinstance(error, OSError):
        what = f"{error.filename or 'It'}: {error.strerror or type(error).__name__}."
        return bad(name, what, "Check that it exists, who owns it and its permissions.")
    return bad(name, f"The check failed: {error!r}.", "Report the fault.")


def look(name: str, seconds: float, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds, with a finding of its own if it fails or takes too long; what it found before that is kept.

    Args:
        name: of the check.
        seconds: it may take; then it is left behind.
        check: yields findings.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            for finding in check():
                found.append(finding)
        except BaseException as error:
            found.append(from_error(name, error))

    if not _ends(run, seconds):
        remedy = "Look again; if it stays so, the disk or the network hangs."
        return [*found, warning(name, f"No answer within {max(seconds, 0.0):.0f} s.", remedy)]
    return found


def within(seconds: float, ask: Callable[[], _T]) -> _T:
    """Return what a function returns.

    Raises:
        TimeoutError: it took longer; it is left behind.
        Exception: what it raises.
    """
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    if not _ends(run, seconds):
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if errors:
        raise errors[0]
    return answers[0]


def _ends(run: Callable[[], None], seconds: float) -> bool:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    return not thread.is_alive()
