"""A set of images as statistics: streamed, every image once, the same for any batches and any number of processes."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax.evaluate import moments
from vqgan_jax.evaluate.gathering import gather
from vqgan_jax.train import sharding

Run = Callable[[Any], Mapping[str, Any]]  # images (uint8 b H W 3) to rows (b d) by name


class Summary(NamedTuple):
    """What is known of a set of images.

    Attributes:
      count: how many there are.
      fingerprint: sixteen hexadecimal digits of their pixels, whatever their order.
      moments: of each kind of features.
      rows: features themselves where they were kept, ordered by number.
      rate: images a second that the networks of this process saw, without its first batch; 0 if there was no other.
    """

    count: int
    fingerprint: str
    moments: dict[str, moments.Moments]
    rows: dict[str, Float[np.ndarray, "n d"]]
    rate: float = 0.0


class Collector:
    """Takes images as they come; `summary` is of those of all processes."""

    def __init__(self, run: Run, *, keep: frozenset[str] = frozenset()) -> None:
        """`run` gives features by name; the rows of those in `keep` are held, of the others only moments."""
        self.run, self.keep = run, keep
        self.numbers: list[np.ndarray] = []
        self.digests: list[np.ndarray] = []
        self.moments: dict[str, moments.Moments] = {}
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self.timed, self.seconds = 0, 0.0

    def add(self, numbers: Int[np.ndarray, "b"], images: UInt8[np.ndarray, "b H W 3"], *, batch_size: int) -> None:
        """Images that are no padding, with their numbers; computed in batches of `batch_size`, the last one padded."""
        self.numbers.append(numbers.astype(np.int64))
        self.digests.append(np.array([digest(image) for image in images], np.uint64))
        for start in range(0, max(len(images), 1), batch_size):  # without images, too: features have a width
            part, began = images[start : start + batch_size], time.perf_counter()
            found = {name: np.asarray(rows)[: len(part)] for name, rows in self.run(padded(part, batch_size)).items()}
            if self.moments:  # the first batch also compiles
                self.timed, self.seconds = self.timed + len(part), self.seconds + time.perf_counter() - began
            for name, features in found.items():
                if name not in self.moments:
                    self.moments[name] = moments.empty(features.shape[1])
                self.moments[name] = moments.add(self.moments[name], features)
                if name in self.keep:
                    self.rows[name].append(features)

    def summary(self) -> Summary:
        """Of the images of all processes; every process must call it, and `add` before, if with no image at all."""
        numbers = gather(np.concatenate(self.numbers))
        digests = np.sort(gather(np.concatenate(self.digests)))
        order = np.argsort(numbers)
        if len(np.unique(numbers)) != len(numbers):
            raise ValueError(
                f"every image must count once; {len(numbers)} came with {len(np.unique(numbers))} numbers."
            )
        rows = {name: gather(np.concatenate(parts))[order] for name, parts in sorted(self.rows.items())}
        return Summary(
            len(numbers),
            hashlib.sha256(digests.tobytes()).hexdigest()[:16],
            {name: merged(self.moments[name]) for name in sorted(self.moments)},
            rows,
            self.timed / self.seconds if self.seconds else 0.0,
        )


def merged(mine: moments.Moments) -> moments.Moments:
    """The moments of all processes together."""
    fields = [gather(np.asarray(field)[None]) for field in mine]
    everyone = [moments.Moments(*parts) for parts in zip(*fields, strict=True)]
    total = moments.empty(mine.mean.shape[0])
    for one in everyone:
        total = moments.merge(total, moments.Moments(int(one.count), one.mean, one.scatter))
    return total


def digest(image: UInt8[np.ndarray, "H W 3"]) -> int:
    """Eight bytes of the hash of an image's shape and pixels."""
    found = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return int.from_bytes(found[:8], "little")


def padded(images: UInt8[np.ndarray, "b H W 3"], size: int) -> jax.Array:
    """A full batch, its last image repeated, or zeros without any, over the devices of this process."""
    rows = np.arange(size).clip(max=max(len(images) - 1, 0))
    images = images if len(images) else np.zeros((1, *images.shape[1:]), np.uint8)
    return jax.device_put(images[rows], jax.NamedSharding(sharding.local_mesh(), sharding.BATCH))


class Archive:
    """Images of one array as a source: uint8 n H W 3, without classes."""

    class_names: tuple[str, ...] = ()

    def __init__(self, images: UInt8[np.ndarray, "n H W 3"], name: str):
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """One image."""
        return {"image": self.images[int(index)], "label": np.int32(0)}


class Numbered:
    """Some examples of a source, by their numbers in it."""

    def __init__(self, source: Any, numbers: Sequence[int]):
        self.source, self.numbers, self.name, self.class_names = source, numbers, source.name, source.class_names

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        """Example `index` of these."""
        return self.source[self.numbers[index]]


class Measured:
    """A source that remembers between which sizes the images were that it gave."""

    def __init__(self, source: Any):
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.lowest, self.highest = np.full(2, 2**31 - 1), np.zeros(2, np.int64)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index`."""
        example = self.source[index]
        with self._lock:
            self.lowest = np.minimum(self.lowest, example["image"].shape[:2])
            self.highest = np.maximum(self.highest, example["image"].shape[:2])
        return example

    def resize(self, size: int) -> str:
        """What became of the images in words, for the record; every process must ask."""
        low, high = gather(self.lowest[None]).min(0), gather(self.highest[None]).max(0)
        sizes = " to ".join(dict.fromkeys(f"{height}x{width}" for height, width in (low, high)))
        if list(low) == list(high) == [size, size]:
            return f"none, all are {sizes}"
        return f"from {sizes}: short side to {size} by antialiased bicubic (Pillow), centre crop {size}x{size}"
