"""The Fréchet distance of two Gaussians: of Inception features it is the FID, of others it has another name."""

import numpy as np
from jaxtyping import Float

from vqgan_jax.evaluate.moments import Moments, covariance


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Squared 2-Wasserstein distance between the Gaussians that have these means and covariances.

    .. math:: |m_1 - m_2|^2 + \mathrm{tr}\, S_1 + \mathrm{tr}\, S_2 - 2\, \mathrm{tr} (S_1^{1/2} S_2 S_1^{1/2})^{1/2}

    The root is that of a symmetric matrix, real whatever its rank: nothing is added to the diagonals. Rounding may
    leave some 1e-5 below 0 where both are of one set; then it is 0. The distance is biased upwards by about 1/count.

    Raises:
      ValueError: sizes differ, or there are fewer than two vectors.

    References:
      Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, equation 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features must have one length; got {len(a.mean)} and {len(b.mean)}. Make both with one network."
        )
    first, second = covariance(a), covariance(b)
    root = square_root(first)
    product = np.linalg.eigvalsh(root @ second @ root)
    traces = np.trace(first) + np.trace(second) - 2.0 * np.sum(np.sqrt(np.maximum(product, 0.0)))
    return max(float(np.sum(np.square(a.mean - b.mean)) + traces), 0.0)


def square_root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Of a symmetric matrix without negative eigenvalues, but for those by rounding, which count as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[None]) @ vectors.T
