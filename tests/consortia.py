"""Small consortia for tests: real keys and certificates, and processes that are killed between two writes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from echofed.client.identity import SiteRequest, init_site, join
from echofed.client.identity_files import Identity
from echofed.server.authority import Consortium, init_consortium
from echofed.server.members import enrol, invite

NAME, ADDRESS = "Échographies de l'Ouest", "fed.example.org:8443"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def make_consortium(folder: Path, name: str = NAME, **options: Any) -> Consortium:
    """Return a new consortium in `folder`/C."""
    return init_consortium(folder / "C", name, ADDRESS, **options)


def ask(folder: Path, site: str = "north", **options: Any) -> SiteRequest:
    """Return the request of a site that has just been invited; its state is in `folder`/SITE."""
    invitation = invite(folder / "C", site, **options)
    return init_site(folder / site, invitation, path=folder / f"{site}.request", **options)


def enrolled(folder: Path, site: str = "north", **options: Any) -> Identity:
    """Return the identity of a new member."""
    request = ask(folder, site, **options)
    return join(folder / site, enrol(folder / "C", request.path, request.words, **options), **options)


class Killed(BaseException):
    """What a process does not survive."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Kill whatever runs before its `step`th change of a file's name or existence (1-based); yields how many there were.

    What was written before stays, clean-up that catches OSError does not run.
    """
    count = [0]

    def counted(change: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise Killed
            return change(*arguments, **options)

        return changed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "mkdir", counted(Path.mkdir))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        yield count
