"""The queue: whole or not there, seen by its owner alone, decided once, undone until it is carried out."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from echofed.client.ingest.errors import FrameStoreError, IngestError
from echofed.client.ingest.geometry import Box
from echofed.client.ingest.review.case import Decision, mask_of
from echofed.client.ingest.review.queue import (
    case_of,
    cases,
    decide,
    decided,
    frames_of,
    put_case,
    raw_of,
    remove_case,
    undo,
    undoable,
)
from tests.client.ingest.review.review_cases import NOON, a_case, accepting, frames_for, put, rejecting

MASK = Box(18, 28, 42, 152)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A queue yet to be made."""
    return tmp_path / "ingest" / "review"


def test_what_is_put_is_there_for_its_owner_alone(folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "spooled.dcm"
    raw.write_bytes(b"raw")
    raw.chmod(0o600)
    case = put(folder, a_case(frames=3), raw)
    assert cases(folder) == [case]
    assert case_of(folder, case.instance) == case
    frames = frames_of(folder, case.instance)
    assert np.array_equal(frames, frames_for(case))
    assert not frames.flags.writeable
    kept = raw_of(folder, case.instance)
    assert kept is not None
    assert kept.read_bytes() == b"raw"
    assert kept.samefile(raw)
    everything = [folder, *folder.rglob("*")]
    assert len(everything) >= 5
    assert {path.stat().st_mode & 0o777 for path in everything} == {0o600, 0o700}
    assert all((path.stat().st_mode & 0o777 == 0o700) == path.is_dir() for path in everything)


def test_a_raw_file_that_others_may_read_is_copied_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "export.dcm"
    raw.write_bytes(b"raw")
    raw.chmod(0o644)
    kept = raw_of(folder, put(folder, a_case(), raw).instance)
    assert kept is not None
    assert kept.read_bytes() == b"raw"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert raw.stat().st_mode & 0o777 == 0o644


def test_cases_of_one_layout_come_together(folder: Path) -> None:
    for number, layout in enumerate(("b", "a", "b", "a")):
        put(folder, a_case(number, layout=layout))
    assert [case.layout_key for case in cases(folder)] == ["a", "a", "b", "b"]
    assert cases(folder / "none") == decided(folder / "none") == undoable(folder / "none") == []


def test_frames_that_are_not_the_case_s_are_refused(folder: Path) -> None:
    case = a_case()
    frames = frames_for(case)
    for wrong in (frames[0], frames[:, 1:], frames.astype(np.uint16), np.concatenate((frames, frames))):
        with pytest.raises(IngestError):
            put_case(folder, case, wrong, None)
    with pytest.raises(IngestError):
        put(folder, a_case(writing=(Box(0, 0, 121, 10),)))
    assert cases(folder) == []
    assert not folder.exists() or not any(folder.iterdir())


def test_a_name_that_is_a_path_reaches_nothing(folder: Path, tmp_path: Path) -> None:
    put(folder, a_case())
    (tmp_path / "ingest" / "other").mkdir()
    for name in ("../other", "..", ".", "", "/etc", "INSTANCE0000/", ".lock", "a" * 65, "a\n"):
        with pytest.raises(ValidationError):
            a_case().__class__.model_validate({**a_case().model_dump(), "instance": name})
        for ask in (case_of, frames_of, raw_of, undo, remove_case):
            with pytest.raises(IngestError):
                ask(folder, name)
    assert (tmp_path / "ingest" / "other").is_dir()
    assert len(cases(folder)) == 1


def test_the_same_instance_again_replaces_what_waits_and_leaves_what_was_decided(folder: Path) -> None:
    put(folder, a_case(frames=1))
    case = put(folder, a_case(frames=2))
    assert cases(folder) == [case]
    decide(folder, accepting(case, MASK))
    put(folder, a_case(frames=3))
    assert cases(folder) == []
    assert decided(folder) == [(case, accepting(case, MASK))]
    assert frames_of(folder, case.instance).shape[0] == 2


def test_a_decision_is_kept_once(folder: Path) -> None:
    case = put(folder, a_case())
    decide(folder, accepting(case, MASK, remember=True))
    decide(folder, accepting(case, MASK, remember=True, by="Dr B. Petit"))
    assert undoable(folder) == [accepting(case, MASK, remember=True)]
    for other in (rejecting(case), accepting(case), accepting(case, MASK)):
        with pytest.raises(IngestError, match=r"Dr A\. Martin decided otherwise"):
            decide(folder, other)
    assert decided(folder) == [(case, accepting(case, MASK, remember=True))]


def test_a_mask_lies_within_the_image(folder: Path) -> None:
    case = put(folder, a_case())
    for box in (Box(0, 0, 121, 10), Box(0, 0, 10, 201)):
        with pytest.raises(IngestError):
            decide(folder, accepting(case, box))
    assert undoable(folder) == []
    decide(folder, accepting(case, Box(0, 0, 120, 200)))
    assert mask_of(case, undoable(folder)[0]).all()


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(5, 5, 5, 9), Box(5, 9, 9, 9), Box(9, 0, 5, 5)])
def test_an_impossible_box_is_refused(box: Box) -> None:
    with pytest.raises(ValidationError):
        accepting(a_case(), box)


