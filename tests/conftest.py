"""Eight CPU devices, strict arrays, and every annotated shape checked while the tests run.

`VQGAN_JAX_UNCHECKED=1 pytest` checks no shapes.
"""

import os
import shutil
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs are compiled far longer than they run: without optimisation in two thirds of the time.
# `XLA_FLAGS= pytest` compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# One cache of all compiled programs, however small, for all workers and what they start: tests compile the same ones
# again and again. To read one back takes a fifth to a half of the time that compiling it does, to keep it none.
OURS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OURS:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vqgan_jax_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from jaxtyping import install_import_hook

# The checks take a quarter of a minute of each process's start and a tenth of what follows: CI checks shapes once.
if os.environ.get("VQGAN_JAX_UNCHECKED") != "1":
    install_import_hook("vqgan_jax", "beartype.beartype")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

LONGEST = ("tests/train/", "tests/plan/", "tests/cli/", "tests/evaluate/")


def pytest_collection_modifyitems(items):
    """Fast tests before slow ones, and of both the longest files first, so that two workers end together."""
    place = lambda item: next((i for i, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, place(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips what begins after `VQGAN_JAX_TESTS_UNTIL`, in seconds since the epoch, so that CI ends within its limit."""
    until = os.environ.get("VQGAN_JAX_TESTS_UNTIL")
    if until and time.time() > float(until):
        pytest.skip("no time was left for it")


def pytest_unconfigure():
    """Workers found the cache in their environment; who made it takes it away."""
    if OURS:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def getkey():
    """A function that gives a new PRNG key at every call, the same ones in every run."""
    count = iter(range(10_000))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))
