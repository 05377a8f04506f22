"""Files become pictures, label maps and depth, or an error that names them."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data.images import ImageError, check_size, decode, decode_depth, decode_labels

NUMBERS = np.array([[0, 1, 2], [150, 200, 255]], np.uint8)
METRES = np.array([[0.5, 1234.5678, -3.0], [1e-20, 65504.0, 7.25]], np.float32)


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
    options = {"CMYK": {"kind": "TIFF"}, "YCbCr": {"kind": "TIFF", "compression": "tiff_lzw"}}.get(mode, {})
    decoded, expected = decode(encode(picture(mode), **options)), np.asarray(picture(mode).convert("RGB"))
    # libtiff itself makes RGB of YCbCr, and rounds in another way; Pillow 12.3 cannot read its own files without it.
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), atol=1 if mode == "YCbCr" else 0)


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


def test_a_damaged_byte_gives_pixels_or_an_image_error_and_nothing_else():
    whole, rng = encode(picture()), np.random.default_rng(0)
    for place in rng.integers(len(whole), size=200):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with contextlib.suppress(ImageError):
            assert decode(bytes(damaged)).dtype == np.uint8


# Label maps and depth


def saved(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_palette(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers, "L")
    image.putpalette([(7 * i + c * 50) % 256 for i in range(256) for c in range(3)])
    return image


@pytest.mark.parametrize("image", [Image.fromarray(NUMBERS), with_palette(NUMBERS)], ids=["grey", "palette"])
def test_labels_are_the_stored_numbers(image, tmp_path):
    image.save(tmp_path / "a.png")
    for data in (encode(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        labels = decode_labels(data)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, NUMBERS)


def test_a_palette_of_few_colours_and_one_with_transparency_keep_their_indices():
    few = NUMBERS // 86  # stored with two bits a pixel
    for options in ({}, {"transparency": 0}):
        np.testing.assert_array_equal(decode_labels(encode(with_palette(few), bits=2, **options)), few)


def test_one_bit_is_two_categories():
    labels = decode_labels(encode(Image.fromarray(NUMBERS > 1)))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, NUMBERS > 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_labels_of_16_bits_are_not_scaled(kind):
    wide = np.array([[0, 256, 65535]], np.uint16)
    labels = decode_labels(encode(Image.fromarray(wide), kind))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, wide)


def test_labels_of_32_bits_must_fit_into_16():
    fit = np.array([[3, 65535]], np.int32)
    np.testing.assert_array_equal(decode_labels(encode(Image.fromarray(fit), "TIFF")), fit)
    for number in (-1, 65536):
        with pytest.raises(ImageError, match=rf"within 0 to 65535; x.tif has .*{number}"):
            decode_labels(encode(Image.fromarray(np.array([[7, number]], np.int32)), "TIFF"), name="x.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_labels_of_several_channels_or_fractions_are_refused(mode):
    kind = "TIFF" if mode == "F" else "PNG"
    with pytest.raises(ImageError, match=f"one channel of whole numbers.* a.png is of mode {mode}"):
        decode_labels(encode(Image.new(mode, (3, 2)), kind), name="a.png")


def test_depth_of_four_bytes_is_one_little_endian_float():
    stored = np.frombuffer(METRES.astype("<f4").tobytes(), np.uint8).reshape(2, 3, 4)
    depth = decode_depth(encode(Image.fromarray(stored, "RGBA")))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, METRES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_of_grey_is_as_stored(dtype):
    grey = np.array([[0, 1, np.iinfo(dtype).max]], dtype)
    depth = decode_depth(encode(Image.fromarray(grey)))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, grey)


def test_depth_of_floating_point_tiff_and_arrays_is_as_stored(tmp_path):
    np.testing.assert_array_equal(decode_depth(encode(Image.fromarray(METRES), "TIFF")), METRES)
    np.save(tmp_path / "a.npy", METRES[..., None])
    np.testing.assert_array_equal(decode_depth(tmp_path / "a.npy"), METRES)
    half = METRES.astype(np.float16)
    np.testing.assert_array_equal(decode_depth(saved(half)), half)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_depth_must_be_finite(bad):
    with pytest.raises(ImageError, match=r"finite everywhere; a.npy has 1 pixels"):
        decode_depth(saved(np.array([[1.0, bad]])), name="a.npy")


def test_a_pickle_is_never_opened():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    trap = np.empty((1, 1), object)
    trap[0, 0] = Trap()
    for data in (saved(trap, allow_pickle=True), pickle.dumps(Trap())):
        with pytest.raises(ImageError, match="whole, readable file"):
            decode_depth(data)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3)), np.zeros(4), np.zeros((2, 2), complex)], ids=str)
def test_arrays_that_are_no_depth_are_refused(array):
    with pytest.raises(ImageError, match="array H W of real numbers"):
        decode_depth(saved(array))


def test_colours_are_no_depth():
    with pytest.raises(ImageError, match="mode RGB"):
        decode_depth(encode(Image.new("RGB", (3, 2))))


# Damage


@pytest.mark.parametrize("read", [decode, decode_labels, decode_depth])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_truncated_file_is_bad_and_named(read, kind, tmp_path):
    whole = encode(picture(size=(200, 150)), kind)
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="half is not"):
        read(tmp_path / "half")


@pytest.mark.parametrize("read", [decode, decode_labels, decode_depth])
def test_what_is_no_image_or_too_large_is_bad_and_named(read, tmp_path, monkeypatch):
    for data in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(100), b"\x93NUMPY\x01\x00"):
        with pytest.raises(ImageError, match="this one is not"):
            read(data)
        with pytest.raises(ImageError, match="number 17 is not"):
            read(data, name="number 17")
    for factor in (1.5, 3):  # Pillow only warns below a factor of two
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(24 * 16 / factor))
        with pytest.raises(ImageError, match="DecompressionBomb"):
            read(encode(picture()))
    with pytest.raises(FileNotFoundError):  # no damaged image
        read(tmp_path / "none.png")


def test_a_map_must_be_as_large_as_its_image():
    image = np.zeros((4, 6, 3), np.uint8)
    check_size(np.zeros((4, 6), np.float32), image, name="a.png")
    with pytest.raises(ImageError, match=r"image, 6 x 4 pixels; a.png is 4 x 6"):
        check_size(np.zeros((6, 4), np.uint8), image, name="a.png")
