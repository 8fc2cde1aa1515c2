"""Decoding: every kind of file gives grey levels or a reason, and never raises."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echofed.client.images import GreyImage, read_image, read_mask, resize_image, resize_mask
from echofed.client.ingest.encryption import make_store_key
from echofed.client.ingest.frame_store import write_frame
from echofed.client.reasons import Reason
from echofed.protocol.errors import KeyFileError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE

GRADIENT = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def grey(path: Path) -> GreyImage:
    image = read_image(path)
    assert isinstance(image, GreyImage), image
    assert image.pixels.dtype == np.uint8
    return image


@pytest.mark.parametrize(
    ("mode", "converted"),
    [("L", ""), ("LA", ""), ("RGB", "colour"), ("RGBA", "colour"), ("P", "colour")],
)
def test_grey_in_any_wrapping_keeps_its_levels(tmp_path: Path, mode: str, converted: str) -> None:
    image = grey(saved(tmp_path, Image.fromarray(GRADIENT).convert(mode)))
    np.testing.assert_array_equal(image.pixels, GRADIENT)
    assert image.converted == converted


def test_colour_becomes_luma_and_transparency_black(tmp_path: Path) -> None:
    red = np.zeros((40, 60, 4), np.uint8)
    red[:, :30] = (255, 0, 0, 255)
    red[:, 30:] = (255, 255, 255, 0)
    pixels = grey(saved(tmp_path, Image.fromarray(red))).pixels
    assert set(pixels[:, :30].ravel()) == {76}
    assert set(pixels[:, 30:].ravel()) == {0}


def test_a_transparent_palette_is_laid_over_black(tmp_path: Path) -> None:
    palette = Image.new("P", (60, 40), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    assert set(grey(saved(tmp_path, palette, transparency=1)).pixels.ravel()) == {0}


def test_cmyk_jpeg_and_one_bit_png_are_read(tmp_path: Path) -> None:
    cmyk = grey(saved(tmp_path, Image.fromarray(GRADIENT).convert("CMYK"), "a.jpg", quality=95))
    assert np.abs(cmyk.pixels.astype(int) - GRADIENT).mean() < 3
    bits = grey(saved(tmp_path, Image.fromarray(GRADIENT > 100), "b.png"))
    np.testing.assert_array_equal(bits.pixels, np.where(GRADIENT > 100, 255, 0))


@pytest.mark.parametrize(
    ("largest", "full_scale"), [(200, 255), (1000, 1023), (4000, 4095), (9000, 16383), (60000, 65535)]
)
def test_sixteen_bits_are_scaled_by_the_smallest_depth_that_holds_them(
    tmp_path: Path, largest: int, full_scale: int
) -> None:
    levels = np.linspace(0, largest, 40 * 60).reshape(40, 60).astype(np.uint16)
    image = grey(saved(tmp_path, Image.fromarray(levels)))
    np.testing.assert_array_equal(image.pixels, np.rint(levels * (255 / full_scale)).astype(np.uint8))
    assert image.converted == "16-bit"


def test_an_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(GRADIENT), exif=exif)
    np.testing.assert_array_equal(grey(path).pixels, np.rot90(GRADIENT, -1))


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    )  # fmt: skip


def encoded(name: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GRADIENT).save(stream, name)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (b"not an image", Reason.UNREADABLE),
        (encoded("PNG")[:-400], Reason.UNREADABLE),
        (encoded("JPEG")[:-400], Reason.UNREADABLE),
        (encoded("GIF"), Reason.UNREADABLE),
        (encoded("BMP"), Reason.UNREADABLE),
        (encoded("PNG").replace(b"IDAT", b"IDAX"), Reason.UNREADABLE),
        (png_header(100_000, 100_000), Reason.TOO_MANY_PIXELS),
        (png_header(10_000, 10_000), Reason.TOO_MANY_PIXELS),
    ],
)
def test_bad_files_have_a_reason(tmp_path: Path, content: bytes, reason: Reason) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert read_image(path) is reason
    assert read_mask(path) is reason


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GRADIENT), Image.fromarray(255 - GRADIENT)]
    path = saved(tmp_path, frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path) is Reason.SEVERAL_FRAMES


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=20), st.sampled_from(["PNG", "JPEG"]))
def test_no_damage_raises(tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes, name: str) -> None:
    content = bytearray(encoded(name))
    at %= len(content)
    content[at : at + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    assert isinstance(read_image(path), GreyImage | Reason)


@pytest.mark.parametrize("levels", [(0, 1), (0, 255), (3, 250)])
def test_masks_of_any_encoding_become_zero_and_one(tmp_path: Path, levels: tuple[int, int]) -> None:
    shape = GRADIENT > 100
    path = saved(tmp_path, Image.fromarray(np.where(shape, levels[1], levels[0]).astype(np.uint8)))
    np.testing.assert_array_equal(read_mask(path), shape)


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path, Image.new("L", (9, 9))))
    assert not isinstance(mask, Reason)
    assert mask.sum() == 0


@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 64), st.sampled_from(["pad", "stretch"]))
def test_resizing_fills_the_square_or_centres_the_image(height: int, width: int, side: int, how: str) -> None:
    white = np.full((height, width), 255, np.uint8)
    image = resize_image(white, side, how)  # type: ignore[arg-type]
    mask = resize_mask(white // 255, side, how)  # type: ignore[arg-type]
    assert image.shape == (side, side)
    np.testing.assert_array_equal(image, mask * 255)
    if how == "stretch":
        assert image.all()
    else:
        assert image.any(axis=0).sum() == max(1, round(width * side / max(height, width)))
        margins = np.flatnonzero(image.any(axis=1))
        assert abs(margins[0] - (side - 1 - margins[-1])) <= 1


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    shrunk = resize_image(stripes, 32, "stretch").astype(float)
    assert shrunk.std() < 5
    assert abs(shrunk.mean() - 127.5) < 2


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_stored_frames_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    key = make_store_key(tmp_path, "passphrase") if sealed else None
    path = write_frame(tmp_path, "abc", GRADIENT, {}, key)
    image = grey(path)
    np.testing.assert_array_equal(image.pixels, GRADIENT)
    assert image.converted == ""
    mask = read_mask(write_frame(tmp_path, "mask", (GRADIENT > 100).astype(np.uint8), {}, key))
    np.testing.assert_array_equal(mask, GRADIENT > 100)
    np.testing.assert_array_equal(resize_image(image.pixels, 32, "pad"), resize_image(GRADIENT, 32, "pad"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert read_image(path) is Reason.FRAME_DAMAGED
    assert read_mask(path) is Reason.FRAME_DAMAGED


def test_a_frame_of_another_store_has_a_reason_and_a_lost_key_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    mine = make_store_key(tmp_path, "passphrase")
    sealed = write_frame(tmp_path, "abc", GRADIENT, {}, mine)
    assert read_image(write_frame(tmp_path, "abd", GRADIENT, {}, bytes(32))) is Reason.FRAME_DAMAGED
    assert read_image(write_frame(tmp_path, "abe", GRADIENT, {}, None)) is Reason.FRAME_DAMAGED
    loose = tmp_path / sealed.name
    loose.write_bytes(sealed.read_bytes())
    assert read_image(loose) is Reason.FRAME_DAMAGED
    (tmp_path / "store.key").write_bytes(b"")
    with pytest.raises(KeyFileError, match="damaged"):
        read_image(sealed)


@given(st.binary(max_size=200))
def test_no_bytes_as_a_frame_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    assert read_image(path) is Reason.FRAME_DAMAGED
