"""Models as compiled functions in files (`jax.export`): encode, decode and sample for programs without this package."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from vqgan_jax import api
from vqgan_jax import prior as priors
from vqgan_jax.models import Prior, Tokenizer

WEIGHTS = "weights.npz"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
EXAMPLE = '''"""Runs the functions beside this file; it needs jax and numpy only."""

import sys
from pathlib import Path

import jax
import numpy as np

here = Path(__file__).parent
function = lambda name: jax.export.deserialize((here / f"{name}.stablehlo").read_bytes()).call
with np.load(here / "weights.npz") as file:
    weights = dict(file)

images = np.load(sys.argv[1])  # uint8, of shape b, height, width, channels; any b
indices = function("encode")(weights, images)
recon = function("decode")(weights, indices)  # float32, about in [-1, 1]
np.save(here / "recon.npy", np.asarray(recon))
if (here / "sample.stablehlo").exists():
    tokens = np.zeros((2, {length}), np.int32)  # of the condition, one row an image: of a class, its number
    np.save(here / "samples.npy", np.asarray(function("sample")(weights, np.uint32(0), tokens, np.float32(1))))
'''


def write(model: Tokenizer | Prior, folder: Path, *, size: tuple[int, int], platforms: tuple[str, ...]) -> None:
    """Writes a folder of functions for any batch size, their weights, and `example.py`, which runs them.

    - `encode(weights, images)`: uint8 b H W c -> int32 b h w
    - `decode(weights, indices)`: int32 b h w -> float32 b H W c, about in [-1, 1]
    - `sample(weights, seed, tokens, temperature)`, of a prior: uint32, int32 b s (the condition's tokens), float32 ->
      float32 b H W c of the training size; filters and guidance are those of the run's config.

    Args:
      model: whose weights lie beside the functions, not within them.
      folder: not there yet.
      size: height and width of the images, multiples of the downsample factor.
      platforms: that the functions can run on, some of `PLATFORMS`.

    Raises:
      ValueError: a size that is no multiple of the factor, or an unknown platform.
    """
    functions = serialised(model, size=size, platforms=platforms)
    folder.mkdir(parents=True)
    for name, data in functions.items():
        (folder / f"{name}.stablehlo").write_bytes(data)
    arrays: Any = {path: np.asarray(array) for path, array in weights_of(model).items()}
    np.savez(folder / WEIGHTS, **arrays)
    length = model.module.condition.length if isinstance(model, Prior) else 0
    (folder / "example.py").write_text(EXAMPLE.replace("{length}", str(length)))


def weights_of(model: Tokenizer | Prior) -> dict[str, Any]:
    """Parameters by path, below "tokenizer" and, of a prior, "transformer"."""
    trees = {"tokenizer": model.params}
    if isinstance(model, Prior):
        trees = {"tokenizer": model.tokenizer.params, "transformer": model.params}
    return flatten_dict(trees, sep="/")


def serialised(model: Tokenizer | Prior, *, size: tuple[int, int], platforms: tuple[str, ...]) -> dict[str, bytes]:
    """The functions by name; arguments and errors as of `write`."""
    tokenizer = model.tokenizer if isinstance(model, Prior) else model
    f, channels = tokenizer.downsample_factor, tokenizer.module.image_channels
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}; got {', '.join(unknown)}.")
    if any(side < 1 or side % f for side in size):
        raise ValueError(f"the sides of images must be multiples of the downsample factor {f}; got {size}. Round them.")
    weights = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights_of(model).items()}
    (b,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, *size, channels), jnp.uint8)
    indices = jax.ShapeDtypeStruct((b, *(side // f for side in size)), jnp.int32)
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "encode": (lambda weights, images: api.encode(_with(tokenizer, weights), images), (images,)),
        "decode": (lambda weights, indices: api.decode(_with(tokenizer, weights), indices), (indices,)),
    }
    if isinstance(model, Prior):
        seed, temperature = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
        tokens = jax.ShapeDtypeStruct((b, model.module.condition.length), jnp.int32)
        functions["sample"] = functools.partial(_sample, model), (seed, tokens, temperature)
    return {
        name: bytes(export.export(jax.jit(function), platforms=platforms)(weights, *inputs).serialize())
        for name, (function, inputs) in functions.items()
    }


def _sample(prior: Prior, weights: Any, seed: Any, tokens: Any, temperature: Any) -> Any:
    settings = dataclasses.replace(prior.config.sampling.settings, temperature=temperature)
    nothing = jnp.zeros((tokens.shape[0], *prior.module.grid), jnp.int32)
    keys = api.keys_of(jax.random.key(seed), nothing)
    params = unflatten_dict(weights, sep="/")["transformer"]
    indices = priors.sample(prior.module, params, tokens, keys, settings, nothing, nothing > 0)
    return api.decode(_with(prior.tokenizer, weights), indices)


def _with(tokenizer: Tokenizer, weights: Any) -> Tokenizer:
    return dataclasses.replace(tokenizer, params=unflatten_dict(weights, sep="/")["tokenizer"])
