"""DINOv2's patch features, and the semantic loss by them, against timm's on the same random weights."""

import functools
from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GRADIENTS, VALUES, error, under
from safetensors.numpy import save_file

from vqgan_jax.convert.dinov2 import load_dinov2
from vqgan_jax.nn.perceptual import SemanticDistance, imagenet
from vqgan_jax.nn.pixels import to_float

NAME = "dinov2_vits14"


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "golden" / "dinov2.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def frozen(recorded, tmp_path_factory):
    """`drawn.weight` of each tensor by the published names, through a file."""
    rows = [row.split() for row in recorded["tensors"].tolist()]
    path = tmp_path_factory.mktemp("published") / "dinov2.safetensors"
    save_file({name: drawn.weight(name, tuple(map(int, sizes))) for name, *sizes in rows}, path)
    return {NAME: load_dinov2(path)}


@functools.partial(jax.jit, static_argnums=0)
def measure(dtype, frozen, x, codes):
    """Features, the distances of codes from them, and the gradient of the mean of these by the codes."""
    distance = SemanticDistance(NAME, dtype)
    kernel = jnp.asarray(drawn.weight("projection.weight", (384, 8)).T[None, None])
    params = {"projection": {"kernel": kernel, "bias": jnp.asarray(drawn.weight("projection.bias", (384,)))}}
    read = lambda codes: distance.apply({"params": params}, codes, x, frozen)
    distances, pull = jax.vjp(read, codes)
    (gradient,) = pull(jnp.full_like(distances, 1 / distances.size))
    features = distance.frozen[NAME].apply({"params": frozen[NAME]}, imagenet(x), codes)
    return {"features": features, "distances": distances, "gradient": gradient}


def example(size):
    """Pictures, and codes where features are wanted."""
    images, grid = {"small": (drawn.pairs()[0][:2], (4, 4)), "large": (drawn.mirrored()[0], (8, 6))}[size]
    return to_float(jnp.asarray(images)), jnp.asarray(drawn.weight("codes", (len(images), *grid, 8)))


@pytest.mark.parametrize("size", ["small", "large"])
def test_features_distances_and_gradient_are_those_of_timm(recorded, frozen, size):
    """Of pictures that the resize enlarges, and of one that it makes smaller and of another shape."""
    ours = measure(jnp.float32, frozen, *example(size))
    for name, array in under(size, recorded).items():
        assert error(ours[name], array) < (GRADIENTS if name == "gradient" else VALUES), name


def test_in_bfloat16_the_distances_are_nearly_those(recorded, frozen):
    ours = measure(jnp.bfloat16, frozen, *example("small"))
    assert ours["features"].dtype == ours["distances"].dtype == jnp.float32
    np.testing.assert_allclose(ours["distances"], recorded["small/distances"], atol=0.02)


def test_no_gradient_passes_through_the_frozen_network(frozen):
    """Its layers run once; a gradient by the image would run them again, backwards."""
    x, codes = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4, 384))
    total = lambda codes, x: measure.__wrapped__(jnp.float32, frozen, x, codes[..., :8])["distances"].sum()
    by_codes, by_image = (str(jax.make_jaxpr(jax.grad(total, argnums))(codes, x)) for argnums in (0, 1))
    assert by_codes.count("length=12") < by_image.count("length=12")
