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
