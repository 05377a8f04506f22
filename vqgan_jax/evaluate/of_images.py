"""Sets of images: every image once, the same for any batches and any number of processes; and two sets compared."""

import functools
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped, UInt8

from vqgan_jax import data
from vqgan_jax.evaluate import distances, protocol
from vqgan_jax.evaluate.features import Networks, open_networks
from vqgan_jax.evaluate.protocol import Evaluation, Metric, Request, Summary
from vqgan_jax.train import program, sharding

ROUNDING = "rint((clip(x) + 1) * 127.5) to 8 bits"
GALLERY = 16  # real images of each class
Run = Callable[[Any], Mapping[str, Any]]  # images (uint8 b H W 3) to rows (b d) by name


def gather(rows: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "_n ..."]:
    """Returns the rows of all processes, one process's after the other's; they may have different numbers of rows.

    Bytes travel, not numbers: as JAX arrays int64 and float64 would become 32 bits wide.
    """
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.array([len(rows)], np.int32)).reshape(-1)
    width = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    padded = np.zeros((int(counts.max()), width), np.uint8)
    padded[: len(rows)] = np.frombuffer(np.ascontiguousarray(rows).tobytes(), np.uint8).reshape(len(rows), width)
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(counts), -1, width)
    whole = np.concatenate([part[:count] for part, count in zip(everyone, counts, strict=True)])
    return np.frombuffer(whole.tobytes(), rows.dtype).reshape(-1, *rows.shape[1:])


def numbers_of(
    batch: int, mask: Shaped[np.ndarray, "b"], *, process_index: int, process_count: int
) -> Int[np.ndarray, "_b"]:
    """Returns the numbers in the source of the examples that the mask keeps of this process's part of a global batch.

    Of each global batch, process p has the p-th of equal parts; what the mask leaves out is no example.
    """
    return ((batch * process_count + process_index) * len(mask) + np.arange(len(mask)))[mask]


def numbered(
    batches: Iterable[Mapping[str, Any]], *, process_index: int, process_count: int
) -> Iterator[tuple[Int[np.ndarray, "b"], dict[str, Any]]]:
    """Yields batches of `data.evaluation_batches` without padding, each with its examples' numbers in the source."""
    for i, batch in enumerate(batches):
        mask = batch["mask"]
        numbers = numbers_of(i, mask, process_index=process_index, process_count=process_count)
        yield numbers, {name: value[mask] for name, value in batch.items() if name != "mask"}


def in_order(
    numbers: Sequence[Int[np.ndarray, "_"]], rows: Sequence[Shaped[np.ndarray, "_ ..."]]
) -> Shaped[np.ndarray, "n ..."]:
    """Returns the rows of all processes, out of parts with their numbers, in the order of these numbers."""
    return gather(np.concatenate(rows))[np.argsort(gather(np.concatenate(numbers)), kind="stable")]


class Collector:
    """Takes images as they come; its `summary` covers those of all processes."""

    def __init__(self, run: Run, *, keep: frozenset[str] = frozenset()) -> None:
        """`run` gives features by name; the rows of those in `keep` are held, of the others only moments."""
        self.run, self.keep = run, keep
        self.numbers: list[np.ndarray] = []
        self.digests: list[np.ndarray] = []
        self.moments: dict[str, distances.Moments] = {}
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self.timed, self.seconds = 0, 0.0

    def add(self, numbers: Int[np.ndarray, "b"], images: UInt8[np.ndarray, "b H W 3"], *, batch_size: int) -> None:
        """Takes images that are no padding, with their numbers; `batch_size` at a time, the last batch padded."""
        self.numbers.append(numbers.astype(np.int64))
        self.digests.append(np.array([digest(image) for image in images], np.uint64))
        for start in range(0, max(len(images), 1), batch_size):  # without images, too: features have a width
            part, began = images[start : start + batch_size], time.perf_counter()
            rows = {name: np.asarray(each)[: len(part)] for name, each in self.run(padded(part, batch_size)).items()}
            if self.moments:  # the first batch also compiles
                self.timed, self.seconds = self.timed + len(part), self.seconds + time.perf_counter() - began
            for name, features in rows.items():
                if name not in self.moments:
                    self.moments[name] = distances.empty(features.shape[1])
                self.moments[name] = distances.add(self.moments[name], features)
                if name in self.keep:
                    self.rows[name].append(features)

    def summary(self, name: str, resize: str, labels: Sequence[Int[np.ndarray, "_"]] = ()) -> Summary:
        """Returns what is known of the images of all processes; each must call it, after `add`, if with no image.

        Args:
          name: of the set, for a record.
          resize: what was done to the images, in words.
          labels: of what was added, in parts as it was added; none if the images have no classes.
        """
        numbers = np.sort(gather(np.concatenate(self.numbers)))
        digests = np.sort(gather(np.concatenate(self.digests)))
        if len(np.unique(numbers)) != len(numbers):
            raise ValueError(
                f"every image must count once; {len(numbers)} came with {len(np.unique(numbers))} numbers."
            )
        return Summary(
            name=name,
            count=len(numbers),
            fingerprint=hashlib.sha256(digests.tobytes()).hexdigest()[:16],
            moments={name: merged(self.moments[name]) for name in sorted(self.moments)},
            rows={name: in_order(self.numbers, parts) for name, parts in sorted(self.rows.items())},
            resize=resize,
            labels=in_order(self.numbers, labels) if labels else np.zeros(0, np.int32),
            numbers=numbers,
            rate=self.timed / self.seconds if self.seconds else 0.0,
        )


