"""Batches for this process: endless and augmented for training, finite and padded for evaluation.

Every batch is a function of its number, the seed and the source alone, so a run resumes exactly. The number of
processes only decides who loads what: of each global batch, process p loads the p-th of equal parts, row by row.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import grain
import numpy as np
from absl import logging

from vqgan_jax.data import preprocessing, views
from vqgan_jax.data.images import ImageError
from vqgan_jax.data.preprocessing import Augmentation
from vqgan_jax.data.sources import Source
from vqgan_jax.data.views import View

MAX_BAD_FRACTION = 0.01

Batch: TypeAlias = dict[str, np.ndarray]
# Orbax saves and restores it. `get_state()` is `{"next_index": number of the next batch}`, the same in every process
# and for any number of processes; `set_state` continues there.
Batches: TypeAlias = grain.DatasetIterator[Batch]


def training_batches(
    source: Source,
    *,
    image_size: int,
    resize: tuple[int, int],
    crop: str,
    flip: bool,
    small: str,
    batch_size: int,
    seed: int,
    fields: Mapping[str, View] = views.PLAIN,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Endless batches, reshuffled each epoch, each example augmented anew by the number of its draw.

    An image that cannot be decoded is replaced by the next one that can, so that no batch depends on when or where it
    was met.

    Args:
      source: the images.
      image_size, resize, crop, flip, small: see `preprocessing.Augmentation`.
      batch_size: examples a step over all processes.
      seed: of order and augmentation; 0 to 2**32 - 1.
      fields: what a batch holds, by name; see `views`.
      process_index, process_count: this process and how many there are.
      num_threads: batches made at the same time.
      prefetch: batches kept ready; at least `num_threads`.

    Returns:
      An iterator of the `fields`, unless others are given "image" (uint8 b s s 3) and "label" (int32 b), b =
      `batch_size` / `process_count`.

    Raises:
      ValueError: if an argument is out of range; while iterating, if more than 1% of the images cannot be decoded, an
        image is smaller than `small` "refuse" allows, or an example lacks what a field needs.
    """
    local_size = local_size_of(batch_size, process_index, process_count)
    augmentation = Augmentation(image_size=image_size, resize=resize, crop=crop, flip=flip, small=small)
    images = _Decodable(source)
    data = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    # Randomness comes before the share of a process: keyed by the example's global number it is anyone's to load.
    data = data.random_map(functools.partial(_training_example, images, augmentation, fields))
    return share(data, local_size, process_index, process_count, num_threads, prefetch)


def evaluation_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    fields: Mapping[str, View] = views.PLAIN,
    process_index: int = 0,
    process_count: int = 1,
    num_examples: int | None = None,
    num_threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Each example exactly once, in order, the centre at short side `image_size`; equally many batches everywhere.

    Args:
      source: the images.
      image_size: height and width of the result; smaller images are upscaled.
      batch_size: examples a step over all processes.
      fields: see `training_batches`.
      process_index, process_count: this process and how many there are.
      num_examples: only the first so many; all if None.
      num_threads: batches made at the same time.
      prefetch: batches kept ready; at least `num_threads`.

    Returns:
      An iterator of the `fields` and "mask" (bool b), b = `batch_size` / `process_count`. The mask is False, and all
      else zero, for padding and for images that cannot be decoded.

    Raises:
      ValueError: if an argument is out of range; while iterating, if more than 1% of the images cannot be decoded.
    """
    local_size = local_size_of(batch_size, process_index, process_count)
    count = how_many(num_examples, len(source), source.name)
    images, augmentation = _Decodable(source), preprocessing.evaluation(image_size)
    data = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    data = data.map(functools.partial(_evaluation_example, images, augmentation, fields, count))
    return share(data, local_size, process_index, process_count, num_threads, prefetch)


def local_size_of(batch_size: int, process_index: int, process_count: int) -> int:
    """This process's part of a global batch; ValueError unless all parts are equal."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"`process_index` must be in 0 .. process_count - 1; got {process_index} of {process_count}. Pass both, "
            "as JAX counts them."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"`batch_size` is global and must be a positive multiple of the {process_count} processes; got "
            f"{batch_size}. Choose {max(1, -(-batch_size // process_count)) * process_count}."
        )
    return batch_size // process_count


