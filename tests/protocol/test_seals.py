"""What a site says of an error: a code and one printable sentence."""

import pytest
from pydantic import ValidationError

from echofed.protocol import errors
from echofed.protocol.errors import EchoFedError
from echofed.protocol.seals import ErrorReply, error_said


@pytest.mark.parametrize("sentence", ["A\x1b[2J", "No.\nnorth: ok", "a\u202eb", "x" * 201])
def test_a_sentence_that_could_steer_a_terminal_is_refused(sentence: str) -> None:
    with pytest.raises(ValidationError):
        ErrorReply(code="EF-406", sentence=sentence)


def test_every_error_can_be_said() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EchoFedError)]
    said = [error_said(kind("what")) for kind in kinds if kind.code.startswith("EF-")]
    assert len(said) > 30
    assert all(one.sentence for one in said)
