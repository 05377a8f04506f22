"""FID's Inception against pytorch-fid's on the same random weights, and its resize against TensorFlow's."""

import functools
from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from reference import error

from vqgan_jax.convert import names, trees
from vqgan_jax.convert.inception import TORCH
from vqgan_jax.evaluate.features import inception_features
from vqgan_jax.nn.inception import POOLS, Inception, resize_tf1

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "inception.npz") as arrays:
        return {name: array for name, array in arrays.items() if name != "tensors"}


@pytest.fixture(scope="module")
def params():
    """`drawn.weight` of each tensor of the published file."""
    init = functools.partial(Inception().init, jax.random.key(0))
    shapes = trees.flat(jax.eval_shape(init, jnp.zeros((1, 299, 299, 3)))["params"])
    arrays = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, entry in names.entries(TORCH, shapes).items():
        names.put(entry, arrays[entry.path], drawn.weight(name, entry.shape))
    return jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))


@pytest.fixture(scope="module")
def outputs(params, recorded):
    """Features, logits and the means of some convolutions, of the recorded pictures."""
    kept = [name.removeprefix("mean/") for name in recorded if name.startswith("mean/")]
    capture = lambda module, _: module.name in kept
    run = jax.jit(lambda params, x: Inception().apply({"params": params}, x, capture_intermediates=capture))
    resized = [np.asarray(resize_tf1(jnp.asarray(image[None]))) for image in drawn.pictures()]
    (features, logits), state = run(params, (np.concatenate(resized) - 128) / 128)
    means = {f"mean/{name}": state["intermediates"][name]["__call__"][0].mean((1, 2)) for name in kept}
    return {"features": features, "logits": logits} | means


def test_features_and_logits_are_those_of_pytorch_fid(outputs, recorded):
    for name, array in recorded.items():
        assert error(outputs[name], array) < 1e-5, name
        assert np.abs(array).max() > 1.0


def test_pictures_of_bytes_are_resized_and_scaled(params, outputs):
    image = jnp.asarray(drawn.pictures()[0][None])
    for ours, expected in zip(inception_features(params, image), (outputs["features"], outputs["logits"]), strict=True):
        assert error(ours, np.asarray(expected[:1])) < 1e-5


def test_averages_do_not_count_padding():
    np.testing.assert_allclose(POOLS["average"](jnp.ones((1, 8, 8, 2))), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(POOLS["max"](-jnp.ones((1, 8, 8, 2))), -1.0)


@pytest.mark.parametrize("number", range(3))
def test_the_resize_is_tensorflows(number):
    image = drawn.pictures()[number]
    with np.load(GOLDEN / "resize.npz") as arrays:
        expected = arrays[str(len(image))]
    resized = resize_tf1(jnp.asarray(image[None]))
    assert resized.shape == (1, 299, 299, 3)
    np.testing.assert_array_equal(resized[0, ::13, ::13], expected)
    compiled = jax.jit(resize_tf1)(jnp.asarray(image[None]))
    np.testing.assert_allclose(compiled[0, ::13, ::13], expected, atol=5e-5)
    # What others do instead is levels away.
    if len(image) != 299:
        other = jax.image.resize(image.astype(np.float32), (299, 299, 3), "bilinear")
        assert np.abs(other[::13, ::13] - expected).mean() > 0.5
