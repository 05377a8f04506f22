"""Two sets of images against each other; and what every evaluation has: its request, its networks, its records."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vqgan_jax import data
from vqgan_jax.convert import inception, lpips
from vqgan_jax.evaluate import features, generation, moments, record
from vqgan_jax.evaluate.collection import Archive, Collector, Measured, Summary
from vqgan_jax.evaluate.gathering import gather, numbered
from vqgan_jax.train import program, sharding

Track = Callable[[str, int], Callable[[int], None]]  # what is done and how much there is to do -> told how much is done
ROUNDING = "rint((clip(x) + 1) * 127.5) to 8 bits"
GALLERY = 16  # real images of each class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever is judged.

    Attributes:
      metrics: names of `generation.METRICS`; the default ones if empty.
      seed: of everything that is drawn.
      batch_size: images at a time over all processes, rounded up to a multiple of the devices.
      inception: file of Inception's weights; by default it is looked for where `convert.inception` says.
      track: shows progress.
      limit: held-out examples of a run that are looked at, spread over all; 0 for every one.
    """

    metrics: tuple[str, ...]
    seed: int
    batch_size: int
    inception: str | None
    track: Track
    limit: int = 0

    @property
    def global_batch(self) -> int:
        """Images at a time over all processes."""
        return -(-self.batch_size // jax.device_count()) * jax.device_count()

    def limited(self, source: Any) -> Any:
        """The source, or `limit` of its examples."""
        return data.spread(source, self.limit) if self.limit else source

    @property
    def local_batch(self) -> int:
        """Images at a time in this process."""
        return self.global_batch // jax.process_count()


class Networks(NamedTuple):
    """What sees the images.

    Attributes:
      run: from images (uint8 b H W 3) to features by name.
      lpips: parameters of LPIPS and its VGG16.
      files: name and hash of the weights' file, by network.
    """

    run: Callable[[Any], Mapping[str, Any]]
    lpips: Any
    files: dict[str, tuple[str, str]]

    def named(self, network: str) -> dict[str, str]:
        """The record's fields of a network."""
        name, digest = self.files.get(network, (record.NOTHING, record.NOTHING))
        return {"network": name, "network_hash": digest}


class Seen(NamedTuple):
    """A set of images that was read to its end.

    Attributes:
      summary: its statistics.
      resize: what was done to its images, in words.
      gallery: the first images of each class, up to `GALLERY`, with their labels.
      class_names: empty where there are none.
    """

    summary: Summary
    resize: str
    gallery: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...]


def open_networks(chosen: Mapping[str, generation.Metric], path: str | None) -> Networks:
    """Loads what the metrics need, before any work.

    Raises:
      FileNotFoundError: Inception's weights are needed and not there.
    """
    files, everywhere = {"vgg": lpips.lpips_path()}, sharding.replicated(sharding.local_mesh())
    wanted = {metric.network for metric in chosen.values() if metric.compare is not None}
    if "inception" in wanted:
        files["inception"] = Path(path) if path else inception.find_inception()
        inception_params = jax.device_put(inception.load_inception(files["inception"]), everywhere)
    vgg = jax.device_put(lpips.load_lpips(), everywhere)

    def run(images: Any) -> dict[str, Any]:
        found = {"vgg": features.vgg_features(vgg, images)} if "vgg" in wanted else {}
        if "inception" in wanted:
            found["inception"], found["logits"] = features.inception_features(inception_params, images)
        return found

    return Networks(run, vgg, {name: (file.name, record.file_hash(file)) for name, file in files.items()})


