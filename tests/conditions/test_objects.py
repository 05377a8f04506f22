"""Objects as tokens: by hand, against a slow restatement of the rules, and on COCO's own files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vqgan_jax.conditions.objects import DEPICTION, GROUP, INSIDE, OCCLUDED, Boxes, Centers

K = 171  # COCO's categories
NONE = 8191


def make(num_classes=K, *, num_tokens=8192, centers=False, **options):
    return (Centers if centers else Boxes)(num_classes=num_classes, num_tokens=num_tokens, **options)


LAYOUT, CROPPED = make(), make(crop_points=False)


def tokens_of(layout, boxes, categories=None, modifiers=None, rng=None, **options):
    """Tokens of objects of category 0 without modifiers, unless others are given."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    zeros = np.zeros(len(boxes), np.int32)
    categories = zeros if categories is None else np.array(categories, np.int32)
    modifiers = zeros if modifiers is None else np.array(modifiers, np.int32)
    return layout.encode_objects(boxes, categories, modifiers, rng=rng, **options)


def point(column, row):
    return row * 90 + column


def crop_of(tokens):
    """The part of the image that is looked at: x, y, width and height of the last two points."""
    (y, x), (lower, right) = (divmod(int(token), 90) for token in tokens[-2:])
    return x / 89, y / 89, (right - x) / 89, (lower - y) / 89


def test_a_box_is_its_object_and_two_corners():
    """89 (.25, .5) = (22.25, 44.5) is nearest to (22, 44), the tie even; 89 (.75, .75) = 66.75 to 67."""
    tokens = tokens_of(LAYOUT, [[0.25, 0.5, 0.5, 0.25]], [7])
    assert tokens.dtype == np.int32
    assert tokens[:3].tolist() == [7, 3982, 6097]
    assert (tokens[3:90] == NONE).all()
    assert tokens[90:].tolist() == [0, 8099], "the whole image"


def test_a_center_is_its_object_and_one_point():
    """89 (.5, .625) = (44.5, 55.625) is nearest to (44, 56)."""
    layout = make(centers=True)
    tokens = tokens_of(layout, [[0.25, 0.5, 0.5, 0.25]], [7])
    assert tokens[:2].tolist() == [7, point(44, 56)]
    assert (tokens[2:60] == NONE).all()
    assert tokens[60:].tolist() == [0, 8099]


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, 92), ({"centers": True}, 62), ({"crop_points": False}, 90), ({"crop_points": False, "centers": True}, 60)],
)
def test_lengths(options, length):
    layout = make(**options)
    assert (layout.length, layout.sections, layout.none) == (length, 90, NONE)
    assert len(tokens_of(layout, [])) == length
    assert (tokens_of(layout, [])[:60] == NONE).all()


def test_sections_are_the_whole_part_of_the_root():
    assert [make(num_classes=1, num_tokens=n).sections for n in (4, 8, 9, 8099, 8100, 8280)] == [
        2,
        2,
        3,
        89,
        90,
        90,
    ]


@pytest.mark.parametrize(("x", "column"), [(0.5, 0), (1.5, 2), (2.5, 2), (3.5, 4), (5.5, 6)])
def test_halves_go_to_the_even_point(x, column):
    """With 81 tokens there are 9 points on a side, 1 / 8 apart, so that the halves between them are exact."""
    layout = make(num_classes=3, num_tokens=81, crop_points=False)
    tokens = tokens_of(layout, [[x / 8, x / 8, 0.25, 0.25]])
    assert tokens[1] == column * 9 + column


def test_modifiers_are_bits_above_the_category():
    """The group bit comes with the integer 1 in COCO, and upstream's comparison never sees it."""
    modifiers = [0, GROUP, OCCLUDED, DEPICTION, INSIDE, 15]
    boxes, categories = [[0, 0, 1, 1]] * 6, [3] * 6
    ours = tokens_of(LAYOUT, boxes, categories, modifiers)[:18:3]
    assert ours.tolist() == [3, 3 + K, 3 + 2 * K, 3 + 4 * K, 3 + 8 * K, 3 + 15 * K]
    published = tokens_of(make(paper=True), boxes, categories, modifiers)[:18:3]
    assert published.tolist() == [3, 3, 3 + 2 * K, 3 + 4 * K, 3 + 8 * K, 3 + 14 * K]


