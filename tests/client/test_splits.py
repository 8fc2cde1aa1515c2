"""Who trains and who tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echofed.client.splits import KEY_FILE, SPLITS, keep_split_key, keyed_hash, split_of
from echofed.protocol.errors import RegistrationError
from echofed.protocol.study import Evaluation

KEY = bytes(range(32))
FRACTIONS = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4))


@given(st.sets(st.text(max_size=12), min_size=1), FRACTIONS, st.binary(min_size=32, max_size=32))
def test_a_patient_has_one_split_whoever_else_is_there(
    patients: set[str], fractions: tuple[float, float], key: bytes
) -> None:
    evaluation = Evaluation(validation_fraction=fractions[0], test_fraction=fractions[1])
    splits = {patient: split_of(patient, key, evaluation) for patient in patients}
    assert set(splits.values()) <= set(SPLITS)
    assert splits == {patient: split_of(patient, key, evaluation) for patient in sorted(patients)}


@given(FRACTIONS, st.binary(min_size=32, max_size=32))
def test_fractions_hold_on_average(fractions: tuple[float, float], key: bytes) -> None:
    evaluation = Evaluation(validation_fraction=fractions[0], test_fraction=fractions[1])
    splits = [split_of(f"patient {number}", key, evaluation) for number in range(2000)]
    # Five standard deviations of a binomial share of 2000.
    for split, fraction in (("validation", fractions[0]), ("test", fractions[1])):
        assert abs(splits.count(split) / 2000 - fraction) <= 5 * (0.25 / 2000) ** 0.5


def test_the_test_only_grows_with_its_fraction() -> None:
    small, large = Evaluation(test_fraction=0.1), Evaluation(test_fraction=0.3)
    patients = [str(number) for number in range(500)]
    first, second = ({p for p in patients if split_of(p, KEY, one) == "test"} for one in (small, large))
    assert first < second


def test_another_key_gives_another_split() -> None:
    evaluation = Evaluation(test_fraction=0.5, validation_fraction=0)
    one, other = ([split_of(str(n), key, evaluation) for n in range(200)] for key in (KEY, bytes(32)))
    assert 50 < sum(a != b for a, b in zip(one, other, strict=True)) < 150


def test_purposes_do_not_share_hashes() -> None:
    assert keyed_hash(KEY, "split", "x") != keyed_hash(KEY, "patient", "x")


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    key = keep_split_key(tmp_path)
    assert len(key) == 32
    assert keep_split_key(tmp_path) == key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_a_given_key_is_kept_and_not_replaced(tmp_path: Path) -> None:
    assert keep_split_key(tmp_path, KEY) == KEY
    assert keep_split_key(tmp_path) == KEY
    with pytest.raises(RegistrationError, match="another key"):
        keep_split_key(tmp_path, bytes(32))
    with pytest.raises(RegistrationError, match="32 bytes, not 3"):
        keep_split_key(tmp_path, b"abc")
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(RegistrationError, match="damaged"):
        keep_split_key(tmp_path)


def test_processes_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from echofed.client.splits import keep_split_key;"
        "print(keep_split_key(Path(sys.argv[1])).hex())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1
