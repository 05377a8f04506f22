"""Maps follow their image: what a pixel of a cut says is what the image has there."""

import functools

import numpy as np
import pytest

from vqgan_jax.conditions.objects import Layout
from vqgan_jax.data import evaluation_batches, training_batches, views
from vqgan_jax.data.scenes import Scenes, segment_by_color
from vqgan_jax.data.views import Augmentation, Geometry, choose_geometry

AUGMENTATION = Augmentation(image_size=16, resize=(16, 40), crop="random", flip=True, small="upscale")
LAYOUT = Layout(num_categories=8, num_tokens=8192, max_objects=6)
SEGMENTATION = functools.partial(views.segmentation, num_classes=9, shift=False)
ALL = {
    **views.PLAIN, "segmentation": SEGMENTATION, "depth": views.depth, "coordinates": views.coordinates,
    "edges": functools.partial(views.edges, sigma=1.0), "boxes": functools.partial(views.objects, encode=LAYOUT.encode),
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
    tokens = [
        views.objects(cut({**objects, "image": example["image"]}, flip=flip), encode=LAYOUT.encode)
        for flip in (False, True)
    ]
    plain, flipped = (dict(LAYOUT.decode(row)) for row in tokens)
    assert plain.keys() == flipped.keys() == set(example["categories"][example["categories"] >= 0].tolist())
    for category, (x, y, w, h) in plain.items():
        np.testing.assert_allclose(flipped[category], (1 - x - w, y, w, h), atol=1 / 89 + 1e-9)
    half = cut({**objects, "image": example["image"]}, box=(0.0, 48.0, 96.0, 96.0))
    corners = [divmod(int(token), 90) for token in views.objects(half, encode=LAYOUT.encode)[-2:]]  # rows and columns
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
