"""Reconstructions against their originals: values of every image, and one histogram of all codes."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax.evaluate.collection import Collector, Summary
from vqgan_jax.evaluate.gathering import gather
from vqgan_jax.train.metrics import code_statistics

Images = UInt8[np.ndarray, "b H W 3"]


class Reconstructed(NamedTuple):
    """What was found, over all processes.

    Attributes:
      numbers: of the images in their source, ascending.
      values: of each image, by metric.
      hits: how often each code was used.
      originals, recons: both sets.
    """

    numbers: Int[np.ndarray, "n"]
    values: dict[str, Float[np.ndarray, "n"]]
    hits: Int[np.ndarray, "k"]
    originals: Summary
    recons: Summary

    @property
    def means(self) -> dict[str, float]:
        """Of each metric over the images, whatever the batches were; usage and perplexity of the one histogram."""
        return {name: float(np.mean(values)) for name, values in self.values.items()} | code_statistics(self.hits)

    def extremes(self, count: int) -> dict[str, Int[np.ndarray, "_"]]:
        """Numbers of the images with the best, the middle and the worst LPIPS."""
        order = self.numbers[np.argsort(self.values["lpips_vgg"], kind="stable")]
        count = min(count, len(order))
        middle = (len(order) - count) // 2
        return {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}


def measure(
    batches: Iterable[tuple[Int[np.ndarray, "_"], dict[str, Any]]],
    reconstruct: Callable[[Images], tuple[Images, Int[np.ndarray, "b h w"]]],
    compare: Callable[[Images, Images], dict[str, Float[np.ndarray, "b"]]],
    *,
    codebook_size: int,
    collectors: tuple[Collector, Collector],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Reconstructed:
    """Every image once; nothing is kept of it but a few numbers.

    Args:
      batches: this process's, from `gathering.numbered`.
      reconstruct: rounded pixels and codes of images.
      compare: values of each pair by name.
      codebook_size: codes are below it.
      collectors: of the originals and of the reconstructions.
      batch_size: images that a network sees at a time.
      progress: told how many images this process has done.
    """
    numbers, values = [], []
    hits = np.zeros(codebook_size, np.int64)
    for found, batch in batches:
        images = batch["image"]
        recons, indices = reconstruct(images)
        hits += np.bincount(indices.reshape(-1), minlength=codebook_size)
        numbers.append(found.astype(np.int64))
        values.append(compare(images, recons))
        for collector, shown in zip(collectors, (images, recons), strict=True):
            collector.add(found, shown, batch_size=batch_size)
        progress(sum(map(len, numbers)))
    everyone = gather(np.concatenate(numbers))
    order = np.argsort(everyone)
    joined = {
        name: gather(np.concatenate([np.asarray(part[name], np.float64) for part in values]))[order]
        for name in sorted(values[0])
    }
    originals, recons = (collector.summary() for collector in collectors)
    return Reconstructed(everyone[order], joined, gather(hits[None]).sum(0), originals, recons)