def test_a_crop_is_told_and_moves_no_box():
    tokens = tokens_of(LAYOUT, [[0.25, 0.5, 0.5, 0.25]], crop=(0.5, 0.0, 0.5, 1.0))
    assert tokens[1:3].tolist() == [3982, 6097]
    assert tokens[90:].tolist() == [point(44, 0), point(89, 89)]


def test_a_flip_mirrors_boxes_and_crop_within_the_whole_image():
    """The box .1 to .3 comes to .7 to .9: 62.3 and 80.1; the crop 0 to .5 to .5 to 1: 44.5, even 44."""
    tokens = tokens_of(LAYOUT, [[0.1, 0.0, 0.2, 1.0]], crop=(0.0, 0.0, 0.5, 1.0), flip=True)
    assert tokens[1:3].tolist() == [point(62, 0), point(80, 89)]
    assert tokens[90:].tolist() == [point(44, 0), point(89, 89)]


def test_without_crop_points_boxes_are_of_the_crop_and_mirrored_within_it():
    """In the crop .2 to .7 a box from .3 to .4 begins at a fifth, 17.8, and ends at two, 35.6; mirrored 53.4, 71.2."""
    box, crop = [[0.3, 0.25, 0.1, 0.5]], (0.2, 0.0, 0.5, 1.0)
    assert tokens_of(CROPPED, box, crop=crop)[1:3].tolist() == [point(18, 22), point(36, 67)]
    assert tokens_of(CROPPED, box, crop=crop, flip=True)[1:3].tolist() == [point(53, 22), point(71, 67)]


@pytest.mark.parametrize(("paper", "end", "mirrored"), [(False, 28, 61), (True, 50, 39)])
def test_what_is_cut_off_on_the_left_shortens_a_box_but_not_in_the_paper(paper, end, mirrored):
    """The box 12/32 to 21/32 in the crop 1/2 to 1: 5/16 of the crop show it, 27.81 of 89; 9/16 as published, 50.06.

    Mirrored it begins at 11/16 or 7/16 and ends at 1; up and down nothing is mirrored.
    """
    layout = make(crop_points=False, paper=paper)
    box, crop = [[12 / 32, 12 / 32, 9 / 32, 9 / 32]], (0.5, 0.5, 0.5, 0.5)
    assert tokens_of(layout, box, crop=crop)[1:3].tolist() == [0, point(end, end)]
    assert tokens_of(layout, box, crop=crop, flip=True)[1:3].tolist() == [point(mirrored, 0), point(89, end)]


def test_what_is_cut_off_on_the_right_ends_at_the_crop():
    for paper in (False, True):
        layout = make(crop_points=False, paper=paper)
        tokens = tokens_of(layout, [[0.5, 0.5, 0.5, 0.5]], crop=(0.25, 0.25, 0.5, 0.5))
        assert tokens[1:3].tolist() == [point(44, 44), 8099]


def test_objects_that_share_no_area_with_the_crop_are_left_out():
    """Of five around the crop's middle column only the one inside and the one across its edge are seen."""
    boxes = [[0, 0, 0.25, 1], [0.75, 0, 0.25, 1], [0.25, 0, 0.5, 1], [0.125, 0, 0.25, 1], [0.5, 0, 0, 1]]
    for layout in (LAYOUT, CROPPED):
        tokens = tokens_of(layout, boxes, range(5), crop=(0.25, 0.0, 0.5, 1.0))
        assert [number for number, _ in layout.decode_objects(tokens)] == [2, 3]


