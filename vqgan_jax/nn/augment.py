"""Differentiable augmentation of what the discriminator sees, real and reconstructed images alike (Zhao et al. 2020).

It keeps a discriminator from memorising a small set of images. Each function takes images in [-1, 1], draws its random
numbers for each image apart, and passes its gradient to the images.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def color(images: Float[Array, "b H W c"], key: jax.Array) -> Float[Array, "b H W c"]:
    """Moves the brightness by up to a quarter of the range; scales saturation by 0 to 2, contrast by 0.5 to 1.5."""
    light, saturation, contrast = jax.random.uniform(key, (3, len(images), 1, 1, 1))
    x = images + light - 0.5
    x = scaled(x, x.mean(3, keepdims=True), 2 * saturation)
    return scaled(x, x.mean((1, 2, 3), keepdims=True), contrast + 0.5)


def scaled(x: Float[Array, "b H W c"], about: Float[Array, "b _ _ _"], by: Float[Array, "b 1 1 1"]) -> Array:
    """Scales the differences from a mean."""
    return (x - about) * by + about


def translation(images: Float[Array, "b H W c"], key: jax.Array) -> Float[Array, "b H W c"]:
    """Moves each image by up to an eighth of its sides, and fills the rest with zeros."""
    b, height, width, _ = images.shape
    keys, reach = jax.random.split(key), ((height + 4) // 8, (width + 4) // 8)
    rows, columns = (jax.random.randint(k, (b,), 0, 2 * n + 1) for k, n in zip(keys, reach, strict=True))
    padded = jnp.pad(images, ((0, 0), (reach[0],) * 2, (reach[1],) * 2, (0, 0)))
    crop = lambda image, row, column: jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])
    return jax.vmap(crop)(padded, rows, columns)


def cutout(images: Float[Array, "b H W c"], key: jax.Array) -> Float[Array, "b H W c"]:
    """Sets a rectangle of half of each side to zero; its middle is anywhere in the image."""
    b, height, width, _ = images.shape
    keys = jax.random.split(key)

    def hidden(key: jax.Array, side: int) -> Bool[Array, "b s"]:
        size = (side + 1) // 2
        first = jax.random.randint(key, (b, 1), 0, side + 1 - size % 2) - size // 2
        position = jnp.arange(side)[None]
        return (position >= first) & (position < first + size)

    rectangle = hidden(keys[0], height)[:, :, None] & hidden(keys[1], width)[:, None]
    return jnp.where(rectangle[..., None], 0.0, images)


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(images: Float[Array, "b H W c"], names: Sequence[str], key: jax.Array) -> Float[Array, "b H W c"]:
    """Applies augmentations of AUGMENTATIONS, one after the other."""
    for number, name in enumerate(names):
        images = AUGMENTATIONS[name](images, jax.random.fold_in(key, number))
    return images
