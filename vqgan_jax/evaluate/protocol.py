"""A figure with its protocol: the table of metrics, and records that say how each value was measured."""

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from vqgan_jax import data
from vqgan_jax.evaluate import distances, perturbed

NOTHING = "none"  # written out where a field does not apply: an empty one was forgotten
SUBSET = 1000  # of KID, or as many as there are
Track = Callable[[str, int], Callable[[int], None]]  # (what is done, how much there is to do) -> tells how much is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One figure. Every field must be given; text that does not apply is "none".

    Attributes:
      metric: name, with the number of samples in it where the value depends on that: `fid5k`, `fd_vgg512`.
      value: finite.
      unit: what it is of, such as "dB" or "nats a token".
      better: "higher", "lower", or "none" where it is neither.
      variant: which of the definitions in use this is, with its constants.
      subject: what was measured, such as "samples" or "reconstructions of the reference".
      subject_count: how many there were.
      subject_fingerprint: of their pixels, in any order; of codes "none".
      reference: what they were compared with.
      reference_count: how many; 0 without a reference.
      reference_fingerprint: of their pixels after the crop.
      resize: from which size to which, by what filter, and the crop.
      rounding: how pixels became 8 bits.
      network: file of the weights that see the images.
      network_hash: first 16 digits of the SHA-256 of this file.
      model: where the measured model is.
      step: of its training; 0 without a model.
      weights: "ema", "raw" or "none".
      sampling: settings by name; empty where nothing was drawn.
      seed: of everything that is drawn.
      versions: of the programs.

    Raises:
      ValueError: an empty text, a number that is not finite, or a negative count.
    """

    metric: str
    value: float
    unit: str
    better: str
    variant: str
    subject: str
    subject_count: int
    subject_fingerprint: str
    reference: str
    reference_count: int
    reference_fingerprint: str
    resize: str
    rounding: str
    network: str
    network_hash: str
    model: str
    step: int
    weights: str
    sampling: dict[str, Any]
    seed: int
    versions: dict[str, str]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            missing = value is None or value == "" or (field.name == "versions" and not value)
            number = isinstance(value, int | float)
            if missing or (number and not math.isfinite(value)) or (isinstance(value, int) and value < 0):
                raise ValueError(
                    f"a result must say its `{field.name}`: text that is not empty, counts of 0 or more, numbers that "
                    f"are finite; {self.metric or 'one'} has {value!r}. Write {NOTHING!r} where it does not apply."
                )


def named(metric: str, count: int) -> str:
    """The metric's name with its number of samples, whole thousands as `k`: numbers of unequal N are not compared."""
    return f"{metric}{count // 1000}k" if count and count % 1000 == 0 else f"{metric}{count}"


def file_hash(path: Path) -> str:
    """First 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, str]:
    """Returns versions of this package, of what computes for it, and of Python."""
    packages = ("vqgan-jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}


class Summary(NamedTuple):
    """What is known of a set of images; without any arguments, of no set.

    Attributes:
      name: for a record.
      count: how many there are.
      fingerprint: sixteen hexadecimal digits of their pixels, whatever their order.
      moments: of each kind of features.
      rows: features themselves where they are needed, ordered by number.
      resize: what was done to them, in words.
      labels: the class of each, ordered by number; empty where there are none.
      numbers: of each in its source, in order; what could not be read has left a gap.
      rate: images a second that the networks of this process saw, without its first batch; 0 if there was no other.
    """

    name: str = NOTHING
    count: int = 0
    fingerprint: str = NOTHING
    moments: Mapping[str, distances.Moments] = MappingProxyType({})
    rows: Mapping[str, Float[np.ndarray, "n d"]] = MappingProxyType({})
    resize: str = NOTHING
    labels: Int[np.ndarray, "n"] = np.zeros(0, np.int32)
    numbers: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
    rate: float = 0.0

    def resized(self, samples: "Summary") -> str:
        """Returns in words what was done to the images of this reference and to samples."""
        return " | samples: ".join(dict.fromkeys((self.resize, samples.resize)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation returns, whatever its subject.

    Attributes:
      results: the figures.
      title: of the page.
      lead: what was measured, in a sentence.
      reference: statistics of the real images; None where nothing was compared with images.
      sections: what else the page shows: the keyword arguments of `report.evaluation.page`.
    """

    results: list[Result]
    title: str
    lead: str
    reference: Summary | None
    sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, whatever the subject.

    Attributes:
      metrics: names of `METRICS`; the subject's default ones if empty.
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

    @property
    def local_batch(self) -> int:
        """Images at a time in this process."""
        return self.global_batch // jax.process_count()

    def limited(self, source: Any) -> Any:
        """Returns the source, or `limit` of its examples."""
        return data.spread(source, self.limit) if self.limit else source


