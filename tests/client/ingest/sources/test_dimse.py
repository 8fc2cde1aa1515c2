"""DIMSE against a PACS that misbehaves in every way we know of."""

import socket
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources.item import Missed, Reason
from echofed.client.ingest.sources.settings import DimseSource, MoveSettings
from echofed.client.ingest.sources.storage import storage_classes, storage_contexts
from tests.client.ingest.sources.dimse_pacs import AE_TITLE, DimsePacs, serving
from tests.client.ingest.sources.fetches import Came, fetch
from tests.client.ingest.sources.samples import small_instance

KEYS = ("2.25.11", "2.25.12", "2.25.13", "2.25.14")
FILES = {uid: small_instance(uid) for uid in KEYS}


def _fetch(pacs: DimsePacs, tmp_path: Path, **settings: object) -> Came:
    source = DimseSource.model_validate(
        {"host": "127.0.0.1", "port": pacs.port, "ae_title": AE_TITLE, "timeout_seconds": 5.0, **settings}
    )
    return fetch(source, tmp_path / "spool")


def test_one_context_for_each_class_and_transfer_syntax() -> None:
    contexts = storage_contexts()
    assert len(contexts) <= 127, "with that of the request, 128 are allowed"
    assert all(len(context.transfer_syntax) == 1 for context in contexts)
    pairs = {(context.abstract_syntax, context.transfer_syntax[0]) for context in contexts}
    assert len(pairs) == len(contexts)
    assert {one for one, _ in pairs} == set(storage_classes())


def test_everything_comes(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files.keys() == FILES.keys()
    assert pacs.requests == [list(KEYS)]


def test_a_pacs_that_takes_no_lists_is_asked_one_by_one(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES, takes_lists=False)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files.keys() == FILES.keys()
    assert pacs.requests == [list(KEYS), *([key] for key in KEYS)]


def test_what_is_never_sent_is_missed(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES, withheld=frozenset({"2.25.12"}))) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files.keys() == FILES.keys() - {"2.25.12"}
    assert came.missed == [Missed("2.25.12", Reason.FEWER)]
    assert pacs.requests == [list(KEYS), ["2.25.12"], ["2.25.12"]]


def test_fewer_instances_than_promised_are_reported(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES, promised=9)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert (came.files.keys(), came.missed) == (FILES.keys(), [Missed("2.25.1.1", Reason.FEWER, 5)])


def test_what_was_not_asked_for_is_not_taken(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES, unasked=("2.25.99", "2.25.11"))) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files.keys() == FILES.keys()


def test_an_association_that_breaks_off_is_opened_again(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES, aborts=1)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert (came.files.keys(), came.missed) == (FILES.keys(), [])


def test_one_that_always_breaks_off_is_given_up(tmp_path: Path) -> None:
    with serving(DimsePacs({"2.25.11": FILES["2.25.11"]}, aborts=1000)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.missed == [Missed("2.25.11", Reason.BROKEN_OFF)]
    assert len(pacs.requests) == 3


@pytest.mark.parametrize(
    ("status", "reason"), [(0xA701, Reason.FAILED), (0xC001, Reason.FAILED), (0xA900, Reason.REFUSED)]
)
def test_refusals_do_not_end_the_run(tmp_path: Path, status: int, reason: Reason) -> None:
    with serving(DimsePacs(FILES, status=status)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert (came.files, came.reasons) == ({}, {reason: 4})


def test_a_silent_pacs_is_given_up(tmp_path: Path) -> None:
    start = time.monotonic()
    with serving(DimsePacs({"2.25.11": FILES["2.25.11"]}, silent_seconds=3)) as pacs:
        came = _fetch(pacs, tmp_path, timeout_seconds=0.3)
        assert time.monotonic() - start < 5
    assert [one.key for one in came.missed] == ["2.25.11"]


def test_another_patient_is_marked(tmp_path: Path) -> None:
    files = FILES | {"2.25.12": small_instance("2.25.12", patient="P2")}
    with serving(DimsePacs(files)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.whys == dict.fromkeys(KEYS, None) | {"2.25.12": Why.WRONG_PATIENT}


def test_an_instance_larger_than_allowed_is_not_taken(tmp_path: Path) -> None:
    files = FILES | {"2.25.12": small_instance("2.25.12", TextValue="x" * 3 * 2**20)}
    with serving(DimsePacs(files)) as pacs:
        came = _fetch(pacs, tmp_path, max_file_bytes=2**20)
    assert came.files.keys() == FILES.keys() - {"2.25.12"}
    assert [one.key for one in came.missed] == ["2.25.12"]


def test_wrong_ae_title_is_said_at_once(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES)) as pacs, pytest.raises(SourceError, match="WRONG"):
        _fetch(pacs, tmp_path, ae_title="WRONG")


def test_no_pacs_at_all_is_said(tmp_path: Path) -> None:
    with serving(DimsePacs(FILES)) as pacs:
        pass
    with pytest.raises(SourceError, match="did not answer"):
        _fetch(pacs, tmp_path)


def _free_port() -> int:
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return int(stream.getsockname()[1])


def test_c_move_brings_only_what_was_asked_for(tmp_path: Path) -> None:
    place = MoveSettings(ae_title="US", port=_free_port())
    pacs = DimsePacs(FILES, receiver=("127.0.0.1", place.port), unasked=("2.25.99",))
    with serving(pacs):
        came = _fetch(pacs, tmp_path, move=place)
    assert came.files.keys() == FILES.keys()


def test_c_move_to_a_place_the_pacs_does_not_know(tmp_path: Path) -> None:
    place = MoveSettings(ae_title="US", port=_free_port())
    with serving(DimsePacs(FILES)) as pacs, pytest.raises(SourceError, match="US"):
        _fetch(pacs, tmp_path, move=place)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken, serving(DimsePacs(FILES)) as pacs:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SourceError, match="port"):
            _fetch(pacs, tmp_path, move=MoveSettings(ae_title="US", port=taken.getsockname()[1]))


@pytest.mark.parametrize("title", ["", "x" * 17, "a\\b", "a\n", " "])
def test_ae_titles_that_are_none_are_refused(title: str) -> None:
    with pytest.raises(ValidationError):
        DimseSource(host="pacs", ae_title=title)
