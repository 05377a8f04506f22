import dataclasses

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data.views import Augmentation, apply_geometry, choose_geometry, evaluation

PLAIN = Augmentation(image_size=32, resize=(32, 32), crop="random", flip=False, small="upscale")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def augment(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    return apply_geometry(image, choose_geometry(*image.shape[:2], augmentation, rng))


def resize_then_crop(image: np.ndarray, short: int, size: int, crop: str) -> list[np.ndarray]:
    """Every crop the slow way: the whole image is resized, then cut."""
    height, width = (round(side * short / min(image.shape[:2])) for side in image.shape[:2])
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    ys, xs = range(height - size + 1), range(width - size + 1)
    if crop == "center":
        ys, xs = [(height - size) // 2], [(width - size) // 2]
    return [whole[y : y + size, x : x + size] for y in ys for x in xs]


@pytest.mark.parametrize("crop", ["random", "center"])
@pytest.mark.parametrize(("shape", "short"), [((90, 140), 40), ((140, 91), 35), ((20, 33), 48), ((32, 32), 32)])
def test_equals_resizing_the_whole_and_cropping(shape, short, crop):
    image, augmentation = noise(*shape), dataclasses.replace(PLAIN, resize=(short, short), crop=crop)
    expected = np.stack(resize_then_crop(image, short, 32, crop)).astype(int)
    for seed in range(8):
        square = augment(image, augmentation, np.random.default_rng(seed))
        assert np.abs(expected - square).max(axis=(1, 2, 3)).min() <= 1


def test_flip_mirrors_half_of_the_squares_and_nothing_else():
    image, rng = noise(50, 60), np.random.default_rng
    flipping = dataclasses.replace(PLAIN, flip=True)
    pairs = [(augment(image, PLAIN, rng(seed)), augment(image, flipping, rng(seed))) for seed in range(200)]
    mirrored = [np.array_equal(plain[:, ::-1], other) for plain, other in pairs]
    assert all(np.array_equal(plain, other) for (plain, other), m in zip(pairs, mirrored, strict=True) if not m)
    assert 70 < sum(mirrored) < 130


def test_places_and_short_sides_cover_their_ranges_and_stay_inside():
    augmentation, rng = dataclasses.replace(PLAIN, resize=(33, 36)), np.random.default_rng(0)
    boxes = np.array([choose_geometry(66, 99, augmentation, rng).box for _ in range(500)])
    assert boxes.min() == 0
    assert boxes[:, 2].max() == pytest.approx(99)
    assert boxes[:, 3].max() == pytest.approx(66)
    heights = np.unique(np.round(boxes[:, 3] - boxes[:, 1], 6))
    np.testing.assert_allclose(heights, [32 * 66 / short for short in (36, 35, 34, 33)], atol=1e-5)


def test_evaluation_is_the_centre_and_takes_no_chance():
    image = noise(64, 96)
    squares = [augment(image, evaluation(64), np.random.default_rng(seed)) for seed in (0, 1)]
    for square in squares:
        np.testing.assert_array_equal(square, image[:, 16:80])


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    square = augment(stripes, evaluation(8), np.random.default_rng(0))
    assert np.abs(square.astype(int) - 127).max() <= 20


def test_small_images_are_upscaled_or_refused():
    image, rng = noise(20, 40), np.random.default_rng(0)
    assert augment(image, PLAIN, rng).shape == (32, 32, 3)
    with pytest.raises(ValueError, match="20 x 40"):
        augment(image, dataclasses.replace(PLAIN, small="refuse"), rng)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes_still_give_squares(shape):
    assert augment(noise(*shape), PLAIN, np.random.default_rng(0)).shape == (32, 32, 3)


def test_a_second_map_can_follow_the_same_geometry():
    image = noise(50, 70)
    geometry = choose_geometry(50, 70, dataclasses.replace(PLAIN, flip=True), np.random.default_rng(3))
    inverse = apply_geometry(255 - image, geometry)
    np.testing.assert_allclose(255 - inverse.astype(int), apply_geometry(image, geometry), atol=1)


@pytest.mark.parametrize("change", [{"resize": (31, 40)}, {"resize": (40, 39)}, {"crop": "left"}, {"small": "skip"}])
def test_impossible_augmentations_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        dataclasses.replace(PLAIN, **change)
