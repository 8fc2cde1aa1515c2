"""What pydantic found wrong with a document, in words that say what to write instead."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]
NAME_ERRORS = frozenset({"literal_error", "union_tag_invalid", "enum"})
"""Errors where a name was written that is not among those offered."""

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_EXAMPLES = {"float": "0.1", "int": "10", "string": '"in quotes"', "bool": "true", "tuple": "[first, second]"}
_KINDS = {
    "float": "a number, without quotes",
    "int": "a whole number, without quotes",
    "string": "text, in quotes if it looks like a number",
    "bool": "true or false",
    "tuple": "a list",
}


def explain(
    details: Sequence[ErrorDetails], model: type[BaseModel], content: Mapping[str, Any], lines: Mapping[Location, int]
) -> list[str]:
    """Return one sentence for each error, sorted by line.

    Args:
        details: what `ValidationError.errors()` returned.
        model: the model that was validated.
        content: what was validated.
        lines: the 1-based line of each value of `content`.
    """
    found: set[tuple[int, str]] = set()
    for detail in details:
        where = _written_location(detail["loc"], content)
        if detail["type"] == "missing":
            where = where[:-1]
        line = next(lines[where[:end]] for end in range(len(where), -1, -1) if where[:end] in lines)
        path = ".".join(str(part + 1) if isinstance(part, int) else part[:60] for part in where)
        sentence = _sentence(detail, model, where)
        found.add((line, f"line {line}: {f'{path}: ' if path else ''}{sentence}"))
    return [sentence for _, sentence in sorted(found)]


def _written_location(loc: Location, content: Any) -> Location:
    """Return the location as the file spells it: pydantic puts the tag of a union in its own."""
    where: list[str | int] = []
    node = content
    for part in loc:
        if isinstance(node, Mapping) and part in node:
            node = node[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif isinstance(node, Mapping) and part in [value for value in node.values() if isinstance(value, str)]:
            continue
        where.append(part)
    return tuple(where)


def _sentence(detail: ErrorDetails, model: type[BaseModel], where: Location) -> str:
    kind, given, limits = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return _missing(model, detail["loc"])
    if kind == "extra_forbidden":
        return _unknown_field(model, detail["loc"], where)
    if kind == "union_tag_not_found":
        return f"add `{str(limits['discriminator']).strip(chr(39))}:`, one of: {_options(model, detail['loc'])}"
    if kind in NAME_ERRORS:
        tags = limits.get("expected_tags", limits.get("expected"))
        name = limits.get("tag", given)
        return f"{_show(name)} is not known; write one of: {str(tags).replace(' or ', ', ').replace(chr(39), '')}"
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"{_show(given)} must be {words} {limits[limit]:g}"
    if kind == "value_error":
        return str(limits.get("error", detail["msg"]))
    return _wrong_type(kind, given, where, model, detail)


def _wrong_type(kind: str, given: Any, where: Location, model: type[BaseModel], detail: ErrorDetails) -> str:
    wanted = kind.split("_")[0]
    field = next((part for part in reversed(where) if isinstance(part, str)), "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        owners = _models(_annotation_at(model, detail["loc"]))
        fields = ", ".join(dict.fromkeys(name for owner in owners for name in owner.model_fields))
        return f"{_show(given)} is not a group of fields; write its fields below it, indented: {fields}"
    if wanted in _KINDS and (kind.endswith(("_type", "_parsing")) or kind == "int_from_float"):
        return f"{_show(given)} is not {_KINDS[wanted]}; write it as in `{field}: {_EXAMPLES[wanted]}`"
    return f"{_show(given)}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _missing(model: type[BaseModel], loc: Location) -> str:
    owner, name = _annotation_at(model, loc[:-1]), str(loc[-1])
    field = next((part.model_fields[name] for part in _models(owner) if name in part.model_fields), None)
    if field is None:
        return f"add `{name}:`"
    choices = ", ".join(map(str, _choices(field.annotation)))
    described = field.description or next((_first_line(part) for part in _models(field.annotation)), "")
    meaning = ": ".join(filter(None, [f"one of {choices}" if choices else "", described]))
    return f"add `{name}:`" + (f" ({meaning.rstrip('.')})" if meaning else "")


def _unknown_field(model: type[BaseModel], loc: Location, where: Location) -> str:
    name = str(loc[-1])
    known = [field for owner in _models(_annotation_at(model, loc[:-1])) for field in owner.model_fields]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"no such field; did you mean {near[0]}?"
    here = ".".join(str(part) for part in where)
    if elsewhere := [path for path in _paths(model) if path.endswith(f".{name}") and path != here]:
        return f"no such field here; it belongs in {' or '.join(sorted(set(elsewhere)))}"
    return f"no such field; there are: {', '.join(known)}"


def _options(model: type[BaseModel], loc: Location) -> str:
    tags = [_choices(field.annotation) for owner in _models(_annotation_at(model, loc)) for field in _tag_fields(owner)]
    return ", ".join(str(tag) for group in tags for tag in group)


def _tag_fields(owner: type[BaseModel]) -> list[FieldInfo]:
    return [field for field in owner.model_fields.values() if _choices(field.annotation) and field.is_required()]


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]


def _show(given: Any) -> str:
    if given is None:
        return "an empty field"
    if isinstance(given, dict):
        return "a group of fields"
    text = json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _parts(member)
    else:
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


def _annotation_at(model: Any, loc: Location) -> Any:
    """Return the type declared at a location of pydantic's; `None` if it leads nowhere."""
    annotation = model
    for part in loc:
        owners = _models(annotation)
        if isinstance(part, int):
            arguments = [get_args(member) for member in _parts(annotation) if get_args(member)]
            annotation = arguments[0][0] if arguments else None
        elif fields := [owner.model_fields[part] for owner in owners if part in owner.model_fields]:
            annotation = fields[0].annotation
        else:
            tagged = [owner for owner in owners for field in _tag_fields(owner) if part in _choices(field.annotation)]
            annotation = tagged[0] if tagged else None
    return annotation


def _paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield above + name
        for inner in _models(field.annotation):
            yield from _paths(inner, f"{above}{name}.")
