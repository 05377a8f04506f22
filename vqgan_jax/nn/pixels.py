"""Between the pixels of files and the floats of networks; exact on all 256 levels, there and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_float(images: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """Levels 0..255 to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to the nearest level 0..255; what lies outside is clipped. Rounds, never truncates."""
    return jnp.rint((jnp.clip(images.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
