import contextlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data.images import ImageError, decode


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    width, height = size
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, red / 2], axis=-1).astype(np.uint8)).convert(mode)


def test_rgb_is_unchanged_whether_bytes_or_path(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    for data in (encode(picture()), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(decode(data), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    np.testing.assert_array_equal(decode(encode(picture(mode), kind)), np.asarray(picture(mode).convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    decoded = decode(encode(red.convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(decoded.astype(int), np.asarray(red).astype(int), atol=6)


def test_16_bit_grey_is_scaled_not_clipped():
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(wide), kind))[0, :, 0], [0, 1, 128, 255])


def test_numbers_without_a_white_are_refused():
    for pixels in (np.array([[0.0, 1.0]], np.float32), np.array([[0, 70_000]], np.int32)):
        with pytest.raises(ImageError, match="no defined white"):
            decode(encode(Image.fromarray(pixels), "TIFF"))


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (100, 0, 0, 255))
    np.testing.assert_array_equal(decode(encode(half)), [[[255, 255, 255], [100, 0, 0]]])
    np.testing.assert_array_equal(decode(encode(Image.new("LA", (1, 1), (0, 0)))), [[[255, 255, 255]]])


def test_a_transparent_palette_entry_is_white_too():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encode(palette, transparency=0)), [[[255, 255, 255], [40, 50, 60]]])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = np.asarray(picture().transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode(encode(picture(), exif=exif)), upright)


def test_of_an_animation_the_first_frame_counts():
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    gif = encode(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(gif), np.asarray(first))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated_files_are_bad_and_named(kind, tmp_path):
    whole = encode(picture(size=(200, 150)), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=re.escape(str(path))):
        decode(path)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_what_is_no_image_is_bad_and_named(data):
    with pytest.raises(ImageError, match="number 17"):
        decode(data, name="number 17")


def test_a_damaged_byte_gives_pixels_or_an_image_error_and_nothing_else():
    whole, rng = encode(picture()), np.random.default_rng(0)
    for place in rng.integers(len(whole), size=200):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with contextlib.suppress(ImageError):
            assert decode(bytes(damaged)).dtype == np.uint8


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow only warns below a factor of two
def test_decompression_bombs_are_bad(factor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(24 * 16 / factor))
    with pytest.raises(ImageError, match="DecompressionBomb"):
        decode(encode(picture()))


def test_a_missing_file_is_not_a_damaged_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.png")
