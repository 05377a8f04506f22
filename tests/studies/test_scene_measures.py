"""Obedience is near 1 for true images, and near chance for those of other scenes."""

import numpy as np
import pytest

from vqgan_jax import cli
from vqgan_jax.data.scenes import Scenes

with cli.page_module(cli.PAGES[-1] / "studies" / "scene_measures.py") as obedience:
    pass

COUNT = 48


@pytest.fixture(scope="module")
def truth():
    source = Scenes(split="validation", image_size=32)
    scenes = [source[i] for i in range(COUNT)]
    arrays = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    return arrays | {"segmentation": arrays["segmentation"].astype(np.int32), "depth": arrays["depth"][..., None]}


MEASURES = {  # least mean of true images, and greatest of other scenes' images
    "segmentation": (lambda i, t: obedience.of_segmentation(i, t["segmentation"]), 0.85, 0.25),
    "accuracy": (lambda i, t: obedience.pixel_accuracy(i, t["segmentation"]), 0.96, 0.7),
    "depth": (lambda i, t: obedience.of_depth(i, t["depth"]), 0.93, 0.6),
    "label": (lambda i, t: obedience.of_label(i, t["label"]), 1.0, 0.3),
    "boxes": (lambda i, t: obedience.of_boxes(i, t["boxes"], t["categories"]), 0.75, 0.2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_true_images_obey_and_others_do_not(truth, name):
    measure, least, greatest = MEASURES[name]
    own = measure(truth["image"], truth)
    others = measure(np.roll(truth["image"], 1, axis=0), truth)
    assert own.shape == (COUNT,)
    assert own.mean() >= least
    assert others.mean() <= greatest


def test_what_shows_nothing_obeys_nothing(truth):
    grey = np.full_like(truth["image"], 128)
    assert not obedience.of_label(grey, truth["label"]).any()
    assert not obedience.of_boxes(grey, truth["boxes"], truth["categories"]).any()
    np.testing.assert_allclose(obedience.of_depth(grey, truth["depth"]), 0.5)


def test_overlap_by_hand():
    """Pixels of 0.1 from (0.2, 0.4) to (0.5, 0.6), against a box that covers their right half and as much more."""
    pixels = np.array([[0.4, 0.2], [0.5, 0.4]])  # y x
    box = np.array([0.35, 0.4, 0.3, 0.2])
    assert obedience.overlap(pixels, box, 0.1) == pytest.approx(0.15 * 0.2 / (0.06 + 0.06 - 0.03))
    assert obedience.overlap(np.zeros((0, 2)), box, 0.1) == 0


def test_depth_reversed_is_wrong(truth):
    """Nearest where it is farthest: what is larger should be behind."""
    right = obedience.of_depth(truth["image"], truth["depth"])
    np.testing.assert_allclose(obedience.of_depth(truth["image"], -truth["depth"]), 1 - right, atol=1e-9)
