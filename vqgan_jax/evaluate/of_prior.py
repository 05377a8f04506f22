"""A prior: the likelihood of every held-out token, and samples by one or many settings against real images."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from vqgan_jax import data, drawing, models
from vqgan_jax import prior as priors
from vqgan_jax.data.conditions import ClassLabel
from vqgan_jax.evaluate import generation, likeness, of_samples, record
from vqgan_jax.evaluate.collection import Numbered
from vqgan_jax.evaluate.gathering import gather, numbered
from vqgan_jax.evaluate.of_images import (
    ROUNDING,
    Networks,
    Request,
    Seen,
    collect,
    compared,
    open_images,
    open_networks,
    results,
)
from vqgan_jax.train import program, sharding, stage2

NEAREST = 3
SWEPT: Mapping[str, Callable[[str], Any]] = {
    "top_k": int, "temperature": float, "top_p": float, "guidance": float, "power": float, "accept_rate": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What to draw.

    Attributes:
      samples: how many, over all processes; 0 for none.
      settings: of `sample_indices`, each a set of its own.
      reference: "validation" or "train", or a folder or .npz of images.
      neighbours: of so many samples the nearest training images are looked for.
      scorer: tells the samples that a setting's `accept_rate` keeps; None without such a setting.
    """

    samples: int
    settings: Sequence[Mapping[str, Any]]
    reference: str
    neighbours: int
    scorer: drawing.Scorer | None = None


class Report(NamedTuple):
    """What was found of a prior.

    Attributes:
      results: the figures, for each of the settings in turn.
      reference: the real images, None if nothing was drawn.
      samples: the first of each setting.
      classes: rows of the table of classes: name, held-out examples, nats a token, samples, share of own class.
      neighbours: samples, images nearest to each, their LPIPS, and what held-out images have; None if not asked for.
    """

    results: list[record.Result]
    reference: Seen | None
    samples: list[UInt8[np.ndarray, "n H W 3"]]
    classes: list[tuple[str, int, float, int, float]]
    neighbours: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None


def evaluate(prior: models.Prior, request: Request, asked: Asked, *, workdir: str) -> Report:
    """Likelihood and samples.

    Raises:
      ValueError: a metric of others than priors, too few images for one, or one that needs samples without any.
      FileNotFoundError: a metric's network is not there.
    """
    chosen = generation.choose(request.metrics, "prior")
    if not request.metrics and not asked.samples:
        chosen = {"nll": chosen["nll"]}
    pictured = [name for name in chosen if name != "nll"]
    if pictured and not asked.samples:
        raise ValueError(
            f"`{pictured[0]}` is of samples, of which none are asked for. Give --samples, or leave it out."
        )
    if "own_class" in chosen and not isinstance(prior.module.condition, ClassLabel):
        raise ValueError("`own_class` is of a class-conditional prior; this one has no classes. Leave it out.")
    for rate in {options.get("accept_rate", 1.0) for options in asked.settings} - {1.0}:
        if not 0 < rate < 1 or asked.scorer is None or not isinstance(prior.module.condition, ClassLabel):
            raise ValueError(
                f"`accept_rate` must be in (0, 1], of a class-conditional prior and with a `--scorer`; got {rate}. "
                "Give a scorer, or leave it out."
            )
    images = image_config(prior, workdir)
    place = lambda name: {"validation": images.data.eval_split, "train": images.data.train_split}.get(name, "")
    common = {"model": workdir, "step": prior.step, "weights": prior.weights, "seed": request.seed}
    found, nll_rows = [], np.zeros((0, 2))
    source = None
    if pictured:
        split = place(asked.reference)
        source = request.limited(program.open_split(images, split)) if split else open_images(asked.reference)
        generation.check_counts(chosen, samples=asked.samples, reference=len(source))
    networks = open_networks(chosen, request.inception)
    if "nll" in chosen:
        nll_rows = likelihoods(prior, request)
        found += of_likelihood(float(np.mean(nll_rows[:, 1])), len(nll_rows), chosen, networks, prior, common)
    if source is None:
        return Report(found, None, [], class_rows(prior, (), nll_rows, None), None)
    size, keep = prior.config.data.image_size, generation.kept(chosen)
    seen = collect(source, request, networks, size=size, keep=keep, name="real images")
    firsts, drawn = [], None
    for i, options in enumerate(asked.settings):
        title = f"drawing {i + 1} of {len(asked.settings)}"
        gallery = seen.gallery if "own_class" in chosen else None
        which = of_samples.accepted(prior, request, asked.samples, asked.scorer, options, title)
        drawn = of_samples.draw(prior, request, networks, which, options, keep=keep, gallery=gallery, title=title)
        values = generation.compare(chosen, seen.summary, drawn.summary, seed=request.seed)
        if gallery is not None:
            values["own_class"] = float(np.mean(drawn.labels == drawn.looks))
        judged = seen._replace(summary=drawn.summary, resize=f"none, drawn at {size}x{size}")
        fields = common | compared(source.name, seen, judged) | {"subject": "samples", "sampling": dict(options)}
        found += results(values, chosen, networks, rounding=ROUNDING, **fields)
        firsts.append(drawn.first)
    near = None
    if asked.neighbours:
        near = neighbours(prior, request, networks, images, firsts[0][: asked.neighbours], seen.gallery[0])
    return Report(found, seen, firsts, class_rows(prior, seen.class_names, nll_rows, drawn), near)


