"""How alike two pictures are: PSNR, SSIM and LPIPS of pairs, and by LPIPS the nearest of many pictures."""

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from skimage.metrics import structural_similarity

from vqgan_jax.evaluate.distances import nearest
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import check_levels, to_float

WINDOW = 11  # pixels of SSIM: a Gaussian of sigma 1.5, cut at 3.5 sigma


@jax.jit
def psnr(images: UInt8[Array, "b H W c"], recon: UInt8[Array, "b H W c"]) -> Float[Array, "b"]:
    """10 log10(1 / MSE) of levels in [0, 1], in dB, of each picture; at most 100 dB, which equal pictures have.

    A set's figure is the mean over pictures, never that of the mean MSE.
    """
    check_levels(images, recon)
    squares = jnp.square(images.astype(jnp.int32) - recon.astype(jnp.int32)).astype(jnp.float32)
    mse = squares.mean(-1).mean(-1).mean(-1) / 255.0**2
    return -10.0 * jnp.log10(jnp.maximum(mse, 1e-10))


def ssim(images: UInt8[np.ndarray, "b H W c"], recon: UInt8[np.ndarray, "b H W c"]) -> Float[np.ndarray, "b"]:
    """Structural similarity of each picture: 11x11 Gaussian, sigma 1.5, data range 1 on [0, 1], per channel, mean.

    Windows lie within the picture. Variances are those of the window, with its weights, not corrected for a sample.
    Computed on the host in float64, pictures in parallel.

    Raises:
      ValueError: a side is less than 11 pixels.

    References:
      Wang et al. 2004, Image Quality Assessment, equation 13.
    """
    check_levels(images, recon)
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"`images` must have sides of at least {WINDOW} pixels for SSIM; got {images.shape[1:3]}. Leave SSIM out."
        )
    one = functools.partial(
        structural_similarity,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(one, images, recon)))


@jax.jit
def lpips_vgg(
    params: dict[str, Any], images: UInt8[Array, "b H W 3"], others: UInt8[Array, "b H W 3"]
) -> Float[Array, "b"]:
    """LPIPS v0.1 on VGG16 of each pair, without dropout; a set's figure is the mean.

    Args:
      params: LPIPS's.
      images, others: levels 0 to 255; figures of different resolutions cannot be compared.
    """
    distances: Any = LPIPS().apply({"params": params}, to_float(images), to_float(others))
    return distances


def embed(params: dict[str, Any], images: UInt8[Array, "b H W 3"]) -> Float[Array, "b _"]:
    """Vectors whose squared distances are the images' LPIPS distances: weighted features, scaled by their area."""
    model = LPIPS()
    features: Any = model.apply({"params": params}, to_float(images), method="features")
    parts = []
    for i, f in enumerate(features):
        weight = jnp.sqrt(jnp.maximum(params[f"head_{i}"], 0.0) / (f.shape[1] * f.shape[2]))
        parts.append((f * weight[None, None, None]).reshape(len(f), -1))
    return jnp.concatenate(parts, axis=1)


def nearest_images(
    params: dict[str, Any],
    images: UInt8[np.ndarray, "n H W 3"],
    references: Iterable[UInt8[np.ndarray, "_ H W 3"]],
    *,
    count: int = 1,
    batch_size: int = 16,
) -> tuple[Int[np.ndarray, "n _count"], Float[np.ndarray, "n _count"]]:
    """The references nearest to each image by LPIPS, nearest first: their numbers in the stream, and their distances.

    Args:
      params: LPIPS's.
      images: to look up, few: 0.5 MB of memory each at 32 pixels a side, 32 MB at 256, and twice that in float64.
      references: batches of any number of others, such as all training images; only one is held at a time.
      count: how many neighbours; fewer where there are fewer references.
      batch_size: images through VGG16 at a time.
    """
    run = jax.jit(embed)

    def embedded(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % batch_size, axis=0)])
        batches = np.split(padded, len(padded) // batch_size)
        return np.concatenate([np.asarray(run(params, batch)) for batch in batches])[: len(images)]

    x, start = embedded(images), 0
    numbers, distances = np.zeros((len(x), 0), np.int64), np.zeros((len(x), 0))
    for batch in references:
        order, squares = nearest(x, embedded(batch), min(count, len(batch)))
        numbers = np.concatenate([numbers, order + start], axis=1)
        distances = np.concatenate([distances, squares], axis=1)
        best = np.argsort(distances, axis=1, kind="stable")[:, :count]
        numbers, distances = (np.take_along_axis(v, best, axis=1) for v in (numbers, distances))
        start += len(batch)
    return numbers, distances


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
      images: to look up.
      references, labels: real images of each class, of the same size.
      batch_size: images through VGG16 at a time.
    """
    batches = np.split(references, range(batch_size, len(references), batch_size))
    numbers, _ = nearest_images(params, images, batches, batch_size=batch_size)
    return labels[numbers[:, 0]]
