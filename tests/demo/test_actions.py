"""What the tabs of the demo compute: on models that nobody trained, without a page."""

import json

import numpy as np
import pytest
import untrained
from PIL import Image

import vqgan_jax as vq
from vqgan_jax.data import photos
from vqgan_jax.demo import actions
from vqgan_jax.demo.actions import Models, Request
from vqgan_jax.evaluate import drawing

REQUEST = Request(count=5, seed=3, temperature=1.0, top_k=8, top_p=1.0, guidance=1.0)


def models_of(variant="raster", **options):
    prior = untrained.prior(variant, **options)
    return Models(tokenizer=prior.tokenizer, side=prior.image_size, prior=prior, class_names=("cat", "dog"))


@pytest.fixture(scope="module")
def models():
    return models_of()


def last(steps):
    return list(steps)[-1]


def test_a_class_has_its_name_or_its_number(models):
    assert models.classes == ["cat", "dog", "2", "3", "4"]
    assert [models.class_of(name) for name in ("dog", "4")] == [1, 4]
    with pytest.raises(ValueError, match="must be one of cat, dog, 2, 3, 4; got 'tiger'"):
        models.class_of("tiger")


# Codes


def test_a_picture_is_read_and_brought_to_the_side(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    picture = actions.read(str(tmp_path / "red.png"), None, 16)
    np.testing.assert_array_equal(picture, np.full((16, 16, 3), (255, 0, 0), np.uint8))
    assert actions.read(None, photos.NAMES[0], 8).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # our own words come after it
def test_what_is_no_picture_is_said(tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and nothing more")
    with pytest.raises(ValueError, match=r"whole, readable file; broken\.png is not"):
        actions.read(str(tmp_path / "broken.png"), None, 8)
    with pytest.raises(ValueError, match="there is no picture yet"):
        actions.read(None, "../../etc/passwd", 8)
    Image.new("L", (60, 60)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ValueError, match=r"at most 3,000 pixels.*large\.png has more"):
        actions.read(str(tmp_path / "large.png"), None, 8)


def test_codes_come_back_as_the_tokenizers_own(models):
    picture = actions.read(None, "chelsea", 8)
    codes = actions.encode(models, picture)
    np.testing.assert_array_equal(codes, vq.encode(models.tokenizer, picture[None])[0])
    np.testing.assert_array_equal(
        actions.decode(models, codes), vq.to_uint8(vq.decode(models.tokenizer, codes[None]))[0]
    )


def test_each_code_has_one_color_and_the_picked_one_a_frame():
    codes = np.array([[1, 2], [2, 7]], np.int32)
    sheet = actions.colored(codes)
    cells = sheet.reshape(2, 192, 2, 192, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1, 3)
    assert all(len(np.unique(cell, axis=0)) == 1 for cell in cells)
    assert len(np.unique(cells[:, 0], axis=0)) == 3
    framed = actions.colored(codes, (1, 0))
    assert (framed[192, 0] == 255).all()
    np.testing.assert_array_equal(framed[:, 192:], sheet[:, 192:])


def test_a_brush_covers_cells():
    strokes = np.zeros((40, 40), bool)
    strokes[0:10, 8:30] = True  # two pixels of the first cell's ten, all of the next two's
    np.testing.assert_array_equal(actions.covered(strokes, (4, 4)), [[1, 1, 1, 0], *[[0] * 4] * 3])
    strokes[39, 39] = True  # one of a hundred pixels is no cell
    assert actions.covered(strokes, (4, 4)).sum() == 3


def test_painting_writes_one_code_or_a_neighbourhood():
    codes, target = np.arange(16, dtype=np.int32).reshape(4, 4), np.zeros((4, 4), bool)
    target[2:, 2:] = True
    assert (actions.paint(codes, target, 9)[2:, 2:] == 9).all()
    moved = actions.paint(codes, target, 9, source=(0, 1))
    np.testing.assert_array_equal(moved[2:, 2:], codes[:2, 1:3])
    np.testing.assert_array_equal(moved[:2], codes[:2])
    np.testing.assert_array_equal(actions.paint(codes, target, 9, source=(3, 3))[2:, 2:], 15)  # up to the border
    with pytest.raises(ValueError, match="must cover at least one code"):
        actions.paint(codes, np.zeros((4, 4), bool), 9)


# Samples


def test_samples_are_those_of_the_verb_chunk_by_chunk(models):
    steps = list(actions.draw(models, 1, {}, REQUEST))
    assert [(share, len(images)) for share, images in steps] == [(0.8, 4), (1.0, 5)]
    images, _ = drawing.draw(
        models.prior, np.full(5, 1, np.int32), np.arange(5), seed=3, batch_size=5, options={"top_k": 8}
    )
    np.testing.assert_array_equal(np.stack(steps[-1][1]), images)


def test_rejection_keeps_the_best(models):
    brightest = Models(**vars(models) | {"scorer": lambda images, labels: images.mean(axis=(1, 2, 3))})
    request = Request(**vars(REQUEST) | {"count": 2, "accept_rate": 0.5})
    *_, (_, drawn), (_, kept) = actions.draw(brightest, 0, {}, request)
    brightness = sorted(image.mean() for image in drawn)
    assert (len(drawn), len(kept)) == (4, 2)
    assert sorted(image.mean() for image in kept) == brightness[2:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, r"`count` must be in 1 \.\. 16; got 0"),
        ({"count": 10**9}, "`count` must be in"),
        ({"seed": -1}, "`seed` must be in 0"),
        ({"accept_rate": 0.0}, r"`accept_rate` must be in \(0, 1\]; got 0\.0"),
        ({"temperature": 0.0}, "`temperature` must be above 0; got 0"),
        ({"top_k": 17}, r"`top_k` must be in 1 \.\. 16"),
    ],
)
def test_settings_out_of_range_are_said(models, change, message):
    with pytest.raises(ValueError, match=message):
        next(actions.draw(models, 0, {}, Request(**vars(REQUEST) | change)))


