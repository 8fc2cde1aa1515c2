"""The tree of errors: unique codes, remedies, and a page that lists them all."""

import inspect
import re
from pathlib import Path

from echofed.client.ingest import errors as ingest_errors
from echofed.protocol import errors

CLASSES = [
    value
    for module in (errors, ingest_errors)
    for _, value in inspect.getmembers(module, inspect.isclass)
    if issubclass(value, errors.EchoFedError) and value.__module__ == module.__name__
]
TREE = (errors.__doc__ or "") + (ingest_errors.__doc__ or "")
PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


def test_codes_are_unique_and_drawn_in_the_docstring() -> None:
    codes = [one.code for one in CLASSES]
    assert len(set(codes)) == len(codes)
    for one in CLASSES:
        assert one.__name__ in TREE
        assert one.code in TREE or one.code.endswith("00")


def test_every_error_is_on_the_page_and_nothing_else() -> None:
    assert sorted(re.findall(r"^## (EF-\d+) (\w+)$", PAGE, re.M)) == sorted((one.code, one.__name__) for one in CLASSES)


def test_an_error_says_what_and_what_to_do() -> None:
    error = errors.TooFewRepliesError("Round 3 had 1 reply.")
    assert str(error).startswith("[EF-601] Round 3 had 1 reply. The last good model")
    assert errors.RunError("x", "do y").remedy == "do y"
