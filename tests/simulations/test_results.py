"""Results in one line, and what is no result."""

from pathlib import Path
from typing import Any

import pytest

from echofed.protocol.errors import RunError
from echofed.simulations.results import headline, read_results


def results(metric: float | None, interval: list[float] | None, private: bool = True) -> dict[str, Any]:
    pooled = {"metric": metric, "interval": interval, "patients": 7}
    return {"metric": "mean_absolute_error", "test": {"pooled": pooled}, "private": private, "best_round": 3}


def test_the_headline_says_what_was_measured_on_whom_and_how_protected() -> None:
    line = headline(results(4.25, [3.0, 6.5]))
    assert line == (
        "Test mean absolute error 4.250 (95% interval 3.000 to 6.500) on 7 patients, round 3, patient-level privacy."
    )
    assert "WITHOUT privacy" in headline(results(4.25, [3.0, 6.5], private=False))


def test_the_headline_never_says_nan() -> None:
    assert "too few for an interval" in headline(results(4.25, None))
    assert headline(results(None, None)) == "No test patient to judge the model by; best round 3."


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"format": 99}'])
def test_what_is_not_a_finished_run_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(RunError, match="holds no finished run"):
        read_results(tmp_path)