def test_a_decision_that_makes_no_sense_is_refused() -> None:
    fields = {"instance": "A", "by": "Dr A. Martin", "decided_at": NOON}
    with pytest.raises(ValidationError, match="not masked"):
        Decision(decision="reject", boxes=(MASK,), remember=False, **fields)
    with pytest.raises(ValidationError, match="no mask to remember"):
        Decision(decision="accept", boxes=(), remember=True, **fields)
    with pytest.raises(ValidationError):
        Decision(decision="accept", boxes=(), remember=False, **{**fields, "by": "x\ny"})


def test_the_mask_is_what_was_drawn() -> None:
    case = a_case(height=4, width=6)
    mask = mask_of(case, accepting(case, Box(0, 0, 1, 2), Box(2, 3, 4, 6)))
    assert mask.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]


def test_a_decision_can_be_undone_until_it_is_carried_out(folder: Path) -> None:
    first, second = put(folder, a_case(1)), put(folder, a_case(0))
    decide(folder, rejecting(first))
    decide(folder, rejecting(second))
    assert [decision.instance for decision in undoable(folder)] == [first.instance, second.instance]
    assert undo(folder, second.instance) == second
    assert undo(folder, second.instance) == second
    assert cases(folder) == [second]
    assert decided(folder) == [(first, rejecting(first))]
    assert undoable(folder) == []
    with pytest.raises(IngestError, match="being carried out"):
        undo(folder, first.instance)
    with pytest.raises(IngestError, match="decided otherwise"):
        decide(folder, accepting(first))
    assert decided(folder) == [(first, rejecting(first))]  # as after a crash
    remove_case(folder, first.instance)
    remove_case(folder, first.instance)
    assert decided(folder) == []
    assert cases(folder) == [second]


def test_what_killed_processes_left_is_removed(folder: Path) -> None:
    put(folder, a_case())
    for name in (".A.gone", ".A.part", ".B.part"):
        (folder / name).mkdir()
        (folder / name / "raw.dcm").write_bytes(b"a name")
    yesterday = time.time() - 25 * 3600
    os.utime(folder / ".A.part", (yesterday, yesterday))
    assert decided(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == [".B.part", ".lock", "INSTANCE0000"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"instance": "OTHER"}'])
def test_a_damaged_case_is_named_not_passed_over(folder: Path, content: bytes) -> None:
    case = put(folder, a_case())
    (folder / case.instance / "case.json").write_bytes(content)
    with pytest.raises(FrameStoreError, match=case.instance):
        cases(folder)


def test_a_decision_of_another_image_is_not_carried_out(folder: Path) -> None:
    case = put(folder, a_case())
    (folder / case.instance / "decision.json").write_text(accepting(a_case(1)).model_dump_json())
    with pytest.raises(FrameStoreError, match="belongs to another"):
        decided(folder)


class _Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("opened",)


def test_damaged_frames_are_refused_and_nothing_in_them_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = put(folder, a_case())
    path = folder / case.instance / "frames.npy"
    monkeypatch.chdir(folder)
    for content in (b"", path.read_bytes()[:200], pickle.dumps(_Planted())):
        path.write_bytes(content)
        with pytest.raises(FrameStoreError):
            frames_of(folder, case.instance)
    np.save(path, np.array([_Planted()]), allow_pickle=True)
    with pytest.raises(FrameStoreError):
        frames_of(folder, case.instance)
    np.save(path, np.zeros((2, 3)))
    with pytest.raises(FrameStoreError):
        frames_of(folder, case.instance)
    assert not (folder / "opened").exists()


PUT_MANY = """
import sys
from pathlib import Path
from tests.client.ingest.review.review_cases import a_case, put
print("begun", flush=True)
for number in range(1000):
    put(Path(sys.argv[1]), a_case(number, frames=20), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_whole_cases_alone(folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "spooled.dcm"
    raw.write_bytes(b"raw" * 100_000)
    seen = 0
    for milliseconds in (30, 80, 130):
        process = subprocess.Popen([sys.executable, "-c", PUT_MANY, folder, raw], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(milliseconds / 1000)
            process.kill()
        for case in cases(folder):
            assert np.array_equal(frames_of(folder, case.instance), frames_for(case))
            kept = raw_of(folder, case.instance)
            assert kept is not None
            assert kept.stat().st_size == raw.stat().st_size
            seen += 1
    assert seen > 0


def test_the_same_instance_may_be_put_by_several_at_once(folder: Path) -> None:
    # An export may hold a file twice, and two processes read the two.
    case = a_case(frames=3)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(put, folder, case) for _ in range(64)]:
            done.result()
    assert cases(folder) == [case]
    assert np.array_equal(frames_of(folder, case.instance), frames_for(case))
    assert sorted(path.name for path in folder.iterdir()) == [".lock", case.instance]
