"""The smallest runs of both stages, and meshes over the first of the test's devices."""

from pathlib import Path

import jax

from vqgan_jax.train import sharding

TRAIN = Path(__file__).parents[1] / "train"
TOKENIZER = str(TRAIN / "tiny.py")
PAGES = {"tokenizer": f"{TOKENIZER}:lpips", "prior": str(TRAIN / "tiny_prior.py")}


def mesh_of(data: int, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    return sharding.make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
