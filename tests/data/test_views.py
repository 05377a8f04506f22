"""Squares are cut as if the whole image were resized, and maps follow their image."""

import dataclasses
import functools

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.conditions.objects import Boxes
from vqgan_jax.data import evaluation_batches, training_batches, views
from vqgan_jax.data.scenes import Scenes, segment_by_color
from vqgan_jax.data.views import Augmentation, Geometry, apply_geometry, choose_geometry, evaluation

SQUARES = Augmentation(image_size=32, resize=(32, 32), crop="random", flip=False, small="upscale")


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
    image, augmentation = noise(*shape), dataclasses.replace(SQUARES, resize=(short, short), crop=crop)
    expected = np.stack(resize_then_crop(image, short, 32, crop)).astype(int)
    for seed in range(8):
        square = augment(image, augmentation, np.random.default_rng(seed))
        assert np.abs(expected - square).max(axis=(1, 2, 3)).min() <= 1


def test_flip_mirrors_half_of_the_squares_and_nothing_else():
    image, rng = noise(50, 60), np.random.default_rng
    flipping = dataclasses.replace(SQUARES, flip=True)
    pairs = [(augment(image, SQUARES, rng(seed)), augment(image, flipping, rng(seed))) for seed in range(200)]
    mirrored = [np.array_equal(plain[:, ::-1], other) for plain, other in pairs]
    assert all(np.array_equal(plain, other) for (plain, other), m in zip(pairs, mirrored, strict=True) if not m)
    assert 70 < sum(mirrored) < 130


def test_places_and_short_sides_cover_their_ranges_and_stay_inside():
    augmentation, rng = dataclasses.replace(SQUARES, resize=(33, 36)), np.random.default_rng(0)
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
    assert augment(image, SQUARES, rng).shape == (32, 32, 3)
    with pytest.raises(ValueError, match="20 x 40"):
        augment(image, dataclasses.replace(SQUARES, small="refuse"), rng)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes_still_give_squares(shape):
    assert augment(noise(*shape), SQUARES, np.random.default_rng(0)).shape == (32, 32, 3)


def test_a_second_map_can_follow_the_same_geometry():
    image = noise(50, 70)
    geometry = choose_geometry(50, 70, dataclasses.replace(SQUARES, flip=True), np.random.default_rng(3))
    inverse = apply_geometry(255 - image, geometry)
    np.testing.assert_allclose(255 - inverse.astype(int), apply_geometry(image, geometry), atol=1)


@pytest.mark.parametrize("change", [{"resize": (31, 40)}, {"resize": (40, 39)}, {"crop": "left"}, {"small": "skip"}])
def test_impossible_augmentations_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        dataclasses.replace(SQUARES, **change)


# Views

AUGMENTATION = Augmentation(image_size=16, resize=(16, 40), crop="random", flip=True, small="upscale")
BOXES = Boxes(num_classes=8, num_tokens=8192, max_objects=6)
SEGMENTATION = functools.partial(views.segmentation, num_classes=9, shift=False)
ALL = {
    **views.PLAIN, "segmentation": SEGMENTATION, "depth": views.depth, "coordinates": views.coordinates,
    "edges": functools.partial(views.edges, sigma=1.0), **BOXES.views(None),
    "low_resolution": functools.partial(views.low_resolution, factor=4),
}  # fmt: skip


