"""PSNR and SSIM: reconstructions against their originals, pixel by pixel, on rounded pictures."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vqgan_jax.nn.pixels import check_levels

Images = UInt8[Array, "b H W c"]

# The Gaussian window: sigma 1.5, cut at 3.5 sigma.
RADIUS, SIGMA = 5, 1.5
WINDOW = np.exp(-0.5 * np.square(np.arange(-RADIUS, RADIUS + 1) / SIGMA))
WINDOW /= WINDOW.sum()
# Of Wang et al. 2004: (0.01 L)^2 and (0.03 L)^2, for levels of a range L = 255.
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@jax.jit
def psnr(images: Images, recon: Images) -> Float[Array, "b"]:
    """10 log10(1 / MSE) of levels in [0, 1], in dB, of each picture; at most 100 dB, which equal pictures have.

    A set's figure is the mean over pictures, never that of the mean MSE.
    """
    check_levels(images, recon)
    squares = jnp.square(images.astype(jnp.int32) - recon.astype(jnp.int32)).astype(jnp.float32)
    mse = squares.mean(-1).mean(-1).mean(-1) / 255.0**2
    return -10.0 * jnp.log10(jnp.maximum(mse, 1e-10))


@jax.jit
def ssim(images: Images, recon: Images) -> Float[Array, "b"]:
    """Structural similarity of each picture: 11x11 Gaussian, sigma 1.5, data range 1 on [0, 1], per channel, mean.

    Windows lie within the picture. Variances are those of the window, with its weights, not corrected for a sample.
    They are put together from those of its rows and the rows' means, never as differences of large numbers, so that
    float32 is enough where a picture is flat.

    Raises:
      ValueError: a side is less than 11 pixels.

    References:
      Wang et al. 2004, Image Quality Assessment, equation 13; scikit-image's `structural_similarity` with
      `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0` gives the same.
    """
    check_levels(images, recon)
    if min(images.shape[1:3]) < len(WINDOW):
        raise ValueError(
            f"`images` must have sides of at least {len(WINDOW)} pixels for SSIM; got {images.shape[1:3]}. Leave SSIM "
            "out."
        )
    zeros = jnp.zeros(images.shape, jnp.float32)
    x, y, xx, yy, xy = images.astype(jnp.float32), recon.astype(jnp.float32), zeros, zeros, zeros
    for axis in (2, 1):
        x, y, xx, yy, xy = _pool(x, y, xx, yy, xy, axis)
    scores = (2 * x * y + C1) * (2 * xy + C2) / ((x * x + y * y + C1) * (xx + yy + C2))
    return scores.mean(1).mean(1).mean(1)


def _pool(x: Array, y: Array, xx: Array, yy: Array, xy: Array, axis: int) -> tuple[Array, ...]:
    """Means, variances and covariance in windows along an axis, from those of their parts (law of total variance)."""

    def mean(v: Array) -> Array:
        return sum((w * p for w, p in zip(WINDOW.tolist(), _shifted(v, axis), strict=True)), start=jnp.zeros(()))

    def spread(u: Array, mu: Array, v: Array, nu: Array) -> Array:
        pairs = zip(WINDOW.tolist(), _shifted(u, axis), _shifted(v, axis), strict=True)
        return sum((w * (p - mu) * (q - nu) for w, p, q in pairs), start=jnp.zeros(()))

    mu, nu = mean(x), mean(y)
    return mu, nu, mean(xx) + spread(x, mu, x, mu), mean(yy) + spread(y, nu, y, nu), mean(xy) + spread(x, mu, y, nu)


def _shifted(v: Array, axis: int) -> list[Array]:
    """The parts of every window along an axis, first to last."""
    length = v.shape[axis] - 2 * RADIUS
    return [jax.lax.slice_in_dim(v, i, i + length, axis=axis) for i in range(len(WINDOW))]