def image_config(prior: models.Prior, workdir: str) -> Any:
    """The config that names the prior's images: its own, or, of a run on a token cache, its tokenizer's."""
    if not data.is_cache(prior.config.data.source):
        return prior.config
    config = models.config_of(models.find_tokenizer(prior.config.tokenizer.workdir, near=workdir))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=prior.config.data.image_size))


def likelihoods(prior: models.Prior, request: Request) -> Float[np.ndarray, "n 2"]:
    """First condition token and nats a token of every held-out example, or of `limit`, over all processes, in order."""
    source = request.limited(program.open_examples(prior.config, "validation"))
    mesh = sharding.local_mesh()
    placed = jax.device_put(prior, sharding.replicated(mesh))
    batches = program.held_out_batches(prior.config, source, len(source), request.global_batch)
    told, done, numbers, found = request.track("likelihood", -(-len(source) // jax.process_count())), 0, [], []
    for i, batch in enumerate(batches):
        mask = np.asarray(batch.pop("mask"))
        first, nll = measured(placed, jax.device_put(dict(batch), jax.NamedSharding(mesh, sharding.BATCH)))
        nats = np.asarray(nll, np.float64).mean(axis=1)
        found.append(np.stack([np.asarray(first, np.float64), nats], axis=1)[mask])
        share = (i * jax.process_count() + jax.process_index()) * len(mask)
        numbers.append((share + np.arange(len(mask)))[mask])
        told(done := done + int(mask.sum()))
    return gather(np.concatenate(found))[np.argsort(gather(np.concatenate(numbers)))]


@jax.jit
def measured(prior: models.Prior, batch: dict[str, Any]) -> tuple[Any, Any]:
    """First condition token of each example, and nats of each of its tokens."""
    condition, indices = stage2.codes(prior.module, prior.tokenizer.module, prior.frozen, batch)
    return condition[:, 0], priors.nll(prior.module, prior.params, condition, indices)


def of_likelihood(
    value: float, count: int, chosen: Mapping[str, generation.Metric], networks: Networks, prior: Any, common: Any
) -> list[record.Result]:
    """The record of the likelihood: of tokens, which no pixels were compared for."""
    nothing = record.NOTHING
    return results(
        {"nll": value}, chosen, networks, subject=f"codes of {prior.config.data.source}, held out",
        subject_count=count, subject_fingerprint=nothing, reference=nothing, reference_count=0,
        reference_fingerprint=nothing, resize="as the tokenizer's images were", rounding=nothing, sampling={}, **common,
    )  # fmt: skip


def class_rows(
    prior: models.Prior, names: Sequence[str], likelihood: Float[np.ndarray, "n 2"], drawn: of_samples.Drawn | None
) -> list[tuple[str, int, float, int, float]]:
    """The table of classes; empty for a prior without."""
    if not isinstance(prior.module.condition, ClassLabel):
        return []
    rows = []
    for label in range(prior.config.condition.num_classes):
        nats = likelihood[likelihood[:, 0] == label, 1]
        own = drawn.looks[drawn.labels == label] == label if drawn is not None else np.zeros(0)
        name = names[label] if label < len(names) else str(label)
        mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
        rows.append((name, len(nats), mean(nats), len(own), mean(own)))
    return rows


def neighbours(
    prior: models.Prior, request: Request, networks: Networks, images: Any, samples: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The training images nearest to each sample by LPIPS, and how near held-out images come to any.

    Returns:
      Samples, images nearest to each (n*NEAREST H W 3), their LPIPS (n NEAREST), and that of the nearest of each of
      as many held-out images.
    """
    source = program.open_split(images, images.data.train_split)
    size, told, numbers = prior.config.data.image_size, request.track("neighbours", len(source)), []
    batches = data.evaluation_batches(source, image_size=size, batch_size=request.local_batch)

    def references() -> Iterator[np.ndarray]:
        for found, batch in numbered(batches, process_index=0, process_count=1):
            numbers.extend(found)
            yield batch["image"]
            told(len(numbers))

    queries = np.concatenate([samples, held_out[: len(samples)]])
    places, distances = likeness.nearest_images(networks.lpips, queries, references(), count=NEAREST)
    near = Numbered(source, np.array(numbers)[places[: len(samples)]].reshape(-1).tolist())
    (batch,) = data.evaluation_batches(near, image_size=size, batch_size=len(near))
    return samples, batch["image"], distances[: len(samples)], distances[len(samples) :, 0]


def settings(base: Mapping[str, Any], sweep: str) -> list[dict[str, Any]]:
    """All combinations of `top_k:50,100;guidance:1,2` over the base settings, the last name changing fastest.

    `accept_rate` is of the evaluation: the share of the samples of each class that count, those with the best scores.

    Raises:
      ValueError: a text of another form, or a setting that there is not.
    """
    axes: dict[str, list[Any]] = {}
    for part in filter(None, sweep.split(";")):
        name, _, values = part.strip().partition(":")
        try:
            axes[name] = [SWEPT[name](value) for value in values.split(",")]
        except (KeyError, ValueError):
            raise ValueError(
                f"a sweep must look like top_k:50,100;guidance:1,2, of {', '.join(SWEPT)}; got {part!r}. Correct it."
            ) from None
    others = {name: value for name, value in base.items() if name not in axes}  # those of the sweep come last, in order
    return [others | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
