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
