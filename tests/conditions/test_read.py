"""Files become conditions, and pictures stand beside samples of any size."""

import json

import jax
import numpy as np
import pytest
import untrained
from PIL import Image

import vqgan_jax as vq
from vqgan_jax import pictures
from vqgan_jax.data.scenes import Scenes
from vqgan_jax.evaluate import drawing

SCENE = Scenes(split="validation", image_size=16)[0]


def read(prior, path, size):
    return prior.module.condition.read([str(path)], size, prior.config.data)


def test_a_label_map_is_brought_to_the_size_by_the_nearest_pixel(tmp_path):
    prior = untrained.prior("segmentation", classes=9)
    Image.fromarray(SCENE["segmentation"]).save(tmp_path / "map.png")
    values = read(prior, tmp_path / "map.png", (8, 16))  # the middle half, at the same scale
    np.testing.assert_array_equal(values, SCENE["segmentation"][None, 4:12].astype(np.int32))
    subjects = drawing.of_values(prior, values, (8, 16))
    codes = vq.encode(prior.condition, values)
    kept = np.asarray(vq.decode(prior.condition, codes)).argmax(-1)
    np.testing.assert_array_equal(subjects.beside[0], pictures.colors(values))
    np.testing.assert_array_equal(subjects.beside[1], pictures.colors(kept))


def test_depth_and_a_picture_for_edges_are_as_the_loader_shows_them(tmp_path):
    np.save(tmp_path / "depth.npy", SCENE["depth"])
    Image.fromarray(SCENE["image"]).save(tmp_path / "photo.png")
    depth = read(untrained.prior("depth"), tmp_path / "depth.npy", (16, 16))
    assert (depth.shape, depth.min(), depth.max()) == ((1, 16, 16, 1), -1, 1)
    edges = read(untrained.prior("edges"), tmp_path / "photo.png", (16, 16))
    assert (edges.shape, set(np.unique(edges))) == ((1, 16, 16, 3), {0, 255})


def test_a_layout_of_a_larger_image_has_outlines_as_large(tmp_path):
    prior = untrained.prior("boxes", classes=8)
    (tmp_path / "layout.json").write_text(json.dumps([{"box": [0.1, 0.1, 0.5, 0.5], "category": 3}]))
    tokens = read(prior, tmp_path / "layout.json", (8, 12))
    assert tokens.shape == (1, 1, 3, prior.module.condition.length)
    subjects = drawing.of_values(prior, tokens, (8, 12))
    assert subjects.beside[0].shape == (1, 8, 12, 3)
    assert vq.sample_indices(prior, jax.random.key(0), condition=tokens, size=(8, 12)).shape == (1, 4, 6)
    (tmp_path / "layout.json").write_text("[{}]")
    with pytest.raises(ValueError, match=r"must be JSON like .*layout\.json is not \(KeyError"):
        read(prior, tmp_path / "layout.json", (8, 8))


def test_a_class_is_read_from_no_file():
    with pytest.raises(ValueError, match=r"conditioned on 'class' reads no files; got map\.png"):
        read(untrained.prior(), "map.png", (8, 8))


# Drawings


def stretched(picture, times=5):
    """As an editor shows it: larger, and a little off in its colours."""
    return np.clip(pictures.resized(picture, tuple(times * side for side in picture.shape[:2])) + 3.0, 0, 255).astype(
        np.uint8
    )


def test_a_drawn_label_map_is_what_its_colours_say():
    condition = untrained.prior("segmentation", classes=9).module.condition
    assert list(condition.brushes()) == [str(i) for i in range(9)]
    labels = SCENE["segmentation"][:8, :8]
    np.testing.assert_array_equal(condition.drawn(stretched(pictures.colors(labels)), (8, 8)), labels[None])


def test_drawn_depth_is_as_bright_as_it_is_shown():
    condition = untrained.prior("depth").module.condition
    drawn = condition.drawn(pictures.heat(np.float32([[-1, 0], [1, 0.5]])), (4, 4))
    assert (drawn.shape, drawn.dtype) == ((1, 4, 4, 1), np.float32)
    np.testing.assert_allclose(drawn[0, ::2, ::2, 0], [[-1, 0], [1, 0.5]], atol=0.01)
    assert list(condition.brushes()) == ["-1.0", "-0.5", "+0.0", "+0.5", "+1.0"]


@pytest.mark.parametrize("kind", ["boxes", "centers"])
def test_drawn_objects_are_boxes_around_blots_of_one_colour(kind):
    condition = untrained.prior(kind, classes=8).module.condition
    brushes = condition.brushes(["cat", "dog"])
    assert list(brushes) == ["nothing", "cat", "dog", *"234567"]
    drawing = np.full((70, 70, 3), brushes["nothing"], np.uint8)
    drawing[10:30, 0:20] = brushes["dog"]
    drawing[10:30, 20:60] = brushes["cat"]  # it touches the first one
    drawing[69, 69] = brushes["5"]  # a speck
    (tokens,) = condition.drawn(drawing, (8, 8))
    boxes, categories = np.array([[0, 1, 2, 2], [2, 1, 4, 2]]) / 7, np.array([1, 0])
    expected = condition.encode_objects(boxes, categories, np.zeros_like(categories), rng=None)
    assert sorted(condition.decode_objects(tokens)) == sorted(condition.decode_objects(expected))


def test_a_condition_without_brushes_says_so():
    condition = untrained.prior("text").module.condition
    assert condition.brushes() == {}
    with pytest.raises(ValueError, match="'text' reads no drawings"):
        condition.drawn(np.zeros((8, 8, 3), np.uint8), (8, 8))