def collect(source: Any, request: Request, networks: Networks, *, size: int, keep: frozenset[str], name: str) -> Seen:
    """Reads every image of a source once, this process its share; the centre, unflipped, at `size` pixels."""
    measured, share = Measured(source), program.share()
    batches = data.evaluation_batches(measured, image_size=size, batch_size=request.global_batch, **share)
    collector, done = Collector(networks.run, keep=keep), 0
    told = request.track(name, -(-len(source) // jax.process_count()))
    images, labels, places = [], [], []
    held = np.zeros(max(len(source.class_names), 1), int)
    for numbers, batch in numbered(batches, **share):
        collector.add(numbers, batch["image"], batch_size=request.local_batch)
        for number, image, label in zip(numbers, batch["image"], batch["label"], strict=True):
            if held[label] < GALLERY:
                held[label] += 1
                places.append(number)
                images.append(image)
                labels.append(label)
        told(done := done + len(numbers))
    stacked = gather(np.array(images, np.uint8).reshape(-1, size, size, 3))
    gallery = first_of_each(gather(np.array(places, np.int64)), stacked, gather(np.array(labels, np.int32)))
    return Seen(collector.summary(), measured.resize(size), gallery, tuple(source.class_names))


def first_of_each(numbers: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every class the `GALLERY` images with the lowest numbers: the same for any number of processes."""
    order = np.argsort(numbers)
    kept = np.concatenate([order[labels[order] == label][:GALLERY] for label in np.unique(labels)])
    kept = kept[np.argsort(numbers[kept])]
    return images[kept], labels[kept]


def results(
    values: Mapping[str, float], chosen: Mapping[str, generation.Metric], networks: Networks, **common: Any
) -> list[record.Result]:
    """Records of values; `common` are the fields that all of them share."""
    found = []
    for name, metric in chosen.items():
        if name not in values:
            continue
        counted = metric.compare is not None or name == "own_class"
        fields: Any = common | networks.named(metric.network) | {"versions": record.versions()}
        found.append(
            record.Result(
                metric=record.named(name, common["subject_count"]) if counted else name,
                value=values[name], unit=metric.unit, better=metric.better, variant=metric.variant, **fields,
            )
        )  # fmt: skip
    return found


class Report(NamedTuple):
    """What was found of two sets: the figures, their statistics, and a few images of each."""

    results: list[record.Result]
    reference: Seen
    samples: Seen


def evaluate(
    reference: str, samples: str, request: Request, *, size: int | None = None, count: int | None = None
) -> Report:
    """Two sets of images against each other.

    Args:
      reference: a folder, an .npz of images (`arr_0`, uint8 n H W 3), or one of statistics, ours or with mu and sigma.
      samples: likewise, but images.
      request: what is asked for.
      size: to which both are brought; by default the short side of the first sample.
      count: of the images behind statistics that do not tell it.
    """
    chosen = generation.choose(request.metrics, "sets")
    source = open_images(samples)
    first = min(source[0]["image"].shape[:2]) if size is None else size
    of_pixels = None if holds_statistics(reference) else open_images(reference)
    counts = {"--samples_from": len(source)} | ({"--reference": len(of_pixels)} if of_pixels is not None else {})
    generation.check_counts(chosen, **counts)
    networks, keep = open_networks(chosen, request.inception), generation.kept(chosen)
    look = lambda source, name: collect(source, request, networks, size=first, keep=keep, name=name)
    seen = load_statistics(reference, chosen, count) if of_pixels is None else look(of_pixels, "reference")
    drawn = look(source, "samples")
    values = generation.compare(chosen, seen.summary, drawn.summary, seed=request.seed)
    protocol = results(
        values, chosen, networks, subject=samples, model=record.NOTHING, step=0, weights=record.NOTHING, sampling={},
        rounding="none, images came in 8 bits", seed=request.seed, **compared(reference, seen, drawn),
    )  # fmt: skip
    return Report(protocol, seen, drawn)


def compared(name: str, reference: Seen, samples: Seen) -> dict[str, Any]:
    """The record's fields of two sets."""
    resized = dict.fromkeys((reference.resize, samples.resize))
    return {
        "subject_count": samples.summary.count,
        "subject_fingerprint": samples.summary.fingerprint,
        "reference": name,
        "reference_count": reference.summary.count,
        "reference_fingerprint": reference.summary.fingerprint,
        "resize": " | samples: ".join(resized),
    }


def open_images(text: str) -> Any:
    """A folder or an .npz as a source; ValueError if it is neither."""
    if text.endswith(".npz") and Path(text).is_file():
        return Archive(moments.load_images(text), text)
    if Path(text).is_dir():
        return data.open_source(f"folder:{text}", split="all", image_size=1)
    raise ValueError(
        f"a set of images must be a folder or an .npz with `arr_0`; {text!r} is neither. Correct the path."
    )


def holds_statistics(text: str) -> bool:
    """Whether it is an .npz without images."""
    if not text.endswith(".npz") or not Path(text).is_file():
        return False
    with np.load(text, allow_pickle=False) as arrays:
        return "arr_0" not in arrays


def load_statistics(path: str, chosen: Mapping[str, generation.Metric], count: int | None) -> Seen:
    """Moments of a reference that is not there itself; ValueError where a metric needs the images."""
    loaded = moments.load(path, count=count)
    network = {512: "vgg", 2048: "inception"}.get(len(loaded.mean), "")
    for name, metric in chosen.items():
        if metric.rows not in ("", "logits") or metric.network != network:
            raise ValueError(
                f"`{name}` needs images as its reference; {path} holds {network or 'other'} statistics only. Give the "
                "images, or leave the metric out."
            )
    summary = Summary(loaded.count, record.file_hash(Path(path)), {network: loaded}, {})
    nothing = np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int32)
    return Seen(summary, "as the file's author did", nothing, ())
