"""Studies and site settings are written in plain YAML; here it becomes a checked document.

Plain means: one document of fields, lists, text and numbers. What has more than one reading is refused (tabs, a
field written twice, anchors, tags), and what YAML 1.1 guesses is left alone: `no`, `on` and `2024-01-31` are text,
as in the core schema of YAML 1.2. Nothing in the file can build an object or run code.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from echofed.protocol.document import Document
from echofed.protocol.errors import StudyInvalidError, StudySyntaxError, StudyVersionError, UnknownNameError
from echofed.protocol.validation_errors import NAME_ERRORS, Location, explain

MAX_FILE_BYTES = 256 * 2**10
MAX_DEPTH = 20
MAX_NUMBER_LENGTH = 40

_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_CONSTANTS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

AnyDocument = TypeVar("AnyDocument", bound=Document)
Lines = dict[Location, int]


def read_document(path: Path, model: type[AnyDocument]) -> AnyDocument:
    """Return the document in a YAML file; see `load_document`.

    Raises:
        StudySyntaxError: there is no such file, it cannot be read, is too large or is not UTF-8, and what
            `load_document` raises.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise StudySyntaxError(f"There is no file {path}.", remedy="Check the path.") from error
    except IsADirectoryError as error:
        raise StudySyntaxError(f"{path} is a folder.", remedy="Name the YAML file inside it.") from error
    except OSError as error:
        raise StudySyntaxError(f"{path} cannot be read: {error.strerror}.", remedy="Check its permissions.") from error
    _check_size(len(content), path.name)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StudySyntaxError(f"{path.name}, line {line}: not UTF-8.", remedy="Save the file as UTF-8.") from error
    return load_document(text, model, path.name)


def load_document(text: str, model: type[AnyDocument], name: str) -> AnyDocument:
    """Return the document a YAML text holds, validated as strictly as JSON would be.

    Everything wrong with the content is said at once, by line, with what to write instead.

    Args:
        text: the YAML text; a byte-order mark at its start is ignored.
        model: the document's model; if it has a `schema_version`, that is compared before anything else.
        name: what the errors call the text, usually the file's name.

    Raises:
        StudySyntaxError: the text is too large or empty, or not the plain YAML described above.
        StudyVersionError: its `schema_version` is a whole number the model does not know.
        UnknownNameError: all that is wrong are names outside the list of what may be written.
        StudyInvalidError: a field is missing, unknown, of the wrong type or out of range, or fields contradict.
    """
    _check_size(len(text), name)
    content, lines = _parse(text.removeprefix("\ufeff"), name)
    _check_version(content, model, name)
    try:
        return model.model_validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        details = error.errors(include_url=False)
        sentences = explain(details, model, content, lines)
        count = "one thing" if len(sentences) == 1 else f"{len(sentences)} things"
        what = "\n  ".join([f"{name}: {count} to correct.", *sentences]) + "\n"
        only_names = all(detail["type"] in NAME_ERRORS for detail in details)
        raise (UnknownNameError if only_names else StudyInvalidError)(what) from None


