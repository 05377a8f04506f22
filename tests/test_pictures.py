import io

import numpy as np
import pytest
from PIL import Image

from vqgan_jax import pictures


@pytest.fixture
def images():
    """Five images of 3 x 4 pixels; all values differ from white."""
    return np.random.default_rng(0).integers(0, 250, (5, 3, 4, 3), dtype=np.uint8)


def test_a_grid_is_filled_row_by_row_on_white(images):
    sheet = pictures.grid(images, columns=2, gap=1)
    assert sheet.shape == (3 * 3 + 2, 2 * 4 + 1, 3)
    for i, image in enumerate(images):
        y, x = (i // 2) * 4, (i % 2) * 5
        np.testing.assert_array_equal(sheet[y : y + 3, x : x + 4], image)
    white = np.ones(sheet.shape[:2], bool)
    for i in range(5):
        white[(i // 2) * 4 : (i // 2) * 4 + 3, (i % 2) * 5 : (i % 2) * 5 + 4] = False
    assert (sheet[white] == 255).all()


def test_one_channel_is_shown_as_grey(images):
    grey = images[..., :1]
    np.testing.assert_array_equal(pictures.grid(grey, columns=3), pictures.grid(grey.repeat(3, -1), columns=3))


def test_pairs_puts_every_reconstruction_below_its_original(images):
    recons = 255 - images
    sheet = pictures.pairs(images, recons, columns=3)
    assert sheet.shape == (4 * 3 + 3 * 2, 3 * 4 + 2 * 2, 3)
    for i, (image, recon) in enumerate(zip(images, recons, strict=True)):
        y, x = (i // 3) * 2 * 5, (i % 3) * 6
        np.testing.assert_array_equal(sheet[y : y + 3, x : x + 4], image)
        np.testing.assert_array_equal(sheet[y + 5 : y + 8, x : x + 4], recon)
    assert (sheet[10:13, 12:] == 255).all(), "the place of the sixth original is empty"
    assert (sheet[15:, 12:] == 255).all(), "and so is that of its reconstruction"


def test_a_wall_breaks_its_lines_at_the_width_and_loses_no_picture(images):
    """Of pictures 4, 6 and 5 wide with gaps of 1, the first two need 11 pixels."""
    sheets = [images[0], np.full((5, 6, 3), 7, np.uint8), np.full((2, 5, 3), 9, np.uint8)]
    wall = pictures.wall(sheets, width=11, gap=1)
    assert wall.shape == (5 + 1 + 2, 11, 3)
    np.testing.assert_array_equal(wall[:3, :4], sheets[0])
    np.testing.assert_array_equal(wall[:5, 5:11], sheets[1])
    np.testing.assert_array_equal(wall[6:8, :5], sheets[2])
    assert (wall != 255).any(-1).sum() == 3 * 4 + 5 * 6 + 2 * 5
    assert pictures.wall(sheets, width=10, gap=1).shape == (3 + 1 + 5 + 1 + 2, 6, 3)
    assert pictures.wall(sheets, width=1, gap=1).shape == (3 + 1 + 5 + 1 + 2, 6, 3)


def test_a_png_holds_exactly_these_pixels(images):
    sheet = pictures.grid(images, columns=5)
    data = pictures.png(sheet)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), sheet)


def test_every_category_has_its_own_color_and_neighbours_differ_clearly():
    """Distances are sums over red, green and blue, of 765 at most; ADE20K has 150 categories, COCO-Stuff 183."""
    colors = pictures.colors(np.arange(256).reshape(1, 256))[0].astype(int)
    assert colors[0].tolist() == [40, 40, 40]
    apart = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(256, dtype=int)
    assert np.diagonal(apart, 1).min() > 140
    assert apart[:30, :30].min() > 50, "of few categories none look alike"
    assert apart[:184, :184].min() > 20


def test_a_category_has_the_same_color_whatever_is_beside_it():
    labels = np.array([[[7, 0], [150, 7]], [[3, 3], [0, 150]]], np.uint8)
    colors = pictures.colors(labels)
    assert colors.shape == (2, 2, 2, 3)
    for number in (0, 3, 7, 150):
        alone = pictures.colors(np.full((1, 1), number))[0, 0]
        assert (colors[labels == number] == alone).all()
    np.testing.assert_array_equal(pictures.colors(labels[0].astype(np.int32)), colors[0])


def test_heat_is_grey_from_black_to_white():
    values = np.array([[-1, 0, 1], [-3, 0.5, 2]], np.float32)
    heat = pictures.heat(values)
    assert heat[..., 0].tolist() == [[0, 128, 255], [0, 191, 255]]
    assert (heat == heat[..., :1]).all()


RED, BLUE, GROUND = (200, 20, 20), (20, 20, 200), (238, 238, 238)


def painted(picture, color):
    """Rows and columns of the pixels of a color."""
    return set(zip(*np.nonzero((picture == color).all(-1)), strict=True))


def test_boxes_are_outlines_where_they_are():
    """Of 101 pixels the edges at .1, .2, .6 and .7 are those of number 10, 20, 60 and 70."""
    picture = pictures.boxes([("", (0.1, 0.2, 0.5, 0.5), RED)], 101)
    edge = {(y, x) for y in range(20, 71) for x in range(10, 61) if y in (20, 70) or x in (10, 60)}
    assert painted(picture, RED) == edge
    assert len(painted(picture, GROUND)) == 101 * 101 - len(edge)
    assert (pictures.boxes([], 16) == 238).all()


def test_a_small_box_is_drawn_above_a_large_one_and_a_point_is_a_dot():
    layout = [("", (0.4, 0.4, 0.2, 0.2), BLUE), ("", (0.4, 0.4, 0.6, 0.6), RED), ("", (0.9, 0.1, 0.0, 0.0), RED)]
    picture = pictures.boxes(layout, 64)
    assert (25, 25) in painted(picture, BLUE), "the corner of both"
    dot = {(y, x) for y in range(5, 8) for x in range(56, 59)}
    assert dot <= painted(picture, RED)
    np.testing.assert_array_equal(picture, pictures.boxes(layout[::-1], 64))


def test_names_are_written_inside_their_boxes_where_there_is_room():
    """At 64 pixels a short name fits into half the picture and is dark enough to read; nowhere does one stick out."""
    dark = lambda picture: set(zip(*np.nonzero(picture.max(-1) < 130), strict=True))
    picture = pictures.boxes([("dog", (0.25, 0.25, 0.5, 0.5), RED)], 64)
    assert len(dark(picture)) > 10
    assert all(16 < y < 47 and 16 < x < 47 for y, x in dark(picture))
    assert not dark(pictures.boxes([("a long name of it", (0.25, 0.25, 0.5, 0.5), RED)], 64))
    assert not dark(pictures.boxes([("dog", (0.25, 0.25, 0.1, 0.5), RED)], 64))
    named = pictures.boxes([("dog", (0.25, 0.25, 0.0, 0.0), RED)], 64)
    assert min(x for _, x in dark(named)) > 18, "beside its dot"
    assert not dark(pictures.boxes([("dog", (0.95, 0.25, 0.0, 0.0), RED)], 64))


def test_of_two_names_in_one_place_the_smaller_box_keeps_its_own():
    large, small = ("cat", (0.0, 0.0, 1.0, 1.0), RED), ("dog", (0.0, 0.0, 0.5, 0.5), RED)
    without = lambda entry: ("", *entry[1:])
    both = pictures.boxes([large, small], 64)
    np.testing.assert_array_equal(both, pictures.boxes([without(large), small], 64))
    assert np.any(both != pictures.boxes([large, without(small)], 64))


@pytest.mark.parametrize("text", ["x", "a_very long name_of_it", "Qgj"])
def test_words_are_whole_and_in_the_middle(text):
    """The ink leaves a margin on every side, and those of the left and right are alike."""
    rows, columns = np.nonzero(pictures.words(text, 128).max(-1) < 130)
    assert 4 <= min(rows) < max(rows) < 124
    assert 4 <= min(columns) < max(columns) < 124
    assert abs(min(columns) - (127 - max(columns))) <= 3


def test_an_animation_plays_for_ever_and_rests_at_its_end():
    frames = [np.full((5, 7, 3), value, np.uint8) for value in (0, 90, 180, 250)]
    with Image.open(io.BytesIO(pictures.animation(frames, fps=20))) as film:
        assert (film.format, film.size, film.n_frames, film.info["loop"]) == ("GIF", (7, 5), 4, 0)
        durations = []
        for i, frame in enumerate(frames):
            film.seek(i)
            durations.append(film.info["duration"])
            np.testing.assert_array_equal(np.asarray(film.convert("RGB")), frame)
    assert durations == [50, 50, 50, 1000]


def test_an_animation_without_frames_or_too_fast_is_refused(images):
    for frames, fps in (([], 5), ([images[0]], 0), ([images[0]], 51)):
        with pytest.raises(ValueError, match=rf"1 to 50 of them a second; got {len(frames)} and fps={fps}"):
            pictures.animation(frames, fps=fps)
