"""DINOv2's weights come out of its authors' file, and out of no other; a miss says which file and whose."""

from pathlib import Path

import jax
import numpy as np
import pytest
from torch_files import write_holes

from vqgan_jax import cli
from vqgan_jax.convert.dinov2 import FILES, load_dinov2
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.train import program

TINY = str(Path(__file__).parents[1] / "train" / "tiny.py")


@pytest.fixture(scope="module")
def shapes():
    """Of all tensors by name, as the published file has them: timm's module has no token for masks."""
    with np.load(Path(__file__).parents[1] / "golden" / "dinov2.npz") as arrays:
        rows = [row.split() for row in arrays["tensors"].tolist()]
    assert len(rows) == 174
    return {name: tuple(map(int, sizes)) for name, *sizes in rows} | {"mask_token": (1, 384)}


def test_the_file_of_torch_save_is_found_by_its_name(tmp_path, monkeypatch, shapes):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    write_holes(tmp_path / FILES[0], shapes)
    params = load_dinov2()
    assert params["blocks"]["attn.qkv"]["kernel"].shape == (12, 384, 3, 6, 64)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_056_192


def test_other_networks_are_refused(tmp_path, shapes):
    path = tmp_path / "other.pth"
    write_holes(path, shapes | {"register_tokens": (1, 4, 384), "pos_embed": (1, 257, 384)})
    with pytest.raises(ConvertError, match=r"unexpected \(1\): register_tokens; misshaped \(1\): pos_embed"):
        load_dinov2(path)
    write_holes(path, {name: shape for name, shape in shapes.items() if name != "blocks.11.ls2.gamma"})
    with pytest.raises(ConvertError, match=r"missing \(1\): blocks.11.ls2.gamma"):
        load_dinov2(path)


def test_a_run_without_the_file_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    config = cli.load_config(f"{TINY}:semantic", ["--config.loss.semantic=dinov2_vits14"])
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has none of {FILES[0]}.*DINOv2's authors.*ViT-S/14"):
        program.open_program(config, program.make_mesh(config))