def merged(mine: distances.Moments) -> distances.Moments:
    """Returns the moments of all processes together."""
    total = distances.empty(mine.mean.shape[0])
    for count, mean, scatter in zip(*(gather(np.asarray(field)[None]) for field in mine), strict=True):
        total = distances.merge(total, distances.Moments(int(count), mean, scatter))
    return total


def digest(image: UInt8[np.ndarray, "H W 3"]) -> int:
    """Returns eight bytes of the hash of an image's shape and pixels."""
    whole = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return int.from_bytes(whole[:8], "little")


def padded(rows: Shaped[np.ndarray, "b ..."], size: int) -> jax.Array:
    """Returns a full batch over the devices of this process: the last row repeated, or zeros without any."""
    numbers = np.arange(size).clip(max=max(len(rows) - 1, 0))
    rows = rows if len(rows) else np.zeros((1, *rows.shape[1:]), rows.dtype)
    return jax.device_put(rows[numbers], jax.NamedSharding(sharding.local_mesh(), sharding.BATCH))


class Archive:
    """Images of one array as a source: uint8 n H W 3, without classes."""

    class_names: tuple[str, ...] = ()

    def __init__(self, images: UInt8[np.ndarray, "n H W 3"], name: str):
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Returns one image."""
        return {"image": self.images[int(index)], "label": np.int32(0)}


class Measured:
    """A source that remembers between which sizes the images were that it gave."""

    def __init__(self, source: Any):
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.sizes: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Returns example `index`."""
        example = self.source[index]
        self.sizes.add(example["image"].shape[:2])  # at once, so that threads need no lock
        return example

    def resize(self, size: int) -> str:
        """Returns what became of the images in words, for the record; every process must ask."""
        everyone = gather(np.array(sorted(self.sizes), np.int64).reshape(-1, 2))
        low, high = everyone.min(0).tolist(), everyone.max(0).tolist()
        sizes = " to ".join(dict.fromkeys(f"{height}x{width}" for height, width in (low, high)))
        if low == high == [size, size]:
            return f"none, all are {sizes}"
        return f"from {sizes}: short side to {size} by antialiased bicubic (Pillow), centre crop {size}x{size}"


