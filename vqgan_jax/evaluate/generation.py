"""What can be measured, by name: one row a metric. Those of two sets of images are computed here from summaries."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vqgan_jax.evaluate import distances
from vqgan_jax.evaluate.collection import Summary
from vqgan_jax.evaluate.frechet import frechet_distance
from vqgan_jax.evaluate.inception_score import inception_score

SUBSET = 1000  # of KID, or as many as there are


class Metric(NamedTuple):
    """A row of the table.

    Attributes:
      subjects: what it is for: a "tokenizer", a "prior" or two "sets" of images.
      network: that sees the images: "vgg", "inception" or "none".
      better: "higher", "lower" or "none".
      variant: its definition, for the record.
      unit: of its values, "none" for a plain number.
      rows: features that it needs one by one; of the others it needs moments.
      least: so many images there must be in either set.
      compare: (reference, samples, seed) -> value, for a metric of two sets.
    """

    subjects: tuple[str, ...]
    network: str
    better: str
    variant: str
    unit: str = "none"
    rows: str = ""
    least: int = 1
    compare: Callable[[Summary, Summary, int], float] | None = None


def _frechet(features: str) -> Callable[[Summary, Summary, int], float]:
    return lambda reference, samples, seed: frechet_distance(reference.moments[features], samples.moments[features])


def _kid(features: str) -> Callable[[Summary, Summary, int], float]:
    return lambda reference, samples, seed: distances.kid(
        reference.rows[features], samples.rows[features], size=min(SUBSET, reference.count, samples.count), seed=seed
    )[0]


def _near(function: Callable[..., tuple[float, float]], features: str, which: int) -> Callable[..., float]:
    return lambda reference, samples, seed: function(reference.rows[features], samples.rows[features])[which]


IMAGES, ALL = ("prior", "sets"), ("tokenizer", "prior", "sets")


def _of_features(network: str, suffix: str, seen: str) -> dict[str, Metric]:
    """The metrics of two sets by one network's features."""
    row = lambda better, variant, least, compare: Metric(
        ALL, network, better, f"{variant}, {seen}", rows=network, least=least, compare=compare
    )
    near = lambda function, which: _near(function, network, which)
    kid = f"unbiased MMD^2 of (x.y/d + 1)^3, mean of 100 subsets of {SUBSET} or all"
    nearest = "in a ball of radius to the 3rd neighbour"
    return {
        f"kid{suffix}": row("lower", kid, 2, _kid(network)),
        f"precision{suffix}": row("higher", f"samples {nearest}", 4, near(distances.precision_recall, 0)),
        f"recall{suffix}": row("higher", f"references {nearest}", 4, near(distances.precision_recall, 1)),
        f"density{suffix}": row("higher", "Naeem 2020, k = 5", 6, near(distances.density_coverage, 0)),
        f"coverage{suffix}": row("higher", "Naeem 2020, k = 5", 6, near(distances.density_coverage, 1)),
    }


_INCEPTION = "Inception-2015 pool features, TF1 bilinear resize to 299"
_VGG = "relu5_3 of VGG16, mean over positions; not FID"
_PIXELS = ("tokenizer",)
_FID = Metric((), "inception", "lower", f"Frechet distance, {_INCEPTION}", least=2, compare=_frechet("inception"))

METRICS: dict[str, Metric] = {
    "psnr": Metric(_PIXELS, "none", "higher", "mean of each image's 10 log10(1 / MSE), at most 100", "dB"),
    "ssim": Metric(_PIXELS, "none", "higher", "11x11 Gaussian window, sigma 1.5, data range 1, each channel alone"),
    "l1": Metric(_PIXELS, "none", "lower", "mean absolute difference of values in [-1, 1]"),
    "lpips_vgg": Metric(_PIXELS, "vgg", "lower", "LPIPS v0.1 on VGG16, input in [-1, 1], mean over the images"),
    "codebook_usage": Metric(_PIXELS, "none", "higher", "distinct indices over all images / codebook size"),
    "perplexity": Metric(_PIXELS, "none", "higher", "exp of the entropy in nats of one histogram over all images"),
    "rfid": _FID._replace(subjects=_PIXELS),
    "nll": Metric(("prior",), "none", "lower", "teacher-forced, every token of every sequence", "nats a token"),
    "own_class": Metric(
        ("prior",), "vgg", "higher", "samples whose nearest of up to 16 real crops a class by LPIPS is of their class"
    ),
    "fd_vgg": _FID._replace(
        subjects=ALL, network="vgg", variant=f"Frechet distance, {_VGG}", compare=_frechet("vgg")
    ),
    "fid": _FID._replace(subjects=IMAGES),
    "inception_score": Metric(
        ALL, "inception", "higher", "splits of about 5000, shuffled, logits without bias", rows="logits",
        compare=lambda reference, samples, seed: inception_score(samples.rows["logits"], seed=seed)[0],
    ),
    **_of_features("vgg", "_vgg", _VGG),
    **_of_features("inception", "", _INCEPTION),
}  # fmt: skip

DEFAULT = {
    "tokenizer": ("psnr", "ssim", "l1", "lpips_vgg", "codebook_usage", "perplexity", "fd_vgg"),
    "prior": ("nll", "fd_vgg", "precision_vgg", "recall_vgg", "density_vgg", "coverage_vgg"),
    "sets": ("fd_vgg", "kid_vgg", "precision_vgg", "recall_vgg", "density_vgg", "coverage_vgg"),
}
PLAIN = {"tokenizer": "a tokenizer", "prior": "a prior", "sets": "two sets of images"}


def choose(names: Sequence[str], subject: str) -> dict[str, Metric]:
    """The metrics of these names, or the subject's default ones, all of which work without any file.

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


def kept(chosen: dict[str, Metric]) -> frozenset[str]:
    """Features of which the rows are needed."""
    return frozenset(metric.rows for metric in chosen.values() if metric.rows)


def compare(chosen: dict[str, Metric], reference: Summary, samples: Summary, *, seed: int) -> dict[str, float]:
    """The metrics, of those chosen, that compare two sets."""
    return {
        name: metric.compare(reference, samples, seed) for name, metric in chosen.items() if metric.compare is not None
    }
