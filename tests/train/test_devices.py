"""The same training on one device and on eight: sharding changes where numbers live and nothing else.

The comparison wants smooth functions. Where rounding decides on which side of a kink (of |x|, of a hinge, of a leaky
ReLU) one of many thousand numbers falls, gradients jump by 1e-4 at once, and no two orders of summation agree.
"""

import contextlib
import functools
import math
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest
import untrained
from jax.sharding import AxisType, Mesh

from vqgan_jax import cli, models
from vqgan_jax.train import sharding
from vqgan_jax.train.program import Program, open_program

TINY, PRIOR = (str(Path(__file__).with_name(name)) for name in ("tiny.py", "tiny_prior.py"))
ONE = (1, 1, 1)
MESHES = {"data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (2, 2, 2)}


def smooth_leaky_relu(x, slope):
    """Equal to the leaky ReLU far from zero."""
    return slope * x + (1 - slope) * jax.nn.softplus(x)


SMOOTH = {  # everything that kinks, among it VGG16's activations and its maxima
    "flax.linen.leaky_relu": smooth_leaky_relu,
    "flax.linen.relu": jax.nn.softplus,
    "vqgan_jax.nn.perceptual.max_pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
}


def make_mesh(sizes: tuple[int, int, int]) -> Mesh:
    """Over the first devices."""
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@functools.cache
def run(sizes: tuple[int, int, int], variant: str = "smooth", steps: int = 10):
    """Stage 1, from images."""
    with contextlib.ExitStack() as stack:
        for name, function in SMOOTH.items():
            stack.enter_context(mock.patch(name, function))
        program = open_program(cli.load_config(f"{TINY}:{variant}"), make_mesh(sizes))
        return trained(program, program.batches(), steps)


@functools.cache
@mock.patch.multiple(models, find_tokenizer=lambda path, *_: path, load_tokenizer=lambda _: untrained.tokenizer(32))
def run_prior(sizes: tuple[int, int, int], images: bool, variant: str = "base"):
    """Stage 2, from images or from codes; with all its chance, which must not depend on the devices either."""
    program = open_program(cli.load_config(f"{PRIOR}:{variant}"), make_mesh(sizes))
    rng = np.random.default_rng(0)
    codes = ({"tokens": rng.integers(0, (11, *[32] * 64), (8, 65), dtype=np.int32)} for _ in range(10))
    return trained(program, program.batches() if images else codes, 10)


def trained(program: Program, batches, steps: int):
    """Metrics of each step and the last state, on the host; what must hold of every step is checked on the way."""
    state, mesh = program.start(), program.mesh
    key = jax.jit(lambda: jax.random.key(program.config.seed), out_shardings=sharding.replicated(mesh))()
    history = []
    for _ in range(steps):
        batch, old = sharding.put_batch(next(batches), mesh), jax.tree.leaves(state)
        with jax.transfer_guard("disallow"):
            state, metrics = program.step(state, program.frozen, batch, key)
        assert all(leaf.is_deleted() for leaf in old), "the old state must be donated"
        history.append(metrics)
    assert program.step._cache_size() == 1, "all steps must share one compilation"
    where = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, there: leaf.sharding == there, state, where)))
    return jax.device_get(history), jax.device_get(state)


def distance(tree, other) -> float:
    """Norm of the difference over the norm, over all arrays together."""
    squares = [
        (np.sum(np.square(np.float64(a) - b)), np.sum(np.square(np.float64(a))))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    ]
    difference, norm = np.sum(squares, axis=0)
    return math.sqrt(difference / norm)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "variant"),
    [
        ("tensor", "smooth"),
        ("data", "smooth"),
        ("fsdp", "smooth"),
        ("tensor", "smooth,lpips"),
        ("fsdp", "smooth,semantic"),
    ],
)
def test_eight_devices_train_like_one(mesh, variant):
    (one, state), (eight, sharded) = (run(sizes, variant) for sizes in (ONE, MESHES[mesh]))
    hits = [[metrics["code_hits"] for metrics in history] for history in (one, eight)]
    np.testing.assert_array_equal(*hits)
    worst = check_same(one, state, eight, sharded, 1e-5)
    assert int(sharded.step) == 10
    print(mesh, variant, worst)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "images", "variant"),
    [
        ("tensor", False, "base"),
        pytest.param("data", False, "base", marks=pytest.mark.slow),
        pytest.param("fsdp", False, "base", marks=pytest.mark.slow),
        pytest.param("tensor", False, "rar", marks=pytest.mark.slow),
        pytest.param("fsdp", False, "rar", marks=pytest.mark.slow),
        pytest.param("tensor", True, "base", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_train_a_prior_like_one(mesh, images, variant):
    (one, state), (eight, sharded) = (run_prior(sizes, images, variant) for sizes in (ONE, MESHES[mesh]))
    worst = check_same(one, state, eight, sharded, 1e-5)
    assert int(sharded.step) == 10
    assert one[-1]["loss"] != one[0]["loss"]
    print(mesh, "images" if images else "codes", worst)


def check_same(one, state, eight, sharded, rtol) -> dict[str, str]:
    """Asserts equal metrics and states up to `rtol`; the largest relative difference of each."""
    worst = {}
    for a, b in zip(one, eight, strict=True):
        for name in sorted(a.keys() - {"code_hits"}):
            np.testing.assert_allclose(b[name], a[name], rtol=rtol, atol=1e-6, err_msg=name)
            worst[name] = max(worst.get(name, 0.0), abs(float(b[name] / a[name] - 1)) if a[name] else 0.0)
    for part in ("params", "opt_state", "ema", "stats"):
        if jax.tree.leaves(getattr(state, part)):
            worst[part] = distance(getattr(state, part), getattr(sharded, part))
            assert worst[part] < rtol, part
    return {name: f"{value:.1e}" for name, value in worst.items() if value}