def how_many(num_examples: int | None, length: int, name: str) -> int:
    """`num_examples`, or all `length` of the source called `name` if None; ValueError if there are not as many."""
    count = length if num_examples is None else num_examples
    if not 1 <= count <= length:
        raise ValueError(f"`num_examples` must be in 1 .. {length} for {name}; got {count}. Lower it.")
    return count


def share(
    data: grain.MapDataset, local_size: int, process_index: int, process_count: int, num_threads: int, prefetch: int
) -> grain.DatasetIterator[Batch]:
    """This process's part of each global batch of `data`, made in threads."""
    data = data.batch(local_size, drop_remainder=True)[process_index::process_count]
    read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return iter(data.to_iter_dataset(read_options))


def training_view(
    source: Source, augmentation: Augmentation, fields: Mapping[str, View] = views.PLAIN
) -> Callable[[int, np.random.Generator], dict[str, Any]]:
    """From an example's number, and chance, to the `fields` of it that training sees.

    If its image cannot be decoded, the next one that can stands in for it; ValueError if these are more than 1%.
    """
    return functools.partial(_training_example, _Decodable(source), augmentation, fields)


def evaluation_view(
    source: Source, image_size: int, fields: Mapping[str, View] = views.PLAIN
) -> Callable[[int], dict[str, Any]]:
    """From an example's number to the `fields` of it that evaluation sees, and "mask".

    The mask is False, and all else zero, if it cannot be decoded; ValueError if these are more than 1%.
    """
    augmentation = preprocessing.evaluation(image_size)
    return functools.partial(_evaluation_example, _Decodable(source), augmentation, fields, len(source))


def _training_example(
    images: "_Decodable", augmentation: Augmentation, fields: Mapping[str, View], index: int, rng: np.random.Generator
) -> dict[str, Any]:
    index, example = images.next_decodable(index)
    height, width, _ = example["image"].shape
    try:
        geometry = preprocessing.choose_geometry(height, width, augmentation, rng)
        return views.look(example, geometry, rng, fields)
    except ValueError as error:
        raise ValueError(f"Number {index} of {images.source.name}: {error}") from error


def _evaluation_example(
    images: "_Decodable", augmentation: Augmentation, fields: Mapping[str, View], count: int, index: int
) -> dict[str, Any]:
    example = images.get(index) if index < count else None
    if example is None:
        found, _ = images.next_decodable(0)
        seen = _evaluation_example(images, augmentation, fields, found + 1, found)
        return {name: np.zeros_like(value) for name, value in seen.items()}
    height, width, _ = example["image"].shape
    rng = np.random.default_rng(index)  # of the order of objects; the geometry leaves nothing to chance
    geometry = preprocessing.choose_geometry(height, width, augmentation, rng)
    try:
        return views.look(example, geometry, rng, fields) | {"mask": np.bool_(True)}
    except ValueError as error:
        raise ValueError(f"Number {index} of {images.source.name}: {error}") from error


class _Decodable:
    """A source of which a few images may be bad; they are remembered, named once, and not allowed to be many."""

    def __init__(self, source: Source):
        self.source = source
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> Mapping[str, Any] | None:
        """Example `index`, or None if its image is bad; ValueError once more than 1% of the images are."""
        if index in self._bad:
            return None
        try:
            return self.source[index]
        except ImageError as error:
            self._remember(index, str(error))
            return None

    def next_decodable(self, index: int) -> tuple[int, Mapping[str, Any]]:
        """The first good example at or after `index`, going round at the end, with its own number."""
        for i in range(index, index + len(self.source)):
            if (example := self.get(i % len(self.source))) is not None:
                return i % len(self.source), example
        raise AssertionError("unreachable: `get` raises long before every image is bad")

    def _remember(self, index: int, message: str) -> None:
        with self._lock:
            if index not in self._bad:
                logging.warning("%s: number %d is left out: %s", self.source.name, index, message)
            self._bad[index] = message
            count, first = len(self._bad), "\n  ".join(self._bad[i] for i in sorted(self._bad)[:5])
        if count > MAX_BAD_FRACTION * len(self.source):
            raise ValueError(
                f"at most {MAX_BAD_FRACTION:.0%} of the images may be undecodable; of {self.source.name} {count} of "
                f"{len(self.source)} already are. Replace or remove them; the first are:\n  {first}"
            )