def test_the_first_of_too_many_are_kept_and_padding_counts_for_nothing():
    """Those outside the crop are left out after that: 30 to 39 do not move up."""
    categories = np.insert(np.arange(40), [0, 5, 40], -1)
    boxes = np.tile([0.5, 0, 0.5, 1.0], (43, 1))
    boxes[categories < 10] = [0, 0, 0.5, 1]
    boxes[categories < 0] = [7, -7, 7, 7]  # may hold anything
    numbers = lambda **options: [n for n, _ in LAYOUT.decode_objects(tokens_of(LAYOUT, boxes, categories, **options))]
    assert numbers() == list(range(30))
    assert numbers(crop=(0.5, 0.0, 0.5, 1.0)) == list(range(10, 30))
    assert sorted(numbers(rng=np.random.default_rng(0))) == list(range(30))


def test_the_generator_shuffles_objects_with_their_boxes():
    boxes = [[i / 89, 0, 1 / 89, 1] for i in range(20)]
    shuffled = lambda seed: tokens_of(LAYOUT, boxes, range(20), rng=np.random.default_rng(seed))
    rows = shuffled(0)[:60].reshape(20, 3)
    assert rows[:, 0].tolist() != list(range(20))
    assert sorted(map(tuple, rows.tolist())) == [(i, point(i, 0), point(i + 1, 89)) for i in range(20)]
    np.testing.assert_array_equal(shuffled(0), shuffled(0))
    assert np.any(shuffled(0) != shuffled(1))


def restated(layout, boxes, categories, modifiers, crop, flip, order):
    """The rules one object after the other, in Python's own numbers; `order` of what remains of the first ones."""
    objects = [o for o in zip(boxes.tolist(), categories.tolist(), modifiers.tolist(), strict=True) if o[1] >= 0]
    objects = objects[: layout.max_objects]
    cx, cy, cw, ch = crop
    place = lambda x, y: round(y * (layout.sections - 1)) * layout.sections + round(x * (layout.sections - 1))
    tokens = []
    for i in order(len(objects)):
        (x, y, w, h), category, modifier = objects[i]
        if min(x + w, cx + cw) - max(x, cx) <= 0 or min(y + h, cy + ch) - max(y, cy) <= 0:
            continue
        if not layout.crop_points:
            if not layout.paper:
                w, h = w - max(cx - x, 0.0), h - max(cy - y, 0.0)
            x, y = min(max((x - cx) / cw, 0.0), 1.0), min(max((y - cy) / ch, 0.0), 1.0)
            w, h = min(w / cw, 1 - x), min(h / ch, 1 - y)
        if flip:
            x = 1 - (x + w)
        if layout.paper and modifier % 2:
            modifier -= 1
        places = [place(x + w / 2, y + h / 2)] if isinstance(layout, Centers) else [place(x, y), place(x + w, y + h)]
        tokens += [category + layout.num_classes * modifier, *places]
    tokens += [layout.num_tokens - 1] * (layout.max_objects * (2 if isinstance(layout, Centers) else 3) - len(tokens))
    if layout.crop_points:
        cx = 1 - (cx + cw) if flip else cx
        tokens += [place(cx, cy), place(cx + cw, cy + ch)]
    return tokens


def random_boxes(rng, count, denominator):
    """On a grid, so that edges touch and halves are met."""
    ends = np.sort(rng.integers(0, denominator + 1, (count, 2, 2)), axis=1) / denominator
    return np.concatenate([ends[:, 0], ends[:, 1] - ends[:, 0]], axis=1)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("crop_points", [False, True])
@pytest.mark.parametrize("centers", [False, True])
def test_random_layouts_agree_with_the_rules_restated(centers, crop_points, paper):
    rng = np.random.default_rng(5)
    options = {"centers": centers, "crop_points": crop_points, "paper": paper}
    fewer, seen = 0, 0
    for case in range(150):
        tokens = (8192, 17 * 17, 1000)[case % 3]
        layout = make(num_classes=10, num_tokens=tokens, max_objects=6, **options)
        boxes = random_boxes(rng, count := int(rng.integers(0, 10)), (16, 32, 1000)[case % 3])
        categories, modifiers = rng.integers(-2, 10, count), rng.integers(0, 16, count)
        crop = (0.0, 0.0, 0.0, 0.0)
        while min(crop[2:]) == 0:
            crop = tuple(random_boxes(rng, 1, 8)[0].tolist())
        flip, seed = bool(rng.integers(2)), int(rng.integers(1000)) if case % 2 else None
        order = range if seed is None else lambda n, seed=seed: np.random.default_rng(seed).permutation(n)
        ours = layout.encode_objects(
            boxes,
            categories,
            modifiers,
            crop=crop,
            flip=flip,
            rng=None if seed is None else np.random.default_rng(seed),
        )
        assert ours.tolist() == restated(layout, boxes, categories, modifiers, crop, flip, order), case
        fewer += len(layout.decode_objects(ours)) < min((categories >= 0).sum(), 6)
        seen += len(layout.decode_objects(ours))
    assert fewer > 30, "crops leave objects out"
    assert seen > 100


