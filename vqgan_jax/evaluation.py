"""What `vqgan evaluate` does with a tokenizer, or with two sets of images; with a prior, see `prior_evaluation`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from vqgan_jax import api, data, models
from vqgan_jax import config as configs
from vqgan_jax.convert import inception, lpips
from vqgan_jax.evaluate import features, generation, moments, record, structural, tokenizer
from vqgan_jax.evaluate.collection import Archive, Collector, Measured, Summary, padded
from vqgan_jax.evaluate.gathering import gather, numbered
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_float
from vqgan_jax.train import program

Track = Callable[[str, int], Callable[[int], None]]  # what is done and how much there is to do -> told how much is done
ROUNDING = "rint((clip(x) + 1) * 127.5) to 8 bits"
GALLERY = 16  # real images of each class
EXTREMES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever is judged.

    Attributes:
      metrics: names of `generation.METRICS`; the default ones if empty.
      seed: of everything that is drawn.
      batch_size: images at a time over all processes, rounded up to a multiple of the devices.
      inception: file of Inception's weights; by default it is looked for where `convert.inception` says.
      track: shows progress.
    """

    metrics: tuple[str, ...]
    seed: int
    batch_size: int
    inception: str | None
    track: Track

    @property
    def global_batch(self) -> int:
        """Images at a time over all processes."""
        return -(-self.batch_size // jax.device_count()) * jax.device_count()

    @property
    def local_batch(self) -> int:
        """Images at a time in this process."""
        return self.global_batch // jax.process_count()


class Networks(NamedTuple):
    """What sees the images.

    Attributes:
      run: from images (uint8 b H W 3) to features by name.
      lpips: parameters of LPIPS and its VGG16.
      files: of the weights, by network.
    """

    run: Callable[[Any], Mapping[str, Any]]
    lpips: Any
    files: dict[str, Path]

    def named(self, network: str) -> dict[str, str]:
        """The record's fields of a network."""
        if network == "none":
            return {"network": record.NOTHING, "network_hash": record.NOTHING}
        return {"network": self.files[network].name, "network_hash": record.file_hash(self.files[network])}


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
    files = {"vgg": lpips.lpips_path()}
    wanted = {metric.network for metric in chosen.values() if metric.compare is not None}
    if "inception" in wanted:
        files["inception"] = inception.find_inception(path)
        inception_params = jax.device_put(inception.load_inception(files["inception"]))
    vgg = jax.device_put(lpips.load_lpips())

    def run(images: Any) -> dict[str, Any]:
        found = {"vgg": features.vgg_features(vgg, images)} if "vgg" in wanted else {}
        if "inception" in wanted:
            found["inception"], found["logits"] = features.inception_features(inception_params, images)
        return found

    return Networks(run, vgg, files)


def collect(source: Any, request: Request, networks: Networks, *, size: int, keep: frozenset[str], name: str) -> Seen:
    """Reads every image of a source once, this process its share; the centre, unflipped, at `size` pixels."""
    measured = Measured(source)
    batches = data.evaluation_batches(measured, image_size=size, batch_size=request.global_batch, **program.share())
    collector, done = Collector(networks.run, keep=keep), 0
    told = request.track(name, -(-len(source) // jax.process_count()))
    images, labels, held = [], [], np.zeros(max(len(source.class_names), 1), int)
    for numbers, batch in numbered(batches, **program.share()):
        collector.add(numbers, batch["image"], batch_size=request.local_batch)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            if held[label] < GALLERY:
                held[label] += 1
                images.append(image)
                labels.append(label)
        told(done := done + len(numbers))
    stacked = np.array(images, np.uint8).reshape(-1, size, size, 3)
    gallery = gather(stacked), gather(np.array(labels, np.int32))
    return Seen(collector.summary(), measured.resize(size), gallery, tuple(source.class_names))


def results(
    values: Mapping[str, float], chosen: Mapping[str, generation.Metric], networks: Networks, **common: Any
) -> list[record.Result]:
    """Records of values; `common` are the fields that all of them share."""
    found = []
    for name, metric in chosen.items():
        if name not in values:
            continue
        counted = metric.compare is not None or name == "own_class"
        fields = common | networks.named(metric.network) | {"versions": record.versions()}
        if name == "nll":  # of codes, not of pixels
            fields |= {"subject": "tokens of held-out images", "sampling": {}, "rounding": record.NOTHING}
            fields |= {"subject_count": common["held_out"], "subject_fingerprint": record.NOTHING}
            fields |= {"reference": record.NOTHING, "reference_count": 0, "reference_fingerprint": record.NOTHING}
        fields.pop("held_out", None)
        found.append(
            record.Result(
                metric=record.named(name, common["subject_count"]) if counted else name,
                value=values[name], unit=metric.unit, better=metric.better, variant=metric.variant, **fields,
            )
        )  # fmt: skip
    return found


class TokenizerReport(NamedTuple):
    """What was found of a tokenizer.

    Attributes:
      results: the figures.
      found: values of each image, and the histogram.
      shown: by "best", "median" and "worst": originals, reconstructions and their LPIPS.
    """

    results: list[record.Result]
    found: tokenizer.Reconstructed
    shown: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def of_tokenizer(
    model: models.Tokenizer, config: configs.Stage1, request: Request, *, workdir: str, split: str = "validation"
) -> TokenizerReport:
    """Every image of a split once, against what comes back of it.

    Raises:
      ValueError: the tokenizer is not one of pictures, or the metrics do not fit.
      FileNotFoundError: a metric's network is not there.
    """
    if config.data.field != "image" or config.model.image_channels != 3:
        raise ValueError(
            f"a tokenizer to evaluate must be one of RGB pictures; that of {workdir} reads {config.data.field!r} in "
            f"{config.model.image_channels} channels. Its training logs say how good it is."
        )
    chosen = generation.choose(request.metrics, "tokenizer")
    name = {"validation": config.data.eval_split, "train": config.data.train_split}[split]
    source = Measured(program.open_split(config, name))
    generation.check_counts(chosen, reference=len(source))
    networks, size = open_networks(chosen, request.inception), config.data.image_size
    batches = data.evaluation_batches(source, image_size=size, batch_size=request.global_batch, **program.share())
    reconstruct, compare = pair_functions(model, networks, request.local_batch)
    keep = generation.kept(chosen)
    found = tokenizer.measure(
        numbered(batches, **program.share()), reconstruct, compare, codebook_size=model.codebook_size,
        collectors=(Collector(networks.run, keep=keep), Collector(networks.run, keep=keep)),
        batch_size=request.local_batch,
        progress=request.track("reconstructing", -(-len(source) // jax.process_count())),
    )  # fmt: skip
    values = found.means | generation.compare(chosen, found.originals, found.recons, seed=request.seed)
    values |= {"rfid": values["fid"]} if "fid" in values else {}
    protocol = results(
        values, chosen, networks, subject="reconstructions of the reference", subject_count=found.recons.count,
        subject_fingerprint=found.recons.fingerprint, reference=f"{source.name}, split {name}, the same crops",
        reference_count=found.originals.count, reference_fingerprint=found.originals.fingerprint,
        resize=source.resize(size), rounding=ROUNDING, model=workdir, step=model.step, weights=model.weights,
        sampling={}, seed=request.seed,
    )  # fmt: skip
    order = dict(zip(found.numbers.tolist(), found.values["lpips_vgg"], strict=True))
    one = lambda number: next(
        data.evaluation_batches(Numbered(source.source, [number]), image_size=size, batch_size=1)
    )["image"][0]
    shown = {}
    for kind, numbers in found.extremes(EXTREMES).items():
        originals = np.stack([one(int(number)) for number in numbers])
        shown[kind] = originals, reconstruct(originals)[0], np.array([order[int(number)] for number in numbers])
    return TokenizerReport(protocol, found, shown)


class Numbered:
    """Some examples of a source, by their numbers in it."""

    def __init__(self, source: Any, numbers: Sequence[int]):
        self.source, self.numbers, self.name, self.class_names = source, numbers, source.name, source.class_names

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        """Example `index` of these."""
        return self.source[self.numbers[index]]


def pair_functions(model: models.Tokenizer, networks: Networks, size: int) -> tuple[Any, Any]:
    """Reconstruction of images, and values of pairs; compiled for batches of `size`, which they pad."""

    @jax.jit
    def reconstruct(model: models.Tokenizer, images: Any) -> Any:
        indices = api.encode(model, images)
        return api.to_uint8(api.decode(model, indices)), indices

    @jax.jit
    def distance(params: Any, x: Any, y: Any) -> Any:
        return LPIPS().apply({"params": params}, to_float(x), to_float(y))

    whole = lambda array, count: np.asarray(array)[:count]

    def recons_and_codes(images: UInt8[np.ndarray, "b H W 3"]) -> tuple[np.ndarray, np.ndarray]:
        recons, indices = reconstruct(model, padded(images, size))
        return whole(recons, len(images)), whole(indices, len(images))

    def values(images: np.ndarray, recons: np.ndarray) -> dict[str, np.ndarray]:
        x, y = padded(images, size), padded(recons, size)
        found = {"lpips_vgg": distance(networks.lpips, x, y), "ssim": structural.ssim(x, y)}
        return {name: whole(value, len(images)).astype(np.float64) for name, value in found.items()}

    from vqgan_jax.train import sharding

    model = jax.device_put(model, sharding.replicated(sharding.local_mesh()))
    return recons_and_codes, values


def of_sets(reference: str, samples: str, request: Request, *, size: int | None) -> tuple[list[record.Result], Any]:
    """Two sets of images against each other: folders, .npz with images `arr_0`, or, as reference, of statistics.

    Returns:
      The figures, and a few images of each set.
    """
    chosen = generation.choose(request.metrics, "sets")
    raise NotImplementedError
