"""Is a sample of the class that was asked for? The class of the real image that is nearest to it by LPIPS tells."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_float


def embed(params: dict[str, Any], images: UInt8[Array, "b H W 3"]) -> Float[Array, "b _"]:
    """Vectors whose squared distances are the images' LPIPS distances: weighted features, scaled by their area."""
    model = LPIPS()
    features: Any = model.apply({"params": params}, to_float(images), method="features")
    parts = []
    for i, f in enumerate(features):
        weight = jnp.sqrt(jnp.maximum(params[f"head_{i}"], 0.0) / (f.shape[1] * f.shape[2]))
        parts.append((f * weight[None, None, None]).reshape(len(f), -1))
    return jnp.concatenate(parts, axis=1)


def nearest_labels(
    params: dict[str, Any],
    images: UInt8[np.ndarray, "n H W 3"],
    references: UInt8[np.ndarray, "r H W 3"],
    labels: Int[np.ndarray, "r"],
    *,
    batch_size: int = 16,
) -> Int[np.ndarray, "n"]:
    """The label of the reference nearest to each image.

    Args:
      params: LPIPS's.
      images: to be judged.
      references, labels: real images of each class, of the same size.
      batch_size: images through VGG16 at a time.
    """
    run = jax.jit(embed)

    def embedded(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % batch_size, axis=0)])
        batches = np.split(padded, len(padded) // batch_size)
        return np.concatenate([np.asarray(run(params, batch)) for batch in batches])[: len(images)]

    x, y = embedded(images), embedded(references)
    squares = np.sum(np.square(x), 1)[:, None] - 2.0 * x @ y.T + np.sum(np.square(y), 1)[None]
    return labels[np.argmin(squares, axis=1)]