def test_decoding_gives_boxes_back_within_half_a_section():
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 30, 10_000)
    categories, modifiers, crop = rng.integers(0, K, 30), rng.integers(0, 16, 30), (0.125, 0.25, 0.5, 0.5)
    boxes = np.maximum(boxes, (0, 0, 1e-3, 1e-3)) * 0.999
    tokens = LAYOUT.encode_objects(boxes, categories, modifiers, rng=None)
    numbers, found = zip(*LAYOUT.decode_objects(tokens), strict=True)
    assert numbers == tuple((categories + K * modifiers).tolist())
    corners = lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)
    np.testing.assert_allclose(corners(np.array(found)), corners(boxes), rtol=0, atol=0.5 / 89 + 1e-9)
    assert crop_of(tokens) == (0.0, 0.0, 1.0, 1.0)
    told = crop_of(LAYOUT.encode_objects(boxes, categories, modifiers, crop=crop, rng=None))
    np.testing.assert_allclose(corners(np.array([told])), corners(np.array([crop])), rtol=0, atol=0.5 / 89 + 1e-9)

    layout = make(centers=True)
    numbers, found = zip(
        *layout.decode_objects(layout.encode_objects(boxes, categories, modifiers, rng=None)), strict=True
    )
    assert numbers == tuple((categories + K * modifiers).tolist())
    np.testing.assert_allclose(np.array(found)[:, :2], boxes[:, :2] + boxes[:, 2:] / 2, rtol=0, atol=0.5 / 89 + 1e-9)
    assert (np.array(found)[:, 2:] == 0).all()
    assert layout.decode_objects(tokens_of(layout, [])) == []


def test_tokens_that_decoding_gives_encode_to_themselves():
    rng = np.random.default_rng(2)
    boxes = np.maximum(random_boxes(rng, 30, 89), (0, 0, 1 / 89, 1 / 89)) * (1, 1, 0.5, 0.5)
    tokens = tokens_of(LAYOUT, boxes, rng.integers(0, K, 30))
    numbers, found = zip(*LAYOUT.decode_objects(tokens), strict=True)
    seen = np.array(found)[:, 2:].min(1) > 0  # half a section may have become none, which shares no area
    again = tokens_of(LAYOUT, np.array(found)[seen], np.array(numbers)[seen])
    np.testing.assert_array_equal(again[: 3 * seen.sum()], tokens[:90].reshape(30, 3)[seen].ravel())


def test_every_window_has_the_layout_of_its_crop():
    """4 x 6 codes through a window of 4 x 4: three places, of the columns 0 to 4, 1 to 5 and 2 to 6 of 6."""
    boxes = np.array([[0, 0, 1 / 6, 1], [0.4, 0.4, 0.2, 0.2], [5 / 6, 0, 1 / 6, 0.5]])
    none = np.zeros(3, int)
    windows = make(window=(4, 4)).encode_windows(boxes, np.arange(3), none, grid=(4, 6), seed=3)
    assert windows.shape == (1, 3, 92)
    seen = [sorted(n for n, _ in LAYOUT.decode_objects(row)) for row in windows[0]]
    assert seen == [[0, 1], [1], [1, 2]]
    assert windows[0, :, 90:].tolist() == [[point(c, 0), point(d, 89)] for c, d in [(0, 59), (15, 74), (30, 89)]]


