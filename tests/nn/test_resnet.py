"""The distance by ResNet50's logits against torchvision's on the same random weights, and what the loss makes of it."""

import dataclasses
import functools
from pathlib import Path

import drawn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import VALUES, error, under
from safetensors.numpy import save_file

from vqgan_jax import cli
from vqgan_jax.convert.resnet import load_resnet50
from vqgan_jax.nn.perceptual import LogitDistance
from vqgan_jax.nn.pixels import to_float
from vqgan_jax.train.stage1 import Stage1

# Of the largest gradient: rounding moves some of ten million ReLUs to the other side of 0. Torch in float64 is 7e-3
# away from itself in float32. Without antialiasing it would be 1, with the stride on the first convolution 0.3.
KINKS = 2e-2
TINY = str(Path(__file__).parents[1] / "train" / "tiny.py")


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "golden" / "resnet.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def params(recorded, tmp_path_factory):
    """`drawn.weight` of each tensor by torchvision's names, through a file."""
    rows = [row.split() for row in recorded["tensors"].tolist()]
    path = tmp_path_factory.mktemp("published") / "resnet50.safetensors"
    save_file({name: drawn.weight(name, tuple(map(int, sizes))) for name, *sizes in rows}, path)
    return load_resnet50(path)


@functools.partial(jax.jit, static_argnums=0)
def measure(dtype, params, x, y):
    """Logits of both, their distances, and the gradient of the sum of these by y."""
    apply = functools.partial(LogitDistance(dtype).apply, {"params": params})
    distances, pull = jax.vjp(lambda y: apply(x, y), y)
    logits = functools.partial(apply, method="logits")
    (gradient,) = pull(jnp.ones_like(distances))
    return {"logits_x": logits(x), "logits_y": logits(y), "distances": distances, "gradient": gradient}


@pytest.mark.parametrize("size", [pytest.param("small", marks=pytest.mark.slow), "large"])
def test_logits_distance_and_gradient_are_those_of_torchvision(recorded, params, size):
    """Of pictures that the resize enlarges, and of pictures that it makes smaller, where it is antialiased."""
    pair = {"small": [v[:1] for v in drawn.pairs()], "large": drawn.mirrored()}[size]
    ours = measure(jnp.float32, params, *(to_float(jnp.asarray(v)) for v in pair))
    ours["gradient"] = ours["gradient"][:, ::13, ::13] if size == "large" else ours["gradient"]
    for name, array in under(size, recorded).items():
        assert error(ours[name], array) < (KINKS if name == "gradient" else VALUES), name
        assert np.abs(array).max() > 0


@pytest.mark.slow
def test_in_bfloat16_the_distance_is_nearly_that(recorded, params):
    x, y = (to_float(jnp.asarray(v[:1])) for v in drawn.pairs())
    distance = jax.jit(LogitDistance(jnp.bfloat16).apply)({"params": params}, x, y)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, recorded["small/distances"], rtol=0.1)


# The loss


class Constant(nn.Module):
    """A distance that has parameters: a number."""

    @nn.compact
    def __call__(self, x, y):
        return self.param("value", nn.initializers.zeros, ()) + jnp.abs(x - y).mean((1, 2, 3))


def stage(*flags):
    return Stage1.from_config(cli.load_config(f"{TINY}:lpips", [f"--config.loss.{flag}" for flag in flags]))


@pytest.mark.parametrize(
    ("perceptual", "weight", "expected"),
    [("lpips", 2.0, 2.0 * 3.0), ("resnet50", 0.1, 0.1 * 7.0), ("both", 1.1, 1.0 * 3.0 + 0.1 * 7.0)],
)
def test_the_loss_reads_the_distances_that_the_config_names_each_with_its_share(perceptual, weight, expected):
    task = stage(f"perceptual={perceptual}", f"perceptual_weight={weight}", "pixel_weight=0.0")
    assert task.frozen_shapes().keys() == task.distances.keys() | {"lpips"}
    task = dataclasses.replace(task, distances={name: Constant() for name in task.distances})
    frozen = {name: {"value": value} for name, value in {"lpips": 3.0, "resnet50": 7.0}.items()}
    x = jnp.zeros((2, 4, 4, 3))
    total, terms = task.reconstruction_loss(frozen, x, x, jax.random.key(0))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(terms["perceptual_loss"], expected / weight, rtol=1e-6)


def test_without_a_weight_no_other_network_is_read():
    assert stage("perceptual=both", "perceptual_weight=0.0").frozen_shapes().keys() == {"lpips"}


def test_an_unknown_perceptual_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss\.perceptual` must be one of lpips, resnet50, both; got 'vgg19'"):
        stage("perceptual=vgg19")
