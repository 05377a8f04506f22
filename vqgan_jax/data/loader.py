"""Batches for this process: endless and augmented for training, finite and padded for evaluation.

Every batch is a function of its number, the seed and the source alone, so a run resumes exactly. The number of
processes only decides who loads what: of each global batch, process p loads the p-th of equal parts, row by row.
"""

import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

import grain
import numpy as np
from absl import logging

from vqgan_jax.data import views
from vqgan_jax.data.images import ImageError
from vqgan_jax.data.sources import Source
from vqgan_jax.data.views import Augmentation, View

MAX_BAD_FRACTION = 0.01

Batch: TypeAlias = dict[str, np.ndarray]
# Orbax saves and restores it. `get_state()` is `{"next_index": number of the next batch}`, the same in every process
# and for any number of processes; `set_state` continues there.
Batches: TypeAlias = grain.DatasetIterator[Batch]


def training_batches(
    source: Source,
    *,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    fields: Mapping[str, View] = views.PLAIN,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
) -> Batches:
    """Endless batches, reshuffled each epoch, each image augmented anew by the number of its draw.

    An image that cannot be decoded is replaced by the next one that can, so that no batch depends on when or where it
    was met.

    Args:
      source: of images, or of rows of tokens, which are taken as they are.
      augmentation: how squares are cut from images.
      batch_size: examples a step over all processes.
      seed: of order and augmentation; 0 to 2**32 - 1.
      fields: what a batch holds of images, by name; see `views`.
      process_index, process_count: this process and how many there are.
      num_threads: batches made at the same time, and kept ready.

    Returns:
      An iterator of the `fields`, unless others are given "image" (uint8 b s s 3) and "label" (int32 b), or of "tokens"
      (int32 b t); b = `batch_size` / `process_count`.

    Raises:
      ValueError: if an argument is out of range; while iterating, if more than 1% of the images cannot be decoded, an
        image is smaller than `small` "refuse" allows, or an example lacks what a field needs.
    """
    _check_share(batch_size, process_index, process_count)
    data = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    # Randomness comes before the share of a process: keyed by the example's global number it is anyone's to load.
    data = data.random_map(Examples(source, augmentation, fields).train)
    return share(data, batch_size, process_index, process_count, num_threads)


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
) -> Batches:
    """Each example exactly once, in order, the centre at short side `image_size`; equally many batches everywhere.

    Args:
      source: of images, or of rows of tokens, which are taken as they are.
      image_size: height and width of the result; smaller images are upscaled.
      batch_size: examples a step over all processes.
      fields, process_index, process_count, num_threads: see `training_batches`.
      num_examples: only the first so many; all if None.

    Returns:
      An iterator of what `training_batches` has and "mask" (bool b). The mask is False, and all else zero, for padding
      and for images that cannot be decoded.

    Raises:
      ValueError: if an argument is out of range; while iterating, if more than 1% of the images cannot be decoded.
    """
    _check_share(batch_size, process_index, process_count)
    count = len(source) if num_examples is None else num_examples
    if not 1 <= count <= len(source):
        raise ValueError(f"`num_examples` must be in 1 .. {len(source)} for {source.name}; got {count}. Lower it.")
    examples = Examples(source, views.evaluation(image_size), fields)
    data = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    data = data.map(lambda index: examples.evaluate(index, count))
    return share(data, batch_size, process_index, process_count, num_threads)


def _check_share(batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ValueError unless there is such a process, and all have equal parts of a global batch."""
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


def share(data: grain.MapDataset, batch_size: int, process_index: int, process_count: int, num_threads: int) -> Batches:
    """This process's part of each global batch of `data`, made in threads."""
    data = data.batch(batch_size // process_count, drop_remainder=True)[process_index::process_count]
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)))


class Examples:
    """What batches hold of each example of a source.

    A few images may be bad: they are remembered, named once, and not allowed to be many.
    """

    def __init__(self, source: Source, augmentation: Augmentation, fields: Mapping[str, View] = views.PLAIN):
        self.source, self.augmentation, self.fields = source, augmentation, fields
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def train(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns the views of an example, or of the next one whose image can be decoded; `rng` draws the augmentation.

        Raises:
          ValueError: the image is too small, an example lacks what a field needs, or too many images are bad.
        """
        return self._look(*self._next_good(index), rng)

    def evaluate(self, index: int, count: int) -> dict[str, Any]:
        """Returns the views of an example for evaluation, and "mask".

        The mask is False, and all else zero, from number `count` on and where the image cannot be decoded.

        Raises:
          ValueError: an example lacks what a field needs, or too many images are bad.
        """
        good = self.get(index) if index < count else None
        index, example = self._next_good(0) if good is None else (index, good)
        # The geometry leaves nothing to chance, but the order of objects and the choice of a caption do.
        seen = self._look(index, example, np.random.default_rng(index)) | {"mask": np.bool_(True)}
        return seen if good is not None else {name: np.zeros_like(value) for name, value in seen.items()}

    def get(self, index: int) -> Mapping[str, Any] | None:
        """Example `index`, or None if its image is bad; ValueError once more than 1% of the images are."""
        if index in self._bad:
            return None
        try:
            return self.source[index]
        except ImageError as error:
            self._remember(index, str(error))
            return None

    def _look(self, index: int, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if "image" not in example:
            return dict(example)
        height, width, _ = example["image"].shape
        try:
            cut = views.cut(example, views.choose_geometry(height, width, self.augmentation, rng), rng)
            return {name: view(cut) for name, view in self.fields.items()}
        except ValueError as error:
            raise ValueError(f"Number {index} of {self.source.name}: {error}") from error

    def _next_good(self, index: int) -> tuple[int, Mapping[str, Any]]:
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