def test_windows_move_along_both_axes_and_each_has_its_own_order():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 0.2, (12, 2)), rng.uniform(0.5, 0.8, (12, 2))], axis=1)
    arguments = boxes, np.arange(12), rng.integers(0, 16, 12)
    layout = make(window=(4, 3))
    windows = layout.encode_windows(*arguments, grid=(7, 5), seed=11)
    assert windows.shape == (4, 3, 92)
    for i in range(4):
        for j in range(3):
            crop = (j / 5, i / 7, 3 / 5, 4 / 7)
            expected = LAYOUT.encode_objects(*arguments, crop=crop, rng=np.random.default_rng((11, i, j)))
            np.testing.assert_array_equal(windows[i, j], expected)
    assert len({tuple(row[:90].tolist()) for row in windows.reshape(12, 92)}) == 12
    np.testing.assert_array_equal(windows, layout.encode_windows(*arguments, grid=(7, 5), seed=11))
    assert np.any(windows != layout.encode_windows(*arguments, grid=(7, 5), seed=12))


@pytest.mark.parametrize(
    "options",
    [{"num_tokens": 3, "num_classes": 1}, {"num_classes": 8192}, {"num_classes": 0}, {"max_objects": 0}],
)
def test_a_layout_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="`num_tokens` at least 4 and above `num_classes`"):
        make(**{"num_classes": 5, **options}).check()


def test_categories_may_fill_all_tokens_but_the_last():
    layout = make(num_classes=8191)
    assert tokens_of(layout, [[0, 0, 1, 1]], [8190])[0] == 8190


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([-0.01, 0, 0.5, 0.5], "object 1"),
        ([0, 0.6, 0.5, 0.5], r"got \[0.0, 0.6, 0.5, 0.5\] for object 1"),
        ([0.5, 0.5, -0.1, 0.1], "not negative"),
        ([0.5, 0.5, np.nan, 0.1], "object 1"),
        ([10, 20, 300, 40], "Divide pixels"),
    ],
)
def test_boxes_outside_the_image_are_refused_by_number(box, said):
    with pytest.raises(ValueError, match=said):
        tokens_of(LAYOUT, [[0, 0, 1, 1], box])


def test_a_rounding_error_outside_the_image_is_none():
    tokens = tokens_of(LAYOUT, [[-1e-7, 0.5, 1 + 2e-7, 0.5 + 1e-7]])
    assert tokens[1:3].tolist() == [point(0, 44), 8099]


def test_objects_without_a_token_are_refused():
    with pytest.raises(ValueError, match=r"below 171.*got category 171 with modifier 0 for object 2"):
        tokens_of(LAYOUT, [[0, 0, 1, 1]] * 3, [0, -1, 171])
    for modifier in (-1, 16):
        with pytest.raises(ValueError, match=rf"modifiers in \[0, 16\).*modifier {modifier} for object 0"):
            tokens_of(LAYOUT, [[0, 0, 1, 1]], [0], [modifier])
    tight = make(num_classes=600)
    assert tokens_of(tight, [[0, 0, 1, 1]], [390], [13])[0] == 8190
    with pytest.raises(ValueError, match="below the none token 8191; got category 391 with modifier 13"):
        tokens_of(tight, [[0, 0, 1, 1]], [391], [13])


def test_crops_and_windows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\] of the image.*for the crop"):
        tokens_of(LAYOUT, [], crop=(0.5, 0.0, 0.6, 1.0))
    with pytest.raises(ValueError, match="width and height must be positive"):
        tokens_of(LAYOUT, [], crop=(0.5, 0.0, 0.0, 1.0))
    empty = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)
    with pytest.raises(ValueError, match=r"window \(4, 5\) must fit into `grid`, in codes; got \(4, 4\)"):
        make(window=(4, 5)).encode_windows(*empty, grid=(4, 4), seed=0)


def test_tokens_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"must have 92 tokens; got shape \(62,\)"):
        LAYOUT.decode_objects(np.zeros(62, int))


