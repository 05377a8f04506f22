"""Between the pixels of files and the floats of networks; exact on all 256 levels, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8


def check_levels(*images: Num[Array | np.ndarray, "..."]) -> None:
    """Raises ValueError unless images are uint8: floats do not tell whether they are in [0, 1], [-1, 1] or 0 to 255."""
    for each in images:
        if each.dtype != jnp.uint8:
            raise ValueError(f"`images` must be levels 0 to 255, uint8; got {each.dtype}. Use `to_uint8` on [-1, 1].")


def to_float(images: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """Levels 0..255 to float32 in [-1, 1]; see `check_levels`."""
    check_levels(images)
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to the nearest level 0..255; what lies outside is clipped. Rounds, never truncates."""
    return jnp.rint((jnp.clip(images.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def to_input(maps: Num[Array, "b H W ..."], channels: int) -> Float[Array, "b H W c"]:
    """What a tokenizer reads: pictures (uint8) in [-1, 1], label maps (b H W) one-hot in `channels`, floats as are.

    Raises:
      ValueError: pictures or floats of another number of channels.
    """
    if maps.ndim == 4 and maps.shape[-1] != channels:
        raise ValueError(
            f"images must have the tokenizer's {channels} channels, config.model.image_channels; these have "
            f"{maps.shape[-1]}. Change the key, or the files."
        )
    if maps.dtype == jnp.uint8 and maps.ndim == 4:
        return to_float(maps)
    return jax.nn.one_hot(maps, channels) if maps.ndim == 3 else maps.astype(jnp.float32)


def to_output(recon: Float[Array, "b H W c"], maps: Num[Array, "b H W ..."]) -> Num[Array, "b H W ..."]:
    """A reconstruction as what `maps` are: pixels, the likeliest label of each, or floats within [-1, 1]."""
    if maps.ndim == 3:
        return jnp.argmax(recon, axis=-1).astype(maps.dtype)
    return to_uint8(recon) if maps.dtype == jnp.uint8 else jnp.clip(recon, -1.0, 1.0)