def _check_size(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise StudySyntaxError(f"{name} has more than {MAX_FILE_BYTES // 1024} KiB.", remedy="Shorten it.")


def _check_version(content: dict[str, Any], model: type[Document], name: str) -> None:
    field, version = model.model_fields.get("schema_version"), content.get("schema_version")
    if field is None or type(version) is not int or version in (known := get_args(field.annotation)):
        return
    raise StudyVersionError(
        f"{name} is written for schema version {version}; this EchoFed knows version {', '.join(map(str, known))}."
    )


def _parse(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    """Return the fields of a text, and the 1-based line of each value by its location."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and "\t" in line[: len(line) - len(line.lstrip())]:
            raise StudySyntaxError(f"{name}, line {number}: a tab; indent with spaces.")
    lines: Lines = {}
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        content = _read_documents(events, lines)
    except _RefusedError as refused:
        raise StudySyntaxError(f"{name}, line {refused.line}: {refused.reason}.") from None
    except yaml.reader.ReaderError as error:
        row = text[: error.position].count("\n") + 1
        raise StudySyntaxError(f"{name}, line {row}: a character that is not text.") from None
    except yaml.MarkedYAMLError as error:
        raise StudySyntaxError(f"{name}, {_explain_syntax(error, text)}.") from None
    if content is None:
        raise StudySyntaxError(f"{name} is empty.", remedy="Write the fields it needs.")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise StudySyntaxError(f"{name} is {kind}.", remedy="Write fields, as in `title: ...`, one a line.")
    return content, lines


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _RefusedError(Exception):
    """A construct that is YAML but not plain."""

    def __init__(self, event: yaml.Event, reason: str) -> None:
        super().__init__(reason)
        self.line = _line(event)
        self.reason = reason


def _read_documents(events: Iterator[yaml.Event], lines: Lines) -> Any:
    content: Any = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _RefusedError(event, "a second document begins; write one document a file, without ---")
        elif isinstance(event, yaml.NodeEvent):
            content = _read_node(event, events, (), lines)
    return content


def _read_node(event: yaml.Event, events: Iterator[yaml.Event], where: Location, lines: Lines) -> Any:
    """Return the value that begins with `event`, taking the rest of it from `events`."""
    if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) or event.anchor is not None:
        raise _RefusedError(
            event, "anchors (&) and aliases (*) are not accepted; write the value out, in quotes if text"
        )
    if event.tag is not None:
        raise _RefusedError(
            event, f"the tag {event.tag[:40]} is not accepted; write the plain value, in quotes if text"
        )
    if len(where) >= MAX_DEPTH:
        raise _RefusedError(event, f"nested more than {MAX_DEPTH} deep")
    lines.setdefault(where, _line(event))
    if isinstance(event, yaml.MappingStartEvent):
        return _read_mapping(events, where, lines)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_read_node(item, events, (*where, len(items)), lines))
        return items
    assert isinstance(event, yaml.ScalarEvent)
    return event.value if event.style is not None else _resolve(event)


def _read_mapping(events: Iterator[yaml.Event], where: Location, lines: Lines) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise _RefusedError(key, "a field's name must be text")
        name = _read_node(key, events, (), {})
        if not isinstance(name, str):
            raise _RefusedError(
                key, f"a field's name must be text; put {key.value[:40] or 'it'} in quotes if it is meant"
            )
        if name in fields:
            raise _RefusedError(key, f"{name[:60]} is written twice, first in line {lines[(*where, name)]}")
        lines[(*where, name)] = _line(key)
        fields[name] = _read_node(next(events), events, (*where, name), lines)
    return fields


def _resolve(event: yaml.ScalarEvent) -> Any:
    """Return what an unquoted word means in the core schema of YAML 1.2."""
    text = event.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        raise _RefusedError(event, f"{text} is not a number that can be used")
    whole, other_base = _INTEGER.fullmatch(text), _OTHER_BASE.fullmatch(text)
    if not (whole or other_base or _FLOAT.fullmatch(text)):
        return text
    if len(text) > MAX_NUMBER_LENGTH:
        raise _RefusedError(event, f"a number of {len(text)} characters; put it in quotes if it is text")
    if whole or other_base:
        return int(text, 10 if whole else 0)
    if not math.isfinite(number := float(text)):
        raise _RefusedError(event, f"{text} is too large a number")
    return number


def _explain_syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return "not YAML"
    line = mark.line + 1
    rows = text.split("\n")
    row = rows[mark.line] if mark.line < len(rows) else ""
    if row[mark.column : mark.column + 1] == "\t":
        return f"line {line}: a tab; use spaces"
    if row[mark.column : mark.column + 1] in ("@", "`", "%"):
        return f"line {line}: text that begins with {row[mark.column]} must be in quotes"
    if "mapping values are not allowed" in (error.problem or ""):
        return f"line {line}: a second colon; put text that holds a colon in quotes, or check the indentation"
    since = f" (it began in line {error.context_mark.line + 1})" if error.context_mark else ""
    return f"line {line}: {error.problem or error.context}{since}"
