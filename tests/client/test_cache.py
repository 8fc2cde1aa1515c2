"""Caches: decoded once, whole or absent, whatever dies and whoever else asks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echofed.client import image_cache
from echofed.client.cache import keep_rows, read_rows
from echofed.client.site import open_site
from echofed.protocol.errors import CacheError, RegistrationError

KEYS = [bytes([number]) * 32 for number in range(5)]
ROWS = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)


def blocks() -> list[np.ndarray]:
    return [ROWS[:2], ROWS[2:]]


def refuse() -> list[np.ndarray]:
    raise AssertionError("the cache was made again")


def all_examples(site: Any, make_study: Any, **preprocessing: Any) -> Any:
    evaluation = {"validation_fraction": 0.0, "test_fraction": 0.0}
    return site.examples(make_study(evaluation=evaluation, preprocessing=preprocessing), "training")


def test_rows_are_made_once_and_then_mapped(tmp_path: Path) -> None:
    made = keep_rows(tmp_path / "a.rows", KEYS, np.float32, blocks)
    mapped = keep_rows(tmp_path / "a.rows", KEYS, np.float32, refuse)
    np.testing.assert_array_equal(made, ROWS)
    np.testing.assert_array_equal(mapped, ROWS)
    assert not mapped.flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock", "a.rows"]


def test_other_keys_make_it_again(tmp_path: Path) -> None:
    keep_rows(tmp_path / "a.rows", KEYS, np.float32, blocks)
    other = keep_rows(tmp_path / "a.rows", KEYS[::-1], np.float32, lambda: [ROWS[::-1]])
    np.testing.assert_array_equal(other, ROWS[::-1])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_a_damaged_head_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes) -> None:
    path = tmp_path_factory.mktemp("cache") / "a.rows"
    keep_rows(path, KEYS, np.float32, blocks)
    content = bytearray(path.read_bytes())
    at %= 16 + 8 + 40 + 5 * 32
    content[at : at + len(damage)] = damage
    changed = bytes(content) != path.read_bytes()
    path.write_bytes(content)
    assert (read_rows(path) is None) == changed
    np.testing.assert_array_equal(keep_rows(path, KEYS, np.float32, blocks), ROWS)


@pytest.mark.parametrize("length", [0, 10, 30, 200, 4096, 4100])
def test_a_shortened_file_is_made_again(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.rows"
    keep_rows(path, KEYS, np.float32, blocks)
    path.write_bytes(path.read_bytes()[:length])
    assert read_rows(path) is None
    np.testing.assert_array_equal(keep_rows(path, KEYS, np.float32, blocks), ROWS)


def test_a_wrong_number_of_rows_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 rows were made for 5 keys"):
        keep_rows(tmp_path / "a.rows", KEYS, np.float32, lambda: [ROWS[:2]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]


MAKE = """
import sys, time
from pathlib import Path
import numpy as np
from echofed.client.cache import keep_rows
def blocks():
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    yield np.zeros((1, 4), np.uint8)
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
    yield np.ones((1, 4), np.uint8)
print(keep_rows(Path(sys.argv[1]), [bytes(32), b"x" * 32], np.uint8, blocks).tolist())
"""


def start(path: Path, log: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAKE, str(path), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_ask_at_once_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = [start(tmp_path / "a.rows", log, 0.5) for _ in range(4)]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in running]
    assert said == [str([[0] * 4, [1] * 4])] * 4
    assert log.read_text() == "made\n"


def test_killed_while_writing_the_next_process_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    process = start(path, tmp_path / "log", 600)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)
    assert (tmp_path / "a.partial").exists()
    assert not path.exists()
    np.testing.assert_array_equal(keep_rows(path, KEYS, np.float32, blocks), ROWS)
    assert not (tmp_path / "a.partial").exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from echofed.client.cache import keep_rows
from echofed.protocol.errors import CacheError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    keep_rows(Path(sys.argv[1]), [b"y" * 32] * 1000, np.uint8, lambda: iter([np.ones((1000, 32, 32), np.uint8)]))
except CacheError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    keep_rows(path, KEYS, np.float32, blocks)
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.startswith("[EF-203]")
    assert "Free some disk space" in said
    np.testing.assert_array_equal(keep_rows(path, KEYS, np.float32, refuse), ROWS)
    assert not (tmp_path / "a.partial").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot be written"):
        keep_rows(tmp_path / "none" / "a.rows", KEYS, np.float32, blocks)


def test_the_second_epoch_and_the_next_process_decode_nothing(
    hospital: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.fill(patients=5)
    first = all_examples(hospital.registered(), make_study)
    monkeypatch.setattr(image_cache, "read_image", refuse)
    again = all_examples(open_site(hospital.state), make_study)
    np.testing.assert_array_equal(first.images, again.images)


def test_added_data_extend_the_cache(hospital: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital.fill(patients=5)
    before = np.array(all_examples(hospital.registered(), make_study).images)
    hospital.add("new")
    decoded: list[str] = []
    read_image = image_cache.read_image
    monkeypatch.setattr(image_cache, "read_image", lambda path: (decoded.append(path.name), read_image(path))[1])
    after = all_examples(hospital.registered(), make_study).images
    assert decoded == ["00005.png"]
    np.testing.assert_array_equal(after[:5], before)


def test_changed_data_are_refused_until_registered_then_decoded(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=3)
    site = hospital.registered()
    hospital.save("00001.png", hospital.picture(99))
    with pytest.raises(RegistrationError, match=r"00001\.png, or its mask, is not what it was"):
        all_examples(site, make_study)
    site.register()
    hospital.save("00001.png", hospital.picture(98))
    site.register()
    images = all_examples(site, make_study, resize="stretch", image_size_px=64).images
    expected = image_cache.resize_image(hospital.picture(98), 64, "stretch")
    np.testing.assert_array_equal(images[1], expected)


def test_each_size_and_way_of_resizing_has_its_own_cache(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=2)
    site = hospital.registered()
    padded = all_examples(site, make_study, image_size_px=32)
    stretched = all_examples(site, make_study, image_size_px=32, resize="stretch")
    large = all_examples(site, make_study, image_size_px=48)
    assert padded.images.shape == stretched.images.shape == (2, 32, 32)
    assert large.images.shape == (2, 48, 48)
    assert not padded.images[:, 0].any()
    assert stretched.images[:, 0].any()


def test_features_are_computed_once_for_each_encoder(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=3)
    site = hospital.registered()
    study = make_study()
    computed = site.cached_features(study, "a" * 64, lambda: iter([ROWS[:2, 0], ROWS[2:3, 0]]))
    np.testing.assert_array_equal(computed, ROWS[:3, 0])
    np.testing.assert_array_equal(open_site(hospital.state).cached_features(study, "a" * 64, refuse), ROWS[:3, 0])
    np.testing.assert_array_equal(site.cached_features(study, "b" * 64, lambda: [ROWS[2:, 0]]), ROWS[2:, 0])
