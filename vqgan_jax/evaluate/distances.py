"""Arrays in, numbers out: the distances of two sets of features, and the Inception Score of one set of logits.

`Moments` are added up batch by batch and host by host, float64 and centred. Products of single features are float64 and
made in blocks; distances between features are squared everywhere. No point is its own neighbour.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

Features = Float[np.ndarray, "_ d"]

_BLOCK = 512  # rows of distances at a time: 200 MB against 50,000 points


class Moments(NamedTuple):
    """What is known of a set of vectors.

    Attributes:
      count: how many.
      mean: of them.
      scatter: sum of the outer products of their distances from the mean.
    """

    count: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]


def empty(size: int) -> Moments:
    """Of no vector; `size` is the vectors' length."""
    return Moments(0, np.zeros(size), np.zeros((size, size)))


def add(moments: Moments, features: Float[np.ndarray, "b d"]) -> Moments:
    """With a batch more, which may be empty.

    Raises:
      ValueError: a feature is not finite.
    """
    if not len(features):
        return moments
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"features must be finite; those of images {rows[:5].tolist()} of {len(features)} are not. See whether "
            "the images or the weights are."
        )
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    centred = features - mean[None]
    return merge(moments, Moments(len(features), mean, centred.T @ centred))


def merge(a: Moments, b: Moments) -> Moments:
    """Of two sets together (Chan, Golub and LeVeque 1979)."""
    count = a.count + b.count
    if count == 0:
        return a
    way = b.mean - a.mean
    scatter = a.scatter + b.scatter + a.count * b.count / count * np.outer(way, way)
    return Moments(count, a.mean + b.count / count * way, scatter)


