import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data import ImageError, images

NUMBERS = np.array([[0, 1, 2], [150, 200, 255]], np.uint8)
METRES = np.array([[0.5, 1234.5678, -3.0], [1e-20, 65504.0, 7.25]], np.float32)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
        labels = images.decode_labels(data)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, NUMBERS)


def test_a_palette_of_few_colours_and_one_with_transparency_keep_their_indices():
    few = NUMBERS // 86  # stored with two bits a pixel
    for options in ({}, {"transparency": 0}):
        np.testing.assert_array_equal(images.decode_labels(encode(with_palette(few), bits=2, **options)), few)


def test_one_bit_is_two_categories():
    labels = images.decode_labels(encode(Image.fromarray(NUMBERS > 1)))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, NUMBERS > 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_labels_of_16_bits_are_not_scaled(kind):
    wide = np.array([[0, 256, 65535]], np.uint16)
    labels = images.decode_labels(encode(Image.fromarray(wide), kind))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, wide)


def test_labels_of_32_bits_must_fit_into_16():
    fit = np.array([[3, 65535]], np.int32)
    np.testing.assert_array_equal(images.decode_labels(encode(Image.fromarray(fit), "TIFF")), fit)
    for number in (-1, 65536):
        with pytest.raises(ImageError, match=rf"within 0 to 65535; x.tif has .*{number}"):
            images.decode_labels(encode(Image.fromarray(np.array([[7, number]], np.int32)), "TIFF"), name="x.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_labels_of_several_channels_or_fractions_are_refused(mode):
    kind = "TIFF" if mode == "F" else "PNG"
    with pytest.raises(ImageError, match=f"one channel of whole numbers.* a.png is of mode {mode}"):
        images.decode_labels(encode(Image.new(mode, (3, 2)), kind), name="a.png")


def test_depth_of_four_bytes_is_one_little_endian_float():
    stored = np.frombuffer(METRES.astype("<f4").tobytes(), np.uint8).reshape(2, 3, 4)
    depth = images.decode_depth(encode(Image.fromarray(stored, "RGBA")))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, METRES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_of_grey_is_as_stored(dtype):
    grey = np.array([[0, 1, np.iinfo(dtype).max]], dtype)
    depth = images.decode_depth(encode(Image.fromarray(grey)))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, grey)


def test_depth_of_floating_point_tiff_and_arrays_is_as_stored(tmp_path):
    np.testing.assert_array_equal(images.decode_depth(encode(Image.fromarray(METRES), "TIFF")), METRES)
    np.save(tmp_path / "a.npy", METRES[..., None])
    np.testing.assert_array_equal(images.decode_depth(tmp_path / "a.npy"), METRES)
    half = METRES.astype(np.float16)
    np.testing.assert_array_equal(images.decode_depth(saved(half)), half)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_depth_must_be_finite(bad):
    with pytest.raises(ImageError, match=r"finite everywhere; a.npy has 1 pixels"):
        images.decode_depth(saved(np.array([[1.0, bad]])), name="a.npy")


def test_a_pickle_is_never_opened():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    trap = np.empty((1, 1), object)
    trap[0, 0] = Trap()
    for data in (saved(trap, allow_pickle=True), pickle.dumps(Trap())):
        with pytest.raises(ImageError, match="whole, readable file"):
            images.decode_depth(data)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3)), np.zeros(4), np.zeros((2, 2), complex)], ids=str)
def test_arrays_that_are_no_depth_are_refused(array):
    with pytest.raises(ImageError, match="array H W of real numbers"):
        images.decode_depth(saved(array))


def test_colours_are_no_depth():
    with pytest.raises(ImageError, match="mode RGB"):
        images.decode_depth(encode(Image.new("RGB", (3, 2))))


@pytest.mark.parametrize("decode", [images.decode_labels, images.decode_depth])
def test_damage_names_the_file(decode, tmp_path, monkeypatch):
    whole = encode(Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64) * np.uint8(97)))
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    for data in (tmp_path / "a.png", b"", b"\x93NUMPY\x01\x00"):
        with pytest.raises(ImageError, match=("this one" if isinstance(data, bytes) else "a.png") + " is not"):
            decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # up to twice as many Pillow itself only warns
    with pytest.raises(ImageError, match="exceeds limit"):
        decode(whole)
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.png")


def test_a_map_must_be_as_large_as_its_image():
    image = np.zeros((4, 6, 3), np.uint8)
    images.check_size(np.zeros((4, 6), np.float32), image, name="a.png")
    with pytest.raises(ImageError, match=r"image, 6 x 4 pixels; a.png is 4 x 6"):
        images.check_size(np.zeros((6, 4), np.uint8), image, name="a.png")
