"""What distances between single features tell of two sets: KID, precision, recall, density, coverage, neighbours.

Products are float64 and made in blocks; distances are squared everywhere. No point is its own neighbour.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

Features = Float[np.ndarray, "_ d"]

_BLOCK = 512  # rows of distances at a time: 200 MB against 50,000 points


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
    found = []
    for _, squares in blocks(queries, references):
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        found.append((order, np.take_along_axis(squares, order, axis=1)))
    return np.concatenate([order for order, _ in found]), np.concatenate([squares for _, squares in found])
