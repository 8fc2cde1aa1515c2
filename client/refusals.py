"""What the gateway's or the proxy's errors mean: an answer's code is that of an error of EchoFed."""

import json

from echofed.protocol.errors import EchoFedError, GatewayRefusedError, UnreachableError

MAX_REFUSAL_BYTES = 2**16

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_MAX_TEXT = 500


def refusal_of(status: int, content: bytes) -> EchoFedError:
    """Return the error an answer stands for; what may pass by itself is an UnreachableError.

    Args:
        status: of HTTP, 400 or more.
        content: of the answer; the gateway's own is JSON with code, what and remedy, a proxy's on the way may be anything.
    """
    try:
        said = json.loads(content)
        code, what, remedy = (_printable(str(said[key])) for key in ("code", "what", "remedy"))
    except (ValueError, KeyError, TypeError):
        code, what, remedy = "", f"The gateway answered with status {status}.", ""
    kind = _errors_by_code().get(code, GatewayRefusedError)
    if kind is GatewayRefusedError and status in _PASSING:
        kind = UnreachableError
    return kind(what, remedy or None)


def _errors_by_code() -> dict[str, type[EchoFedError]]:
    found, todo = {}, [EchoFedError]
    while todo:
        kind = todo.pop()
        found[kind.code] = kind
        todo += kind.__subclasses__()
    return found


def _printable(text: str) -> str:
    """Return a text from the network as it may stand on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_TEXT])
