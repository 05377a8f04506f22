"""ResNet50's weights come out of torchvision's file, and out of no other; a miss says which file and whose."""

from pathlib import Path

import numpy as np
import pytest
from torch_files import write_holes

from vqgan_jax import cli
from vqgan_jax.convert.resnet import FILES, load_resnet50
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.train import program

TINY = str(Path(__file__).parents[1] / "train" / "tiny.py")


@pytest.fixture(scope="module")
def shapes():
    """Of all tensors by name, as torchvision's module has them."""
    with np.load(Path(__file__).parents[1] / "golden" / "resnet.npz") as arrays:
        rows = [row.split() for row in arrays["tensors"].tolist()]
    assert len(rows) == 267
    return {name: tuple(map(int, sizes)) for name, *sizes in rows}


def test_the_file_of_torch_save_is_found_by_its_name(tmp_path, monkeypatch, shapes):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    write_holes(tmp_path / FILES[0], shapes)
    params = load_resnet50()
    assert params["resnet"]["fc"]["kernel"].shape == (2048, 1000)
    assert sum(leaf.size for block in params["resnet"].values() for leaf in leaves(block)) == 25_610_152


def leaves(tree):
    """The arrays of nested dicts."""
    for value in tree.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_other_networks_are_refused(tmp_path, shapes):
    path = tmp_path / "other.pth"
    write_holes(path, shapes | {"fc.weight": (10, 2048), "layer4.3.conv1.weight": (512, 2048, 1, 1)})
    with pytest.raises(ConvertError, match=r"unexpected \(1\): layer4.3.conv1.weight; misshaped \(1\): fc.weight"):
        load_resnet50(path)
    write_holes(path, {name: shape for name, shape in shapes.items() if name != "layer1.0.downsample.1.running_var"})
    with pytest.raises(ConvertError, match=r"missing \(1\): layer1.0.downsample.1.running_var"):
        load_resnet50(path)


def test_a_run_without_the_file_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    config = cli.load_config(f"{TINY}:lpips", ["--config.loss.perceptual=both"])
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has none of {FILES[0]}.*torchvision's.*IMAGENET1K_V1"):
        program.open_program(config, program.make_mesh(config))