COCO = Path(os.environ.get("VQGAN_JAX_DATA", "")) / "coco_boxes"


@pytest.fixture
def coco():
    """A function from an image's number to its boxes, categories and group flags: things, then stuff."""
    files = [json.loads((COCO / f"{kind}_val2017.json").read_text()) for kind in ("instances", "stuff")]
    named = [str(category["id"]) for file in files for category in file["categories"] if category["name"] != "other"]
    rank = {int(text): i for i, text in enumerate(sorted(named))}  # upstream sorts the numbers as words
    assert len(rank) == K

    def objects(number):
        image = next(image for image in files[0]["images"] if image["id"] == number)
        found = [
            a for file in files for a in file["annotations"] if a["image_id"] == number and a["category_id"] in rank
        ]
        boxes = np.array([a["bbox"] for a in found]) / ([image["width"], image["height"]] * 2)
        return boxes, np.array([rank[a["category_id"]] for a in found]), np.array([a["iscrowd"] for a in found])

    return objects


@pytest.mark.skipif("VQGAN_JAX_DATA" not in os.environ, reason="needs COCO's annotations in $VQGAN_JAX_DATA")
class TestCOCO:
    def test_a_traffic_light_before_a_wall(self, coco):
        """Image 15272, 424 x 640: category 10 at [41.95, 38.91, 234.47, 97.87] and 169 all over.

        89/424 (41.95, 276.42) = 8.81, 58.02 and 89/640 (38.91, 136.78) = 5.41, 19.02. Of the words "10" is second,
        after "1", and 76 are before "169": 1; 10 and 100 to 109, the same of 11, only ten of 12, for there is no
        category 12, eleven each of 13, 14 and 15; and 16 and 160 to 168.
        """
        tokens = LAYOUT.encode_objects(*coco(15272), rng=None)
        assert tokens[:6].tolist() == [1, point(9, 5), point(58, 19), 76, 0, 8099]
        assert (tokens[6:90] == NONE).all()

    def test_a_banana_on_a_table(self, coco):
        """Image 12667, 640 x 480: the banana's box is [283.84, 48.74, 163.77, 241.29].

        89/640 (283.84, 447.61) = 39.47, 62.25; 89/480 (48.74, 290.03) = 9.04, 53.78. Its middle: 50.86, 31.41.
        """
        tokens = LAYOUT.encode_objects(*coco(12667), rng=None)
        assert tokens[1:3].tolist() == [point(39, 9), point(62, 54)]
        assert len(LAYOUT.decode_objects(tokens)) == 6
        tokens = make(centers=True).encode_objects(*coco(12667), rng=None)
        assert tokens[1] == point(51, 31)

    def test_a_crowd_of_persons(self, coco):
        """Image 16228, 640 x 440: the crowd is at [13, 166, 616, 127], 1.81 to 87.47 and 33.58 to 59.27."""
        boxes, categories, crowds = coco(16228)
        (index,) = np.flatnonzero(crowds)
        one = boxes[[index]], categories[[index]], crowds[[index]]
        corners = [point(2, 34), point(87, 59)]
        assert LAYOUT.encode_objects(*one, rng=None)[:3].tolist() == [K, *corners]
        assert make(paper=True).encode_objects(*one, rng=None)[:3].tolist() == [0, *corners]

    def test_every_image_comes_back(self, coco):
        """All 100 have tokens, of as many objects as they have, up to 30, and boxes within half a section."""
        for image in json.loads((COCO / "instances_val2017.json").read_text())["images"]:
            boxes, categories, crowds = coco(image["id"])
            decoded = LAYOUT.decode_objects(LAYOUT.encode_objects(boxes, categories, crowds, rng=None))
            assert [n for n, _ in decoded] == (categories + K * crowds)[:30].tolist()
            found = np.array([box for _, box in decoded])
            np.testing.assert_allclose(found[:, :2], boxes[:30, :2], rtol=0, atol=0.5 / 89 + 1e-9)
            np.testing.assert_allclose(found[:, 2:], boxes[:30, 2:], rtol=0, atol=1 / 89 + 1e-9)
