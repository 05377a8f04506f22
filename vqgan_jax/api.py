"""The verbs for Python users: load once; then pure functions, for the caller's own `jit`, `vmap` and shardings too."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import struct
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num, UInt8

from vqgan_jax import config as configs
from vqgan_jax.nn import pixels
from vqgan_jax.nn.vqgan import VQGAN
from vqgan_jax.train import stage1
from vqgan_jax.train.checkpoint import Checkpoints


@struct.dataclass
class Tokenizer:
    """A trained VQGAN: a pytree whose leaves are the parameters and whose module is static.

    Attributes:
      params: the generator's parameters.
      module: what they belong to.
      step: of the training that made them.
    """

    params: dict[str, Any]
    module: VQGAN = struct.field(pytree_node=False)
    step: int = struct.field(pytree_node=False, default=0)

    @property
    def downsample_factor(self) -> int:
        """Side of an image over the side of its grid of indices."""
        return self.module.downsample_factor

    @property
    def codebook_size(self) -> int:
        """Indices are below this."""
        return self.module.quantizer.codebook_size


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the tokenizer of a run: its newest whole checkpoint, the averaged parameters where there are any.

    Args:
      path: the `--workdir` of a stage-1 run; local, or gs://.

    Raises:
      FileNotFoundError: no such folder, or no whole checkpoint in it.
    """
    workdir = epath.Path(path).absolute() if "://" not in str(path) else epath.Path(path)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"a tokenizer's folder must hold `checkpoints`; {workdir} does not. Give the --workdir of a run."
        )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.newest(abstract_generator, partial=True)
    if restored is None:
        raise FileNotFoundError(
            f"{workdir / 'checkpoints'} holds no whole checkpoint; train longer or give another run."
        )
    config = configs.parse(restored.config)
    (params,) = (tree["generator"] for tree in restored.state.values())
    return Tokenizer(params, configs.build_vqgan(config), restored.step)


def abstract_generator(saved: dict[str, Any]) -> Any:
    """The part of a checkpoint's state that a tokenizer needs, as shapes on the first device."""
    config = configs.parse(saved)
    size, channels = config.data.image_size, config.model.image_channels
    images = jax.ShapeDtypeStruct((1, 1, size, size, channels), jnp.uint8)
    state = jax.eval_shape(functools.partial(stage1.init, stage1.build(config)), jax.random.key(0), images)
    name = "ema" if state.ema else "params"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return {name: {"generator": jax.tree.map(place, getattr(state, name)["generator"])}}


def encode(tokenizer: Tokenizer, images: Num[Array, "b H W c"] | Num[np.ndarray, "b H W c"]) -> Int[Array, "b h w"]:
    """Indices of images; int32, `downsample_factor` times smaller.

    Args:
      tokenizer: from `load_tokenizer`.
      images: uint8, or float in [-1, 1].

    Raises:
      ValueError: images of another rank, dtype or number of channels, or whose sides are no multiples of the factor.
    """
    check_images(tokenizer, images)
    return _encode(tokenizer, images)


def decode(tokenizer: Tokenizer, indices: Int[Array, "b h w"] | Int[np.ndarray, "b h w"]) -> Float[Array, "b H W c"]:
    """Images of indices; float32, about in [-1, 1], not clipped: see `to_uint8`.

    Under `jit`, where values cannot raise, an index outside [0, codebook_size) makes its image NaN.

    Raises:
      ValueError: indices of another rank or dtype, or outside the codebook.
    """
    shape, dtype = jnp.shape(indices), jnp.result_type(indices)
    if len(shape) != 3 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`indices` must be integers of shape (b, h, w); got {dtype} of shape {shape}. Add a batch axis or cast."
        )
    if is_concrete(indices) and not bool(jnp.all((indices >= 0) & (indices < tokenizer.codebook_size))):
        raise ValueError(
            f"`indices` must be in [0, {tokenizer.codebook_size}); got values in [{int(jnp.min(indices))}, "
            f"{int(jnp.max(indices))}]. They belong to another tokenizer, or are tokens of a condition."
        )
    return _decode(tokenizer, indices)


def to_uint8(images: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to the nearest of the levels 0..255; rounds, never truncates."""
    return pixels.to_uint8(images)


@jax.jit
def _encode(tokenizer: Tokenizer, images: Any) -> Any:
    images = pixels.to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
    rngs = {"gumbel": jax.random.key(0)}  # drawn from only with `noisy_eval`
    quantized: Any = tokenizer.module.apply({"params": tokenizer.params}, images, method="encode", rngs=rngs)
    return quantized.indices


@jax.jit
def _decode(tokenizer: Tokenizer, indices: Any) -> Any:
    known = (indices >= 0) & (indices < tokenizer.codebook_size)
    images: Any = tokenizer.module.apply({"params": tokenizer.params}, indices, method="decode_indices")
    return jnp.where(known.all((1, 2))[:, None, None, None], images, jnp.nan)


def is_concrete(array: Any) -> bool:
    """Whether its values can be looked at: not inside somebody's `jit`."""
    return not isinstance(array, Tracer)


def check_images(tokenizer: Tokenizer, images: Any) -> None:
    """Raises ValueError for what `encode` cannot take; what is known only at run time, the range, it cannot see."""
    shape, dtype, f = jnp.shape(images), jnp.result_type(images), tokenizer.downsample_factor
    channels = tokenizer.module.decoder.out_channels
    if len(shape) != 4 or shape[-1] != channels:
        raise ValueError(
            f"`images` must have shape (b, H, W, {channels}); got {shape}. Add a batch axis or convert to RGB."
        )
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`images` must be uint8 or float in [-1, 1]; got {dtype}. Convert with `.astype(jnp.uint8)`.")
    for axis, size in (("height", shape[1]), ("width", shape[2])):
        if size == 0 or size % f:
            raise ValueError(
                f"`images` {axis} must be a multiple of the downsample factor {f}; got {size}. "
                f"Resize or pad to {max(-(-size // f), 1) * f}."
            )
    if dtype != jnp.uint8 and is_concrete(images) and not bool(jnp.max(jnp.abs(images)) <= 1.01):
        raise ValueError(
            f"float `images` must be in [-1, 1]; got values in [{float(jnp.min(images)):.3g}, "
            f"{float(jnp.max(images)):.3g}]. Pass uint8, or scale by x / 127.5 - 1."
        )