def test_a_tokenizer_draws_nothing():
    tokenizer = Models(tokenizer=untrained.tokenizer(), side=8)
    assert tokenizer.classes == []
    with pytest.raises(ValueError, match="draws nothing"):
        next(actions.draw(tokenizer, 0, {}, REQUEST))


def test_a_completion_keeps_what_is_not_painted_over(models):
    picture, strokes = actions.read(None, "chelsea", 8), np.zeros((40, 40), bool)
    strokes[20:] = True
    rows = actions.completion(models, picture, strokes)
    np.testing.assert_array_equal(rows["known"][0], [[1] * 4] * 2 + [[0] * 4] * 2)
    np.testing.assert_array_equal(rows["prompt"][0], actions.encode(models, picture))
    _, images = next(actions.draw(models, 0, rows, REQUEST))
    assert len({image.tobytes() for image in images}) > 1
    with pytest.raises(ValueError, match="must cover what to draw anew"):
        actions.completion(models, picture, ~strokes & strokes)


def test_a_wide_image_grows_to_that_of_one_call(models):
    steps = list(actions.wide(models, 2, 2, REQUEST))
    assert [share for share, _ in steps] == [0.5, 1.0]
    assert (steps[0][1][4:] == 128).all()  # not there yet
    labels = np.array([2], np.int32)
    images, _ = drawing.draw(
        models.prior, labels, np.zeros(1, int), seed=3, batch_size=1, options={"top_k": 8, "size": (8, 16), "stride": 2}
    )
    np.testing.assert_array_equal(steps[-1][1], images[0])
    with pytest.raises(ValueError, match=r"must be in 2 \.\. 16 training images; got 17"):
        next(actions.wide(models, 2, 17, REQUEST))


# Conditions


def canvas(brushes, **places):
    """A drawing of 80 x 80 pixels: the ground, and a rectangle (rows, columns) of each brush."""
    ground, *_ = brushes.values()
    drawing = np.full((80, 80, 3), ground, np.uint8)
    for name, place in places.items():
        drawing[place] = brushes[name]
    return drawing


def test_boxes_are_drawn_and_read_alike(tmp_path):
    models = models_of("boxes", side=8)
    condition = models.prior.module.condition
    drawing = canvas(condition.brushes(("cat", "dog")), dog=np.s_[0:40, 40:80])
    drawn = actions.drawn_condition(models, drawing, None)
    path = tmp_path / "layout.json"
    path.write_text(json.dumps([{"box": [0.5, 0, 0.5, 0.5], "category": 1}]))
    np.testing.assert_array_equal(drawn, actions.drawn_condition(models, None, str(path)))
    (look,) = actions.looks(models, drawn)
    assert look.shape == (16, 16, 3)
    _, images = next(actions.draw(models, 0, {"condition": drawn}, REQUEST))
    assert len(images) == 4
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"must be JSON like .*; layout\.json is not"):
        actions.drawn_condition(models, None, str(path))
    with pytest.raises(ValueError, match="at least one object; the drawing shows none"):
        actions.drawn_condition(models, canvas(condition.brushes()), None)
    with pytest.raises(ValueError, match="there is no condition yet"):
        actions.drawn_condition(models, None, None)
