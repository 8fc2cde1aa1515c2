"""A bounded walk over the elements of a DICOM file before anything parses it: nothing is allocated by what the file announces."""

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from pydicom.datadict import dictionary_VR

from echofed.client.ingest.outcomes import SetAsideError, Why

MOST_ELEMENTS = 50_000
MOST_HEADER_BYTES = 64 * 2**20
DEEPEST_NESTING = 16

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_LENGTHS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_BULK = frozenset({b"OB", b"OW"})


@dataclass(frozen=True)
class Encoding:
    """How elements are written."""

    implicit: bool
    little: bool

    @property
    def order(self) -> str:
        """Byte order as `struct` spells it."""
        return "<" if self.little else ">"


@dataclass(frozen=True)
class Element:
    """One element as announced: from `start` on, its value `length` bytes from `at` or, `UNDEFINED`, up to a delimiter."""

    start: int
    tag: int
    vr: bytes
    at: int
    length: int


IMPLICIT_LITTLE = Encoding(implicit=True, little=True)


def is_vr(pair: bytes) -> bool:
    """Return whether two bytes look like a value representation."""
    return len(pair) == 2 and b"A" <= pair[:1] <= b"Z" and b"A" <= pair[1:] <= b"Z"


@dataclass
class Walk:
    """A walk over a file; counts what it passes.

    Args:
        stream: the file, or the inflated part of it.
        size: its bytes.
    """

    stream: BinaryIO
    size: int
    _passed: int = field(default=0, init=False)

    def to_pixels(self, start: int, encoding: Encoding) -> Element | None:
        """Return the pixel data of the top level, or None if there are none; what follows them is not looked at.

        Raises:
            SetAsideError: DAMAGED where an element reaches beyond what holds it, TOO_LARGE with more than 50,000
                elements or 64 MiB before the pixels, TOO_DEEP beyond 16 levels of nesting.
        """
        at = start
        while at < self.size and not self._only_padding(at):
            element = self.element(at, self.size, encoding)
            if element.tag == PIXEL_DATA:
                return element
            at = self._after(element, self.size, encoding, 0)
            if at > MOST_HEADER_BYTES:
                raise SetAsideError(Why.TOO_LARGE)
        return None

    def element(self, at: int, end: int, encoding: Encoding) -> Element:
        """Return the element that starts at `at`.

        Raises:
            SetAsideError: DAMAGED, TOO_LARGE.
        """
        self._passed += 1
        if self._passed > MOST_ELEMENTS:
            raise SetAsideError(Why.TOO_LARGE)
        head = self._read(at, min(12, end - at), 8)
        group, number = struct.unpack(encoding.order + "HH", head[:4])
        tag, vr, length, size = group << 16 | number, b"", 0, 8
        if encoding.implicit or group == 0xFFFE or not is_vr(head[4:6]):
            length = struct.unpack(encoding.order + "I", head[4:8])[0]
        elif (vr := head[4:6]) not in _LONG_LENGTHS:
            length = struct.unpack(encoding.order + "H", head[6:8])[0]
        else:
            if len(head) < 12:
                raise SetAsideError(Why.DAMAGED)
            length, size = struct.unpack(encoding.order + "I", head[8:12])[0], 12
        if length != UNDEFINED and length > end - at - size:
            raise SetAsideError(Why.DAMAGED)
        return Element(at, tag, vr or _known_vr(tag), at + size, length)

    def _after(self, element: Element, end: int, encoding: Encoding, depth: int) -> int:
        """Return where the next element starts, having walked over all that is nested in this one."""
        if element.vr == b"UN" and element.length == UNDEFINED:
            encoding = IMPLICIT_LITTLE  # PS3.5, 6.2.2
        elif element.vr in _BULK and element.length == UNDEFINED:
            return self._after_items(element, end, encoding, depth, opaque=True)
        elif element.vr != b"SQ" and element.length != UNDEFINED:
            return element.at + element.length
        return self._after_items(element, end, encoding, depth + 1, opaque=False)

    def _after_items(self, sequence: Element, end: int, encoding: Encoding, depth: int, opaque: bool) -> int:
        if depth > DEEPEST_NESTING:
            raise SetAsideError(Why.TOO_DEEP)
        at, last = sequence.at, end if sequence.length == UNDEFINED else sequence.at + sequence.length
        while at < last:
            item = self.element(at, last, encoding)
            if item.tag == _SEQUENCE_END and sequence.length == UNDEFINED:
                return item.at
            if item.tag != _ITEM or (opaque and item.length == UNDEFINED):
                raise SetAsideError(Why.DAMAGED)
            at = item.at + item.length if opaque else self._after_item(item, last, encoding, depth)
        if sequence.length == UNDEFINED:
            raise SetAsideError(Why.DAMAGED)
        return last

    def _after_item(self, item: Element, end: int, encoding: Encoding, depth: int) -> int:
        at, last = item.at, end if item.length == UNDEFINED else item.at + item.length
        while at < last:
            element = self.element(at, last, encoding)
            if element.tag == _ITEM_END and item.length == UNDEFINED:
                return element.at
            at = self._after(element, last, encoding, depth)
        if item.length == UNDEFINED:
            raise SetAsideError(Why.DAMAGED)
        return last

    def _only_padding(self, at: int) -> bool:
        """Whether nothing but zeros is left, as some writers leave at the end."""
        rest = self.size - at
        return rest <= 4096 and not any(self._read(at, rest, rest))

    def _read(self, at: int, count: int, least: int) -> bytes:
        self.stream.seek(at)
        data = self.stream.read(max(count, 0))
        if len(data) < least:
            raise SetAsideError(Why.DAMAGED)
        return data


def _known_vr(tag: int) -> bytes:
    try:
        return dictionary_VR(tag)[:2].encode()
    except KeyError:
        return b""