class Metric(NamedTuple):
    """A row of the table of metrics.

    Attributes:
      subjects: what it measures: a "tokenizer", a "prior" or two "sets" of images.
      network: that sees the images: "vgg", "inception" or "none".
      better: "higher", "lower" or "none".
      variant: its definition, for the record.
      unit: of its values, "none" for a plain number.
      rows: features that it needs one by one; of the others it needs moments.
      least: so many images there must be in either set.
      compare: (reference, samples, seed) -> value, for a metric of two sets.
      perturbed: of a tokenizer: its samples are not reconstructions, but images of perturbed codes.
    """

    subjects: tuple[str, ...]
    network: str
    better: str
    variant: str
    unit: str = "none"
    rows: str = ""
    least: int = 1
    compare: Callable[[Summary, Summary, int], float] | None = None
    perturbed: bool = False


_PIXELS, _DRAWN, _ALL = ("tokenizer",), ("prior", "sets"), ("tokenizer", "prior", "sets")
_INCEPTION = "Inception-2015 pool features, TF1 bilinear resize to 299"
_VGG = "relu5_3 of VGG16, mean over positions; not FID"


def _frechet(subjects: tuple[str, ...], network: str, features: str) -> Metric:
    """Returns the metric of two sets' moments by one network."""
    compare = lambda reference, samples, seed: distances.frechet_distance(
        reference.moments[network], samples.moments[network]
    )
    return Metric(subjects, network, "lower", f"Frechet distance, {features}", least=2, compare=compare)


def _by_rows(network: str, suffix: str, features: str) -> dict[str, Metric]:
    """Returns the metrics of two sets by the single features of one network."""

    def of_rows(compare: Callable[..., tuple[float, float]], which: int) -> Callable[..., float]:
        return lambda reference, samples, seed: compare(reference.rows[network], samples.rows[network], seed)[which]

    kid = of_rows(lambda x, y, seed: distances.kid(x, y, size=min(SUBSET, len(x), len(y)), seed=seed), 0)
    mmd = f"unbiased MMD^2 of (x.y/d + 1)^3, mean of 100 subsets of {SUBSET} or all"
    near = lambda x, y, seed: distances.precision_recall(x, y)
    ball = "in a ball of radius to the 3rd neighbour"
    dense = lambda x, y, seed: distances.density_coverage(x, y)
    rows = {  # better, definition, least number of images, value
        "kid": ("lower", mmd, 2, kid),
        "precision": ("higher", f"samples {ball}", 4, of_rows(near, 0)),
        "recall": ("higher", f"references {ball}", 4, of_rows(near, 1)),
        "density": ("higher", "Naeem 2020, k = 5", 6, of_rows(dense, 0)),
        "coverage": ("higher", "Naeem 2020, k = 5", 6, of_rows(dense, 1)),
    }
    return {
        name + suffix: Metric(_ALL, network, better, f"{variant}, {features}", "none", network, least, value)
        for name, (better, variant, least, value) in rows.items()
    }


