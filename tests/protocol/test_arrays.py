"""Parameters as bytes: exact there and back, and anything odd refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from echofed.protocol.arrays import (
    BLOCK,
    check_like,
    decode_parameters,
    encode_blocks,
    encode_parameters,
    parts,
    read_metadata,
    write_parameters,
)
from echofed.protocol.errors import ArraysError
from echofed.protocol.mapped_files import map_file, release

LIMIT = 1 << 20
FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=st.floats(width=32))


@given(
    st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"), FLOATS, max_size=4)
)
def test_round_trip_is_exact(parameters: dict[str, np.ndarray]) -> None:
    try:
        buffer = encode_parameters(parameters)
    except UnicodeEncodeError:
        return
    decoded = decode_parameters(buffer, LIMIT)
    assert decoded.keys() == parameters.keys()
    for name, array in parameters.items():
        np.testing.assert_array_equal(decoded[name], array)
        assert (decoded[name].dtype, decoded[name].shape) == (np.float32, array.shape)
    if parameters:
        assert buffer == save(parameters), "not what the safetensors library writes"


def test_the_safetensors_library_reads_what_is_written() -> None:
    parameters = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "ü": np.ones((), np.float32)}
    for metadata in (None, {"b": "1", "a": '"'}):
        read = load(encode_parameters(parameters, metadata))
        assert read.keys() == parameters.keys()
        np.testing.assert_array_equal(read["w"], parameters["w"])


def test_metadata_have_one_order() -> None:
    one, other = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    assert encode_parameters({"w": np.zeros(2, np.float32)}, one) == encode_parameters(
        {"w": np.zeros(2, np.float32)}, other
    )


def test_arrays_made_in_blocks_give_the_same_buffer() -> None:
    rng = np.random.default_rng(0)
    arrays = {"z": rng.normal(size=(3, BLOCK)).astype(np.float32), "a": np.ones((), np.float32), "e": np.zeros((0, 2))}
    arrays["e"] = arrays["e"].astype(np.float32)
    blocks = (arrays[name].reshape(-1)[part] for name in sorted(arrays) for part in parts(arrays[name].size))
    assert encode_blocks(arrays, blocks) == encode_parameters(arrays) == save(arrays)


def test_a_mapped_file_is_read_where_it_lies_and_stays_readable_once_released(tmp_path: Path) -> None:
    arrays = {"z": np.random.default_rng(0).normal(size=(3, BLOCK)).astype(np.float32), "a": np.ones(2, np.float32)}
    (tmp_path / "file").write_bytes(encode_parameters(arrays))
    mapped = decode_parameters(map_file(tmp_path / "file"), LIMIT * 100)
    pieces: list[bytes] = []
    write_parameters(lambda piece: pieces.append(bytes(piece)), mapped)
    assert b"".join(pieces) == (tmp_path / "file").read_bytes()
    release(*mapped.values(), arrays["z"])
    (tmp_path / "file").unlink()
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], array)
        with pytest.raises(ValueError, match="read-only"):
            mapped[name][0] = 0


def test_an_empty_file_holds_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArraysError):
        decode_parameters(map_file(tmp_path / "file"), LIMIT)


def test_metadata_travels_in_the_header() -> None:
    buffer = encode_parameters({"w": np.zeros(2, np.float32)}, {"trainable": '["w"]'})
    assert read_metadata(buffer) == {"trainable": '["w"]'}
    assert read_metadata(encode_parameters({"w": np.zeros(2, np.float32)})) == {}


@given(st.binary(max_size=200))
def test_garbage_is_refused(buffer: bytes) -> None:
    with pytest.raises(ArraysError):
        decode_parameters(buffer, LIMIT)


@given(st.data())
def test_a_damaged_buffer_is_refused_or_still_well_formed(data: st.DataObject) -> None:
    buffer = bytearray(encode_parameters({"a": np.ones((2, 3), np.float32), "b": np.zeros(1, np.float32)}))
    buffer[data.draw(st.integers(0, len(buffer) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_parameters(bytes(buffer), LIMIT)
    except ArraysError:
        return
    assert all(array.dtype == np.float32 for array in decoded.values())


def _buffer(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "buffer",
    [
        _buffer({"w": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        _buffer({"w": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        _buffer({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
        _buffer({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, b"\0" * 4),
        _buffer({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        _buffer({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 8),
        _buffer({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"\0" * 4),
        _buffer({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4),
        _buffer({"w": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        _buffer({"w": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, b"\0" * 4),
        _buffer({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}, b"\0" * 4),
        _buffer({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4),
        (5010).to_bytes(8, "little") + b'{"a": ' + b"1" * 5003 + b"}",
        _buffer([1, 2]),
        _buffer({"w": 3}),
        (2**63).to_bytes(8, "little") + b"{}",
        b"",
    ],
)
def test_malformed_headers_are_refused(buffer: bytes) -> None:
    with pytest.raises(ArraysError):
        decode_parameters(buffer, LIMIT)


def test_size_is_checked_first() -> None:
    with pytest.raises(ArraysError, match="at most"):
        decode_parameters(encode_parameters({"w": np.zeros(100, np.float32)}), 64)


def test_only_float32_is_written() -> None:
    with pytest.raises(ArraysError, match="int64"):
        encode_parameters({"w": np.zeros(2, np.int64)})  # type: ignore[dict-item]


def test_check_like_wants_the_same_names_shapes_and_finite_values() -> None:
    template = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    check_like({name: array + 1 for name, array in template.items()}, template)
    for bad in (
        {"a": template["a"]},
        {**template, "c": template["b"]},
        {**template, "b": np.zeros(4, np.float32)},
        {**template, "b": np.array([0, np.inf, 0], np.float32)},
        {**template, "b": np.array([0, np.nan, 0], np.float32)},
    ):
        with pytest.raises(ArraysError):
            check_like(bad, template)
