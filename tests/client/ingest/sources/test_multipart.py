"""Multipart answers, however they are cut into pieces."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.multipart import copy_only_part, find_boundary
from echofed.client.ingest.sources.politeness import TransferError


class _Pieces(io.BytesIO):
    """Gives at most so many bytes at once."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self._most = most

    def read(self, amt: int | None = -1, /) -> bytes:
        return super().read(min(amt or 0, self._most))


def _body(content: bytes, *, with_length: bool, end: bytes = b"\r\n--b--\r\n") -> bytes:
    length = b"Content-Length: %d\r\n" % len(content) if with_length else b""
    return (
        b"preamble\r\n--b\r\ncontent-type: application/dicom; transfer-syntax=1.2\r\n"
        + length
        + b"\r\n"
        + content
        + end
    )


def _copied(body: bytes, most: int = 2**20) -> bytes:
    written = bytearray()
    copy_only_part(_Pieces(body, most), b"b", written.extend)
    return bytes(written)


_CONTENTS = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b", b"\r\n--", b"\r\n-", b"--b", b"x"])).map(b"".join)


@given(_CONTENTS, st.integers(1, 40), st.booleans())
def test_the_content_comes_whole(content: bytes, most: int, with_length: bool) -> None:
    if b"\r\n--b" in b"\r\n" + content:
        content = content.replace(b"b", b"c")
    assert _copied(_body(content, with_length=with_length), most) == content


@pytest.mark.parametrize("with_length", [True, False])
def test_every_early_end_is_found(with_length: bool) -> None:
    body = _body(b"0123456789", with_length=with_length)
    for end in range(len(body) - 2):
        with pytest.raises(TransferError) as caught:
            _copied(body[:end])
        assert (caught.value.reason, caught.value.may_pass) == (Reason.BROKEN_OFF, True)


def test_other_answers_are_refused() -> None:
    two = _body(b"one", with_length=False, end=b"\r\n--b\r\ncontent-type: application/dicom\r\n\r\ntwo\r\n--b--")
    page = _body(b"one", with_length=False).replace(b"application/dicom", b"text/html")
    for body in (two, page, b"x" * 20_000):
        with pytest.raises(TransferError) as caught:
            _copied(body)
        assert caught.value.reason is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', b"a b"),
        ("Multipart/Related;boundary=xyz;type=application/dicom", b"xyz"),
    ],
)
def test_boundaries(content_type: str, boundary: bytes) -> None:
    assert find_boundary(content_type) == boundary


@pytest.mark.parametrize("content_type", ["", "text/html; boundary=x", "multipart/related"])
def test_types_without_a_boundary_are_refused(content_type: str) -> None:
    with pytest.raises(TransferError):
        find_boundary(content_type)
