"""Images of any channels, 16 bits or floats: by their stored values, from the range of the config to [-1, 1]."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from vqgan_jax.data import ImageError, open_source, training_batches
from vqgan_jax.data.images import decode_values
from vqgan_jax.data.views import Augmentation, Geometry, apply_geometry

STEPS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5461  # 0 to 60071
FULL = (0.0, 65535.0)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def by_hand(array):
    return (array.astype(np.float64) / 65535 * 2 - 1).astype(np.float32)


@pytest.mark.parametrize("write", [npy, tiff, png])
def test_grey_of_16_bits_keeps_all_of_them(write):
    values = decode_values(write(STEPS), FULL)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, by_hand(STEPS)[..., None])


@pytest.mark.parametrize(
    "data",
    [
        lambda stack: npy(stack),
        lambda stack: tiff(stack, photometric="minisblack", planarconfig="contig"),
        lambda stack: tiff(np.moveaxis(stack, -1, 0), photometric="minisblack", planarconfig="separate"),
        lambda stack: tiff(np.moveaxis(stack, -1, 0), photometric="minisblack"),  # pages
    ],
    ids=["npy", "contiguous", "planes", "pages"],
)
def test_five_channels_come_last_however_they_are_stored(data):
    stack = np.stack([STEPS // (i + 1) for i in range(5)], axis=-1)
    np.testing.assert_array_equal(decode_values(data(stack), FULL), by_hand(stack))


def test_floats_are_scaled_by_their_range_and_clipped():
    data = tiff(np.array([[-1000.0, 0.0, 2000.0, 9000.0]], np.float32))
    np.testing.assert_allclose(decode_values(data, (-1000.0, 2000.0))[0, :, 0], [-1, -1 / 3, 1, 1], rtol=1e-6)


def test_eight_bits_are_values_too():
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_allclose(decode_values(png(colours), (0.0, 255.0)), colours / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([[np.nan, 1.0]])), "not finite"),
        (npy(np.zeros((2, 2, 2, 2))), r"shape \(2, 2, 2, 2\)"),
        (npy(np.array([["a", "b"]])), "finite numbers"),
        (npy(np.zeros((0, 4))), r"shape \(0, 4"),
        (npy(np.array([[{}]], dtype=object)), "this one is not"),  # a pickle, which is never opened
        (npy(STEPS)[:-8], "this one is not"),
        (tiff(STEPS)[:-8], "this one is not"),
        (b"II*\0" + bytes(40), "this one is not"),
    ],
)
def test_what_is_no_image_is_an_image_error(data, message):
    with pytest.raises(ImageError, match=message):
        decode_values(data, FULL)


def test_colours_of_16_bits_in_a_png_are_refused_and_not_cut():
    """Pillow writes none: of eight bits a channel, with the depth in the head set to 16."""
    whole = bytearray(png(np.zeros((2, 2, 3), np.uint8)))
    whole[24] = 16
    with pytest.raises(ImageError):
        decode_values(bytes(whole), FULL)


def test_a_tiff_too_large_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="at most 10 pixels"):
        decode_values(tiff(STEPS), FULL)


def test_each_channel_is_resized_as_if_it_were_alone():
    values = np.random.default_rng(0).normal(size=(9, 7, 4)).astype(np.float32)
    geometry = Geometry((1.0, 0.5, 6.0, 8.5), (5, 4), flip=True)
    channels = [apply_geometry(values[..., i], geometry) for i in range(4)]
    np.testing.assert_array_equal(apply_geometry(values, geometry), np.stack(channels, axis=-1))


def test_a_batch_of_a_folder_is_floats_of_its_channels(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((8, 8, 2), 16_000 * number, np.uint16))
    (tmp_path / "0.txt").write_text("a caption\n")
    source = open_source(f"folder:{tmp_path}", split="all", image_size=8, value_range=FULL)
    assert source[0]["text"]() == ["a caption"]
    augmentation = Augmentation(image_size=8, resize=(8, 8), crop="center", flip=False, small="refuse")
    batch = next(training_batches(source, augmentation=augmentation, batch_size=4, seed=0, num_threads=1))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 8, 8, 2), np.float32)
    expected = by_hand(np.arange(4) * 16_000)
    np.testing.assert_allclose(np.sort(batch["image"][:, 3, 3, 1]), expected, atol=1e-6)


def test_an_image_of_other_channels_is_named_with_the_first(tmp_path):
    np.save(tmp_path / "a.npy", STEPS)
    np.save(tmp_path / "b.npy", np.stack([STEPS] * 3, axis=-1))
    source = open_source(f"folder:{tmp_path}", split="all", image_size=8, value_range=FULL)
    with pytest.raises(ImageError, match=r"b.npy has 3, and the first, .*a.npy, has 1"):
        source[1]


def test_only_folders_have_a_range_of_values():
    with pytest.raises(ValueError, match="is for a source folder:PATH; got 'photos'"):
        open_source("photos", split="train", image_size=8, value_range=FULL)