def read(
    source: Any, request: Request, *, size: int, name: str
) -> Iterator[tuple[Int[np.ndarray, "b"], dict[str, Any]]]:
    """Yields this process's share of a source in batches, with numbers; the centre, unflipped, at `size` pixels.

    Every example comes once. `name` is of this part of the work.
    """
    share = program.share()
    batches = data.evaluation_batches(source, image_size=size, batch_size=request.global_batch, **share)
    progress, done = request.track(name, -(-len(source) // jax.process_count())), 0
    for numbers, batch in numbered(batches, **share):
        yield numbers, batch
        progress(done := done + len(numbers))


def collect(source: Any, request: Request, networks: Networks, *, size: int, name: str) -> Summary:
    """Reads every image of a source once, this process its share; `name` is of this part of the work."""
    measured, collector, labels = Measured(source), Collector(networks.run, keep=networks.keep), []
    for numbers, batch in read(measured, request, size=size, name=name):
        collector.add(numbers, batch["image"], batch_size=request.local_batch)
        labels.append(batch["label"])
    return collector.summary(source.name, measured.resize(size), labels)


def gallery(source: Any, real: Summary, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of each class, up to `GALLERY`, with their labels; `real` is the source, collected."""
    classes = np.unique(real.labels)
    first = np.sort(np.concatenate([np.flatnonzero(real.labels == label)[:GALLERY] for label in classes]))
    return crops(source, real.numbers[first].tolist(), size), real.labels[first]


def crops(source: Any, numbers: Sequence[int], size: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Returns some images of a source by their numbers in it, as `collect` sees them."""
    (batch,) = data.evaluation_batches(data.Subset(source, numbers), image_size=size, batch_size=len(numbers))
    return batch["image"]


def evaluate(
    reference: str, samples: str, request: Request, *, size: int | None = None, count: int | None = None
) -> Evaluation:
    """Measures two sets of images against each other.

    Args:
      reference: a folder, an .npz of images (`arr_0`, uint8 n H W 3), or one of statistics, ours or with mu and sigma.
      samples: likewise, but images.
      request: what to measure.
      size: to which both are brought; by default the short side of the first sample.
      count: of the images behind statistics that do not tell it.

    Raises:
      ValueError: a metric of other subjects, too few images for one, or a file that holds neither.
      FileNotFoundError: a metric's network is not there.
    """
    chosen = protocol.choose(request.metrics, "sets")
    source = open_images(samples)
    size = min(source[0]["image"].shape[:2]) if size is None else size
    real = None if holds_statistics(reference) else open_images(reference)
    counts = {"--samples_from": len(source)} | ({} if real is None else {"--reference": len(real)})
    protocol.check_counts(chosen, **counts)
    networks = open_networks(chosen.values(), request.inception)
    collected = functools.partial(collect, request=request, networks=networks, size=size)
    first = load_statistics(reference, chosen, count) if real is None else collected(real, name="reference")
    first, second = first._replace(name=reference), collected(source, name="samples")._replace(name=samples)
    values = protocol.compare(chosen, first, second, seed=request.seed)
    run = {"model": protocol.NOTHING, "step": 0, "weights": protocol.NOTHING, "seed": request.seed, "sampling": {}}
    pixels = {"resize": first.resized(second), "rounding": "none, images came in 8 bits"}
    results = protocol.records(values, chosen, networks.files, second, first, run | pixels)
    lead = f"{samples} against {reference}."
    return Evaluation(results=results, title="Two sets of images", lead=lead, reference=first)


def open_images(text: str) -> Any:
    """Returns a folder or an .npz as a source.

    Raises:
      ValueError: it is neither, or the .npz holds no images.
    """
    if Path(text).is_dir():
        return data.open_source(f"folder:{text}", split="all", image_size=1)
    if not is_archive(text):
        raise ValueError(
            f"a set of images must be a folder or an .npz with `arr_0`; {text!r} is neither. Correct the path."
        )
    return Archive(load_images(text), text)


def load_images(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "n H W 3"]:
    """Returns the images `arr_0` of a .npz, as ADM publishes samples and references.

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


def is_archive(text: str) -> bool:
    """Returns whether a path names an existing .npz file."""
    return text.endswith(".npz") and Path(text).is_file()


def holds_statistics(text: str) -> bool:
    """Returns whether it is an .npz without images."""
    if not is_archive(text):
        return False
    with np.load(text, allow_pickle=False) as arrays:
        return "arr_0" not in arrays


def load_statistics(path: str, chosen: Mapping[str, Metric], count: int | None) -> Summary:
    """Returns moments of a reference that is not there itself; ValueError where a metric needs the images."""
    moments = load_moments(path, count=count)
    network = {512: "vgg", 2048: "inception"}.get(len(moments.mean), "")
    for name, metric in chosen.items():
        if metric.rows not in ("", "logits") or metric.network != network:
            raise ValueError(
                f"`{name}` needs images as its reference; {path} holds {network or 'other'} statistics only. Give the "
                "images, or leave the metric out."
            )
    digest, resize = protocol.file_hash(Path(path)), "as the file's author did"
    return Summary(path, moments.count, digest, {network: moments}, resize=resize)


def save_moments(path: epath.Path, moments: distances.Moments) -> None:
    """Writes `count`, `mean` and `scatter` to a .npz, to be read by `load_moments`."""
    buffer = io.BytesIO()
    np.savez(buffer, **moments._asdict())
    path.write_bytes(buffer.getvalue())


def load_moments(path: str | os.PathLike[str], *, count: int | None = None) -> distances.Moments:
    """Reads what `save_moments` wrote, or the `mu` and `sigma` of the references of ADM and pytorch-fid.

    Args:
      path: a .npz.
      count: how many images the file is of: told by our files, not by others', whose covariance it does not change.

    Raises:
      ValueError: the file holds neither, is of another size than it says, or does not tell the count, as must be.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "scatter" in arrays:
            moments = distances.Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        elif "mu" in arrays and "sigma" in arrays:
            if count is None:
                raise ValueError(f"`count` must be given for {path}, which holds `mu` and `sigma` only. Give it.")
            mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            moments = distances.Moments(count, mean, covariance * (count - 1))
        else:
            raise ValueError(
                f"{path} must hold `mean` and `scatter`, or `mu` and `sigma`; it has {sorted(arrays)[:5]}. Name a file "
                "of statistics."
            )
    if count not in (None, moments.count):
        raise ValueError(f"`count` must be that of {path}, {moments.count}; got {count}. Leave it out.")
    if moments.mean.ndim != 1 or moments.scatter.shape != 2 * moments.mean.shape:
        raise ValueError(
            f"{path} must hold a mean (d) and a matrix (d d); got {moments.mean.shape} and {moments.scatter.shape}. "
            "Make it anew."
        )
    return moments
