"""Eight CPU devices, strict arrays, and every annotated shape checked while the tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("vqgan_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Fast tests first: a broken layer shows in seconds, not after the drills."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def getkey():
    """A function that gives a new PRNG key at every call, the same ones in every run."""
    count = iter(range(10_000))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))