METRICS: dict[str, Metric] = {
    "psnr": Metric(_PIXELS, "none", "higher", "mean of each image's 10 log10(1 / MSE), at most 100", "dB"),
    "ssim": Metric(_PIXELS, "none", "higher", "11x11 Gaussian window, sigma 1.5, data range 1, each channel alone"),
    "l1": Metric(_PIXELS, "none", "lower", "mean absolute difference of values in [-1, 1]"),
    "lpips_vgg": Metric(_PIXELS, "vgg", "lower", "LPIPS v0.1 on VGG16, input in [-1, 1], mean over the images"),
    "codebook_usage": Metric(_PIXELS, "none", "higher", "distinct indices over all images / codebook size"),
    "perplexity": Metric(_PIXELS, "none", "higher", "exp of the entropy in nats of one histogram over all images"),
    "rfid": _frechet(_PIXELS, "inception", _INCEPTION),
    "pfd_vgg": _frechet(_PIXELS, "vgg", f"{_VGG}, of {perturbed.PROTOCOL}")._replace(perturbed=True),
    "nll": Metric(("prior",), "none", "lower", "teacher-forced, every token of every sequence", "nats a token"),
    "own_class": Metric(
        ("prior",), "vgg", "higher", "samples whose nearest of up to 16 real crops a class by LPIPS is of their class"
    ),
    "class_accuracy": Metric(("prior",), "classifier", "higher", "samples that a classifier puts in their class"),
    "fd_vgg": _frechet(_ALL, "vgg", _VGG),
    "fid": _frechet(_DRAWN, "inception", _INCEPTION),
    "inception_score": Metric(
        _ALL,
        "inception",
        "higher",
        "splits of about 5000, shuffled, logits without bias",
        rows="logits",
        compare=lambda reference, samples, seed: distances.inception_score(samples.rows["logits"], seed=seed)[0],
    ),
    **_by_rows("vgg", "_vgg", _VGG),
    **_by_rows("inception", "", _INCEPTION),
}
DEFAULT = {
    "tokenizer": ("psnr", "ssim", "l1", "lpips_vgg", "codebook_usage", "perplexity", "fd_vgg"),
    "prior": ("nll", "fd_vgg", "precision_vgg", "recall_vgg", "density_vgg", "coverage_vgg"),
    "sets": ("fd_vgg", "kid_vgg", "precision_vgg", "recall_vgg", "density_vgg", "coverage_vgg"),
}
JUDGED = ("own_class", "class_accuracy")  # of single samples: the share that looks like its class
PLAIN = {"tokenizer": "a tokenizer", "prior": "a prior", "sets": "two sets of images"}


def choose(names: Sequence[str], subject: str) -> dict[str, Metric]:
    """Returns the metrics of these names, or the subject's default ones, all of which work without any file.

    Raises:
      ValueError: there is no such metric, or it is for other subjects.
    """
    fitting = ", ".join(name for name, metric in METRICS.items() if subject in metric.subjects)
    for name in names:
        if name not in METRICS:
            raise ValueError(f"a metric of {PLAIN[subject]} must be one of {fitting}; got {name!r}. Choose of these.")
        if subject not in METRICS[name].subjects:
            others = " or ".join(PLAIN[other] for other in METRICS[name].subjects)
            raise ValueError(
                f"a metric of {PLAIN[subject]} must be one of {fitting}; {name!r} is for {others}. Leave it out."
            )
    return {name: METRICS[name] for name in names or DEFAULT[subject]}


def check_counts(chosen: dict[str, Metric], **counts: int) -> None:
    """Raises ValueError for a set that is too small for a metric; `counts` are the sets' sizes by name."""
    for name, metric in chosen.items():
        for role, count in counts.items():
            if metric.compare is not None and count < metric.least:
                raise ValueError(
                    f"`{name}` needs at least {metric.least} images in each set; {role} has {count}. Add some, or "
                    "leave the metric out."
                )


def compare(chosen: dict[str, Metric], reference: Summary, samples: Summary, *, seed: int) -> dict[str, float]:
    """Returns the values of the metrics, of those chosen, that compare two sets."""
    return {
        name: metric.compare(reference, samples, seed) for name, metric in chosen.items() if metric.compare is not None
    }


def records(
    values: Mapping[str, float],
    chosen: Mapping[str, Metric],
    files: Mapping[str, tuple[str, str]],
    subject: Summary,
    reference: Summary,
    common: Mapping[str, Any],
) -> list[Result]:
    """Returns records of the values that there are.

    Args:
      values: by metric.
      chosen: the metrics.
      files: name and hash of the weights' file, by network.
      subject: what was measured.
      reference: what it was compared with.
      common: the other fields of `Result`, from `resize` to `seed`.
    """
    made = []
    for name, metric in chosen.items():
        if name not in values:
            continue
        counted = metric.compare is not None or name in JUDGED
        network, network_hash = files.get(metric.network, (NOTHING, NOTHING))
        result = Result(
            metric=named(name, subject.count) if counted else name,
            value=values[name],
            unit=metric.unit,
            better=metric.better,
            variant=metric.variant,
            subject=subject.name,
            subject_count=subject.count,
            subject_fingerprint=subject.fingerprint,
            reference=reference.name,
            reference_count=reference.count,
            reference_fingerprint=reference.fingerprint,
            network=network,
            network_hash=network_hash,
            versions=versions(),
            **common,
        )
        made.append(result)
    return made


def swept_settings(results: Sequence[Result]) -> list[str]:
    """Returns names of the sampling settings that are not the same for all results that have them."""
    values: dict[str, set[str]] = {}
    for result in results:
        for name, value in result.sampling.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, different in values.items() if len(different) > 1]
