"""A round is answered once, whatever happens to the process in between."""

from pathlib import Path

import pytest

from echofed.client.answered import claim_round
from echofed.protocol.errors import RepeatedRoundError
from tests.studies import PRIVATE, make_study


def test_rounds_are_claimed_in_order_and_once(tmp_path: Path) -> None:
    study, other = make_study(privacy=PRIVATE), make_study(privacy=PRIVATE, title="Another")
    claim_round(tmp_path, study, 1)
    claim_round(tmp_path, study, 3)
    for repeated in (1, 2, 3):
        with pytest.raises(RepeatedRoundError):
            claim_round(tmp_path, study, repeated)
    claim_round(tmp_path, study, 4)
    claim_round(tmp_path, other, 1)