def places(height, width):
    """An image of which every value says where it is: row, column, and row again."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows], axis=-1).astype(np.uint8)


def cut(example, *, box=None, size=(16, 16), flip=False):
    height, width, _ = example["image"].shape
    geometry = Geometry(box or (0.0, 0.0, float(width), float(height)), size, flip)
    return views.cut(example, geometry, np.random.default_rng(0))


def look(example, geometry, rng):
    """Every view of one cut."""
    return {name: view(views.cut(example, geometry, rng)) for name, view in ALL.items()}


@pytest.fixture(scope="module")
def scenes():
    return Scenes(split="validation", image_size=96)


@pytest.mark.parametrize("flip", [False, True])
def test_every_map_shows_the_pixels_that_the_image_shows(flip):
    image = places(40, 60)
    number = (image[..., 0].astype(int) * 60 + image[..., 1]).astype(np.uint16)
    depth = image[..., 1].astype(np.float32)
    example = {"image": image, "segmentation": number, "depth": depth, "keypoints": image}
    seen = cut(example, box=(20.0, 10.0, 36.0, 26.0), flip=flip)
    columns = np.arange(20, 36)[:: -1 if flip else 1]
    np.testing.assert_array_equal(seen.image[0, :, 1], columns)
    np.testing.assert_array_equal(views.keypoints(seen), seen.image)
    labels = views.segmentation(seen, num_classes=2400, shift=False)
    np.testing.assert_array_equal(labels, seen.image[..., 0].astype(int) * 60 + seen.image[..., 1])
    scaled = 2 * columns / 59 - 1  # from the whole image's nearest to its farthest, not the cut's
    np.testing.assert_allclose(views.depth(seen)[..., 0], np.broadcast_to(scaled, (16, 16)), atol=1e-6)
    position = views.coordinates(seen)[..., 0] * 40 * 60
    np.testing.assert_allclose(position, labels, atol=1e-3)


def test_labels_are_never_mixed():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([3, 200], np.uint8), (37, 53))
    seen = cut({"image": places(37, 53), "segmentation": labels}, box=(3.3, 1.1, 50.2, 30.9), size=(20, 31))
    shown = views.segmentation(seen, num_classes=201, shift=False)
    assert shown.shape == (20, 31)
    assert set(np.unique(shown)) == {3, 200}
    assert shown[7, 11] == labels[int(1.1 + 7.5 / 20 * 29.8), int(3.3 + 11.5 / 31 * 46.9)]


def test_coco_stuff_counts_from_one():
    labels = np.array([[0, 181], [255, 4]], np.uint8)
    seen = cut({"image": places(2, 2), "segmentation": labels}, size=(2, 2))
    np.testing.assert_array_equal(views.segmentation(seen, num_classes=183, shift=True), [[1, 182], [0, 5]])
    with pytest.raises(ValueError, match="below the number of classes, 183; got 255"):
        views.segmentation(seen, num_classes=183, shift=False)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_a_wide_map_counts_from_one_like_a_narrow_one(kind):
    labels = np.array([[0, 181], [255, 4]], kind)
    seen = cut({"image": places(2, 2), "segmentation": labels}, size=(2, 2))
    np.testing.assert_array_equal(views.segmentation(seen, num_classes=183, shift=True), [[1, 182], [0, 5]])


@pytest.mark.parametrize("labels", [np.array([[0, 256]], np.uint16), np.array([[-1, 7]], np.int32)])
def test_a_shift_refuses_what_no_byte_holds(labels):
    """Category 256 is not 0: of 8 bits only 255 is unlabelled."""
    seen = cut({"image": places(1, 2), "segmentation": labels}, size=(1, 2))
    with pytest.raises(ValueError, match=rf"0 to 255 under data.shift_labels.*got {labels.min()} to {labels.max()}"):
        views.segmentation(seen, num_classes=300, shift=True)


def test_a_field_that_the_source_has_not_is_named():
    seen = cut({"image": places(4, 4), "label": 0}, size=(4, 4))
    with pytest.raises(ValueError, match="must have `depth`, which the config asks for; this one has image, label"):
        views.depth(seen)


def test_upstreams_coordinates():
    """256 pixels of 256: the first and last values of taking the mean of 16 x 16 pixels."""
    values = views.coordinates(cut({"image": places(256, 256)}, size=(256, 256)))[..., 0]
    tokens = np.rint(values.reshape(16, 16, 16, 16).mean((1, 3)) * 1024).astype(int)
    np.testing.assert_array_equal(tokens[0], [30] * 2 + [31] * 4 + [32] * 4 + [33] * 4 + [34] * 2)
    assert (tokens.min(), tokens.max(), len(np.unique(tokens))) == (30, 994, 80)


def test_maps_of_scenes_agree_with_their_picture(scenes):
    """After any crop, resize and flip, colours tell the category that the map tells; borders are mixed."""
    rng, agreed = np.random.default_rng(0), []
    for i in range(20):
        example = scenes[i]
        geometry = choose_geometry(96, 96, AUGMENTATION, rng)
        seen = look(example, geometry, rng)
        agreed.append(np.mean(segment_by_color(seen["image"]) == seen["segmentation"]))
        objects = seen["segmentation"] > 0
        assert seen["depth"].min() >= -1
        assert seen["depth"].max() <= 1
        if objects.any() and not objects.all():
            assert seen["depth"][objects].mean() > seen["depth"][~objects].mean()
    assert np.mean(agreed) > 0.9


def test_boxes_are_those_of_the_crop_and_its_flip(scenes):
    example = scenes[0]
    objects = {k: v for k, v in example.items() if k in ("boxes", "categories")}
    tokens = [ALL["boxes"](cut({**objects, "image": example["image"]}, flip=flip)) for flip in (False, True)]
    plain, flipped = (dict(BOXES.decode_objects(row)) for row in tokens)
    assert plain.keys() == flipped.keys() == set(example["categories"][example["categories"] >= 0].tolist())
    for category, (x, y, w, h) in plain.items():
        np.testing.assert_allclose(flipped[category], (1 - x - w, y, w, h), atol=1 / 89 + 1e-9)
    half = cut({**objects, "image": example["image"]}, box=(0.0, 48.0, 96.0, 96.0))
    corners = [divmod(int(token), 90) for token in ALL["boxes"](half)[-2:]]  # rows and columns
    np.testing.assert_allclose(np.divide(corners, 89), [(0.5, 0), (1, 1)], atol=0.6 / 89)


def test_low_resolution_keeps_what_is_coarse_and_edges_what_is_sharp(scenes):
    seen = look(scenes[1], Geometry((0.0, 0.0, 96.0, 96.0), (96, 96), False), np.random.default_rng(0))
    small = lambda image: image.reshape(12, 8, 12, 8, 3).astype(float).mean((1, 3)).reshape(-1)
    assert np.corrcoef(small(seen["low_resolution"]), small(seen["image"]))[0, 1] > 0.99
    detail = lambda image: np.abs(np.diff(image.astype(int), axis=0)).mean()
    assert detail(seen["low_resolution"]) < 0.8 * detail(seen["image"])
    assert set(np.unique(seen["edges"])) == {0, 255}
    assert 0.01 < np.mean(seen["edges"] > 0) < 0.3
    border = np.zeros((96, 96), bool)
    border[1:] |= scenes[1]["segmentation"][1:] != scenes[1]["segmentation"][:-1]
    assert seen["edges"][..., 0][border].mean() > 1.5 * seen["edges"][..., 0].mean()


def test_batches_carry_every_field_and_depend_on_nothing_but_their_number(scenes):
    options = {"augmentation": AUGMENTATION, "seed": 3}
    batches = [
        list(zip(range(2), training_batches(scenes, batch_size=4, fields=ALL, num_threads=n, **options), strict=False))
        for n in (1, 3)
    ]
    for (_, one), (_, other) in zip(*batches, strict=True):
        assert one.keys() == ALL.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_evaluation_pads_every_field_with_zeros(scenes):
    (batch,) = evaluation_batches(scenes, image_size=32, batch_size=4, num_examples=3, fields=ALL)
    np.testing.assert_array_equal(batch["mask"], [True] * 3 + [False])
    for name in ALL:
        assert not batch[name][3].any(), name
        assert batch[name][:3].any() or name == "label", name
