"""Count, mean and scatter of features: what a Fréchet distance needs, added up batch by batch, host by host.

All of it is float64 and centred. Merging has no order: shards, processes and resumed runs give the same to rounding.
"""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8


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


def save(path: str | os.PathLike[str], moments: Moments) -> None:
    """Writes `count`, `mean` and `scatter` to a .npz, to be read by `load`."""
    with open(path, "wb") as file:
        np.savez(file, **moments._asdict())


def load(path: str | os.PathLike[str], *, count: int | None = None) -> Moments:
    """Reads what `save` wrote, or the `mu` and `sigma` of the references of ADM and pytorch-fid.

    Args:
      path: a .npz.
      count: how many images the file is of: told by our files, not by others', whose covariance it does not change.

    Raises:
      ValueError: the file holds neither, is of another size than it says, or does not tell the count, as must be.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "scatter" in arrays:
            found = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        elif "mu" in arrays and "sigma" in arrays:
            if count is None:
                raise ValueError(f"`count` must be told for {path}, which holds `mu` and `sigma` only. Give it.")
            found = Moments(count, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64) * (count - 1))
        else:
            raise ValueError(
                f"{path} must hold `mean` and `scatter`, or `mu` and `sigma`; it has {sorted(arrays)[:5]}. Name a file "
                "of statistics."
            )
    if count not in (None, found.count):
        raise ValueError(f"`count` must be that of {path}, {found.count}; got {count}. Leave it out.")
    if found.mean.ndim != 1 or found.scatter.shape != 2 * found.mean.shape:
        raise ValueError(
            f"{path} must hold a mean (d) and a matrix (d d); got {found.mean.shape} and {found.scatter.shape}. Make "
            "it anew."
        )
    return found


def load_images(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "n H W 3"]:
    """The images `arr_0` of a .npz, as ADM publishes samples and references.

    Raises:
      ValueError: there is no such array, or it is of other numbers or shape.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "arr_0" not in arrays:
            raise ValueError(f"{path} must hold images as `arr_0`; it has {sorted(arrays)[:5]}. Name another file.")
        images = arrays["arr_0"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"`arr_0` of {path} must be uint8 n H W 3; got {images.dtype} {images.shape}. Save rounded images."
        )
    return images
