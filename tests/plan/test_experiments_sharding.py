"""Every page of the lab book on meshes of 1 to 512 devices, by shapes only."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from vqgan_jax import cli, models
from vqgan_jax.train import sharding

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
OTHERS = [path.name for path in sorted(EXPERIMENTS.glob("*.py")) if path.stem not in ("recipe", "stage1_imagenet")]
PAGES = ["stage1_imagenet.py", "stage2_imagenet.py:paper", *(pytest.param(p, marks=pytest.mark.slow) for p in OTHERS)]
MESHES = {1: (1, 1, 1), 8: (1, 8, 1), 64: (8, 4, 2), 512: (64, 8, 1)}
LARGE = 2**20  # elements, 4 MiB of float32


@functools.cache
def state(page: str):
    return models.state_shapes(cli.load_config(str(EXPERIMENTS / page)))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("devices", MESHES)
def test_every_array_of_a_page_has_a_place_and_no_large_one_is_whole_under_fsdp(page, devices):
    mesh = AbstractMesh(MESHES[devices], sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    where = sharding.shardings(state(page), mesh)
    for (path, leaf), there in zip(
        jax.tree_util.tree_leaves_with_path(state(page)), jax.tree.leaves(where), strict=True
    ):
        parts = leaf.size // int(np.prod(there.shard_shape(leaf.shape)))
        name = sharding.path_name(path)
        assert parts in (1, mesh.shape["fsdp"] * mesh.shape["tensor"]), name
        assert leaf.size < LARGE or parts == mesh.shape["fsdp"] * mesh.shape["tensor"], name


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("devices", MESHES)
def test_under_zero1_every_large_moment_and_average_of_a_page_is_cut_by_all_devices(page, devices):
    """Under pure data parallelism too, unless no dimension can be divided; the parameters lie as without."""
    for sizes in (MESHES[devices], (devices, 1, 1)):
        mesh = AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
        plain, where = (sharding.shardings(state(page), mesh, zero1=zero1) for zero1 in (False, True))
        assert where.params == plain.params
        for (path, leaf), there in zip(
            jax.tree_util.tree_leaves_with_path(state(page)), jax.tree.leaves(where), strict=True
        ):
            name, parts = sharding.path_name(path), leaf.size // int(np.prod(there.shard_shape(leaf.shape)))
            if name.startswith(("opt_state/", "ema/")) and leaf.size >= LARGE:
                assert parts == mesh.size or all(size % mesh.size for size in leaf.shape), (name, leaf.shape)


def test_a_codebook_is_as_large_as_its_page_says():
    config = cli.load_config(str(EXPERIMENTS / "stage1_imagenet.py"))
    codebook = state("stage1_imagenet.py").params["generator"]["quantizer"]["codebook"]
    assert codebook.shape == (config.quantizer.codebook_size, config.quantizer.embed_dim)


def test_the_paper_prior_is_an_eighth_on_each_of_eight():
    """1,410,640,896 parameters and two moments of each."""
    mesh = AbstractMesh((1, 8, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    tree = state("stage2_imagenet.py:paper")
    where = sharding.shardings(tree, mesh)
    sizes = jax.tree.map(lambda leaf, there: int(np.prod(there.shard_shape(leaf.shape))), tree, where)
    assert sum(jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size, tree.params))) == 1_410_640_896
    assert sum(jax.tree.leaves(sizes)) == pytest.approx(3 * 1_410_640_896 / 8, rel=0.01)
