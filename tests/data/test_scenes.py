import numpy as np
import pytest

from vqgan_jax.data import scenes
from vqgan_jax.data.scenes import Scenes, label_by_color, segment_by_color

SIZE = 64
TOTAL = 200


@pytest.fixture(scope="module")
def source():
    return Scenes(split="train", image_size=SIZE, length=TOTAL)


@pytest.fixture(scope="module")
def examples(source):
    return [source[i] for i in range(TOTAL)]


def flat_interior(segmentation):
    """True where all eight neighbours show the same thing, so that no edge runs through the pixel."""
    padded = np.pad(segmentation, 1, mode="edge")
    return np.all([s == segmentation for s in shifts(padded)], axis=0)


def shifts(padded):
    height, width = padded.shape
    return [padded[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]


def object_rows(example):
    count = int((example["categories"] >= 0).sum())
    return list(zip(example["categories"][:count], example["boxes"][:count], strict=True))


def layout_of(source, index):
    return scenes._draw_layout(np.random.default_rng((source.seed, scenes.SPLITS[source.split], index)))


def alone(source, thing):
    """The scene with nothing but this object in it."""
    return scenes._render(layout_of(source, 0)._replace(objects=[thing]), source.image_size)


def test_the_same_index_gives_the_same_scene(source):
    twin = Scenes(split="train", image_size=SIZE, length=TOTAL)
    for index in (0, np.int64(7), TOTAL - 1):
        for key, value in source[index].items():
            np.testing.assert_array_equal(value, twin[index][key])


def test_examples_are_typed_and_batch(examples):
    batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    n = scenes.MAX_OBJECTS
    kinds = {key: (value.shape[1:], value.dtype) for key, value in batch.items()}
    assert kinds == {
        "image": ((SIZE, SIZE, 3), np.uint8),
        "label": ((), np.int32),
        "segmentation": ((SIZE, SIZE), np.uint8),
        "depth": ((SIZE, SIZE), np.float32),
        "boxes": ((n, 4), np.float32),
        "categories": ((n,), np.int32),
    }


def test_splits_and_seeds_share_no_scene(examples):
    def fingerprints(**fields):  # of boxes, which are the same at every size
        source = Scenes(**{"split": "train", "image_size": 16, "length": TOTAL, **fields})
        return {source[i]["boxes"].tobytes() for i in range(TOTAL)}

    train = {e["boxes"].tobytes() for e in examples}
    assert len(train) == TOTAL
    assert train.isdisjoint(fingerprints(split="validation"))
    assert train.isdisjoint(fingerprints(seed=1))


def test_the_size_samples_the_scene_and_does_not_change_it():
    small, large = (Scenes(split="train", image_size=size, length=20) for size in (32, 128))
    for i in range(20):
        a, b = small[i], large[i]
        for key in ("label", "boxes", "categories"):
            np.testing.assert_array_equal(a[key], b[key])
        averaged = b["image"].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(averaged - a["image"]).mean() < 4
        # Away from edges each small pixel sees what all its sixteen large ones see.
        fine = b["segmentation"].reshape(32, 4, 32, 4).swapaxes(1, 2).reshape(32, 32, 16)
        calm = (fine == fine[..., :1]).all(-1)
        assert calm.mean() > 0.6
        np.testing.assert_array_equal(a["segmentation"][calm], fine[..., 0][calm])
        np.testing.assert_array_equal(a["depth"][calm], b["depth"][::4, ::4][calm])


@pytest.mark.parametrize("size", [32, 64])
def test_the_colour_rule_recovers_the_segmentation(size):
    source = Scenes(split="validation", image_size=size, length=60)
    for i in range(60):
        e = source[i]
        read, inside = segment_by_color(e["image"]), flat_interior(e["segmentation"])
        assert (read == e["segmentation"])[inside].mean() > 0.99
        assert (read == e["segmentation"]).mean() > 0.93


def test_the_colour_rule_is_not_trivial(examples):
    """A category has many colours, so a picture holds more than its segmentation."""
    for category in range(len(Scenes.category_names)):
        colors = np.concatenate([e["image"][e["segmentation"] == category + 1] for e in examples])
        assert len(np.unique(colors, axis=0)) > 1000


def test_the_label_is_the_nearest_the_largest_and_what_the_rule_reads(examples):
    for e in examples:
        assert e["label"] == e["categories"][0]
        assert (e["depth"] == e["depth"].max()).sum() == (e["segmentation"] == e["label"] + 1).sum()
        assert np.bincount(e["segmentation"].ravel(), minlength=9)[1:].argmax() == e["label"]
    read = label_by_color(np.stack([e["image"] for e in examples]))
    np.testing.assert_array_equal(read, [e["label"] for e in examples])
    assert label_by_color(np.full((4, 4, 3), 128, np.uint8)) == -1


def test_every_object_has_one_depth_and_ground_has_none(examples):
    for e in examples:
        np.testing.assert_array_equal(e["depth"] > 0, e["segmentation"] > 0)
        depths = [np.unique(e["depth"][e["segmentation"] == c + 1]) for c, _ in object_rows(e)]
        assert all(len(d) == 1 for d in depths), "an object is hidden wholly, or has two depths"
        assert np.all(np.diff(np.concatenate(depths)) < 0), "objects do not come nearest first"
        assert e["depth"].max() <= 1


def test_the_nearest_of_what_covers_a_pixel_is_shown(source, examples):
    occluded = 0
    for i in range(40):
        layout, e = layout_of(source, i), examples[i]
        masks = [alone(source, thing)["segmentation"] > 0 for thing in layout.objects]
        segmentation, depth = np.zeros((SIZE, SIZE), int), np.zeros((SIZE, SIZE), np.float32)
        for mask, thing in zip(masks[::-1], layout.objects[::-1], strict=True):
            nearer = mask & (thing.depth > depth)
            segmentation[nearer], depth[nearer] = thing.category + 1, thing.depth
        np.testing.assert_array_equal(e["segmentation"], segmentation)
        np.testing.assert_array_equal(e["depth"], depth)
        occluded += np.sum(masks, axis=0).max() > 1
    assert occluded > 10


def test_boxes_are_tight_around_the_whole_shapes(source, examples):
    for i in range(40):
        for thing, (category, box) in zip(layout_of(source, i).objects, object_rows(examples[i]), strict=True):
            rows, columns = np.nonzero(alone(source, thing)["segmentation"] == category + 1)
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            given = np.concatenate([box[:2], box[:2] + box[2:]]) * SIZE
            np.testing.assert_array_less(np.abs(drawn - given), 1.6)  # pixels: a thin tip may miss their centres


def test_boxes_lie_in_the_picture_hold_their_pixels_and_are_padded(examples):
    for e in examples:
        rows = object_rows(e)
        assert scenes.MIN_OBJECTS <= len(rows) <= scenes.MAX_OBJECTS
        assert len({int(c) for c, _ in rows}) == len(rows)
        for category, (x, y, w, h) in rows:
            assert x >= 0
            assert y >= 0
            assert x + w <= 1
            assert y + h <= 1
            at_y, at_x = (np.array(np.nonzero(e["segmentation"] == category + 1)) + 0.5) / SIZE
            assert x <= at_x.min() <= at_x.max() <= x + w
            assert y <= at_y.min() <= at_y.max() <= y + h
        assert not e["boxes"][len(rows) :].any()
        assert np.all(e["categories"][len(rows) :] == -1)


def test_apparent_area_is_the_square_of_depth_whatever_the_shape():
    source = Scenes(split="train", image_size=512)
    for i in range(8):
        for thing in layout_of(source, i).objects:
            area = (alone(source, thing)["segmentation"] > 0).mean()
            assert area == pytest.approx(np.pi * (scenes._RADIUS * thing.depth) ** 2, rel=0.02)


def test_edges_are_smooth_in_the_picture_and_hard_in_the_maps():
    """A white disc on black ground: only around its outline are there values between the two."""
    source = Scenes(split="train", image_size=SIZE)
    layout = layout_of(source, 0)
    plain = layout.objects[0].texture._replace(kind="gradient")
    thing = layout.objects[0]._replace(category=0, color=np.ones(3), texture=plain)
    black = layout._replace(objects=[thing], tones=np.zeros((2, 3)))
    e = scenes._render(black, SIZE)
    between = (e["image"][..., 0] > 5) & (e["image"][..., 0] < 150)  # the shaded inside is brighter than 150
    y, x = (np.array(np.nonzero(between)) + 0.5) / SIZE
    from_outline = np.hypot(x - thing.origin[0], y - thing.origin[1]) - scenes._RADIUS * thing.depth
    assert between.sum() > np.pi * scenes._RADIUS * thing.depth * SIZE
    assert np.abs(from_outline).max() < 0.6 / SIZE
    assert set(np.unique(e["segmentation"])) == {0, 1}
    np.testing.assert_array_equal(np.unique(e["depth"]), np.array([0, thing.depth], np.float32))


def test_everything_appears(source, examples):
    names = Scenes.category_names
    assert Scenes.class_names == names
    assert {int(e["label"]) for e in examples} == set(range(len(names)))
    assert {int(c) for e in examples for c, _ in object_rows(e)} == set(range(len(names)))
    assert {len(object_rows(e)) for e in examples} == {2, 3, 4, 5, 6}
    kinds = {layout_of(source, i).ground.kind for i in range(TOTAL)}
    assert kinds == {"stripes", "checks", "dots", "clouds", "gradient"}


def test_an_index_out_of_range_is_refused():
    short = Scenes(split="train", image_size=16, length=3)
    assert len([short[i] for i in range(len(short))]) == 3
    with pytest.raises(IndexError, match=r"must be in 0 .. 2; got 3. Raise `length`"):
        short[3]
    with pytest.raises(IndexError, match=r"must be in 0 .. 2; got -1"):
        short[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "test"}, "`split` must be one of train, validation; got 'test'"),
        ({"image_size": 8}, "`image_size` must be at least 16; got 8"),
        ({"length": 0}, "`length` must be at least 1; got 0"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
    ],
)
def test_wrong_fields_are_refused_with_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"split": "train", "image_size": 64, **fields})