def covariance(moments: Moments) -> Float[np.ndarray, "d d"]:
    """With denominator count - 1.

    Raises:
      ValueError: fewer than two vectors.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance must be of two vectors or more; got {moments.count}. Add images.")
    return moments.scatter / (moments.count - 1)


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


def kid(x: Features, y: Features, *, subsets: int = 100, size: int = 1000, seed: int) -> tuple[float, float]:
    r"""Kernel Inception distance: the unbiased squared MMD with the kernel (x.y / d + 1)^3, over random subsets.

    Without bias it can be below 0, and counts of images can be compared.

    Args:
      x, y: Inception features of two sets.
      subsets: how many.
      size: of each, drawn without repeats from either set.
      seed: of the draws.

    Returns:
      Mean and standard deviation over the subsets.

    Raises:
      ValueError: a set is smaller than a subset, or a subset than two.

    References:
      Binkowski et al. 2018, Demystifying MMD GANs, section 4.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(
            f"`size` must be at least 2 and at most that of the smaller set; got {size} for {len(x)} and {len(y)}. "
            "Lower `size` or add images."
        )
    draws = np.random.default_rng(seed)
    pick = lambda features: features[draws.choice(len(features), size, replace=False)].astype(np.float64)
    values = [_squared_mmd(pick(x), pick(y)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def _squared_mmd(x: Features, y: Features) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** 3
    within = [(np.sum(k) - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(sum(within) - 2.0 * np.mean(kernel(x, y)))


def precision_recall(reference: Features, samples: Features, k: int = 3) -> tuple[float, float]:
    """Share of samples that look real, and share of real images that samples come near to.

    A sample looks real if it lies in the ball of some reference, whose radius is the distance to its k-th neighbour
    among the references, itself not counted; recall is the same with the two sets exchanged. Both depend on counts.

    Raises:
      ValueError: a set has at most k points.

    References:
      Kynkäänniemi et al. 2019, Improved Precision and Recall Metric, equations 1 and 2.
    """
    _, of_samples = balls(reference, samples, k)
    _, of_references = balls(samples, reference, k)
    return float(np.mean(of_samples > 0)), float(np.mean(of_references > 0))


def density_coverage(reference: Features, samples: Features, k: int = 5) -> tuple[float, float]:
    """How many references' balls a sample lies in, over k; and the share of references with a sample in their ball.

    Density can be above 1. Neither is drawn up by one outlier among the samples.

    Raises:
      ValueError: there are at most k references.

    References:
      Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models, equations 4 and 5.
    """
    of_references, of_samples = balls(reference, samples, k)
    return float(np.mean(of_samples) / k), float(np.mean(of_references > 0))


def balls(centres: Features, points: Features, k: int) -> tuple[Int[np.ndarray, "c"], Int[np.ndarray, "p"]]:
    """How many points lie in the ball around each centre, and how many balls each point lies in.

    A ball reaches to the centre's k-th neighbour among the centres, which is in it.

    Raises:
      ValueError: there are at most k centres.
    """
    if not 0 < k < len(centres):
        raise ValueError(f"`k` must be at least 1 and less than the points of a set; got {k} for {len(centres)}.")
    radii = np.empty(len(centres))
    for rows, squares in blocks(centres, centres):
        squares[np.arange(len(squares)), np.arange(len(centres))[rows]] = np.inf
        radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    of_centres, of_points = np.zeros(len(centres), np.int64), np.zeros(len(points), np.int64)
    for rows, squares in blocks(points, centres):
        inside = squares <= radii[None]
        of_points[rows] = np.sum(inside, axis=1)
        of_centres += np.sum(inside, axis=0)
    return of_centres, of_points


def blocks(x: Features, y: Features) -> Iterator[tuple[slice, Float[np.ndarray, "b m"]]]:
    """Squared distances of some rows of `x` at a time from all of `y`, float64, and which rows; never below 0."""
    y = y.astype(np.float64)
    lengths = np.einsum("nd,nd->n", y, y)  # without an array of squares
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = x[rows].astype(np.float64)
        squares = np.einsum("nd,nd->n", block, block)[:, None] + lengths[None] - 2.0 * (block @ y.T)
        yield rows, np.maximum(squares, 0.0)


def nearest(
    queries: Features, references: Features, count: int = 1
) -> tuple[Int[np.ndarray, "n count"], Float[np.ndarray, "n count"]]:
    """The references nearest to each query, nearest first: their numbers and squared distances.

    Raises:
      ValueError: there are fewer references than `count`.
    """
    if not 0 < count <= len(references):
        raise ValueError(f"`count` must be 1 to the number of references, {len(references)}; got {count}.")
    parts = []
    for _, squares in blocks(queries, references):
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        parts.append((order, np.take_along_axis(squares, order, axis=1)))
    return np.concatenate([order for order, _ in parts]), np.concatenate([squares for _, squares in parts])


def inception_score(logits: Float[np.ndarray, "n c"], *, split: int = 5000, seed: int) -> tuple[float, float]:
    r"""Mean and standard deviation over splits of :math:`\exp(E_x\, KL(p(y|x)\, \|\, p(y)))`: 1 to how many classes.

    Samples are shuffled first: written class by class, a split of few classes could not score higher than these.
    Logarithms are those of the logits, never of a probability that has become 0.

    Args:
      logits: of Inception, for FID's weights those without the classifier's bias.
      split: images in each; the set is cut into equal parts, as many as come nearest to that, at least one.
      seed: of the shuffle.

    Raises:
      ValueError: no image, or logits that are not finite.

    References:
      Salimans et al. 2016, Improved Techniques for Training GANs, section 4.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and of one image at least; got {len(logits)} images. See the weights.")
    shuffled = np.random.default_rng(seed).permutation(logits.astype(np.float64))
    scores = []
    for part in np.array_split(shuffled, max(1, round(len(logits) / split))):
        logs = part - logsumexp(part, axis=1, keepdims=True)
        marginal = logsumexp(logs, axis=0, keepdims=True) - np.log(len(logs))
        scores.append(np.exp(np.mean(np.sum(np.exp(logs) * (logs - marginal), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
