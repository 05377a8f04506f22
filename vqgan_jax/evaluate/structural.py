"""PSNR and SSIM: reconstructions against their originals, pixel by pixel, on rounded pictures."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from skimage.metrics import structural_similarity

from vqgan_jax.nn.pixels import check_levels

Images = UInt8[Array, "b H W c"]
WINDOW = 11  # pixels: a Gaussian of sigma 1.5, cut at 3.5 sigma


@jax.jit
def psnr(images: Images, recon: Images) -> Float[Array, "b"]:
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
