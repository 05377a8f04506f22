"""A prior: the likelihood of every held-out token, and samples by one or many settings against real images."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax import data, models
from vqgan_jax import prior as priors
from vqgan_jax.conditions import Condition
from vqgan_jax.evaluate import drawing, likeness, protocol
from vqgan_jax.evaluate.classifier import Classifier
from vqgan_jax.evaluate.features import Networks, open_networks
from vqgan_jax.evaluate.of_images import (
    ROUNDING,
    Collector,
    collect,
    crops,
    gallery,
    in_order,
    numbered,
    numbers_of,
    open_images,
)
from vqgan_jax.evaluate.protocol import Evaluation, Metric, Request, Summary
from vqgan_jax.train import program, sharding, stage2

NEAREST = 3
CHUNK = 8  # batches that are drawn before their statistics are taken
SHOWN = 32  # samples to look at
SWEPT: Mapping[str, Callable[[str], Any]] = {
    "top_k": int,
    **dict.fromkeys(("temperature", "top_p", "guidance", "power", "accept_rate"), float),
}
JUDGES = {  # what "own class" means in the table of classes, by the figure that fills it; the first one measured does
    "own_class": "the real image nearest to the sample by LPIPS, of up to 16 a class, is of its class",
    "class_accuracy": "the classifier finds the sample's class the likeliest",
}
Judge = Callable[[UInt8[np.ndarray, "n H W 3"]], Int[np.ndarray, "n"]]  # the class that each image looks like
ClassRow = tuple[str, int, float, int, float]  # name, held-out examples, nats a token, samples, share of own class


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What to draw.

    Attributes:
      samples: how many, over all processes; 0 for none.
      settings: of `sample_indices`, each a set of its own.
      reference: "validation" or "train", or a folder or .npz of images.
      neighbours: of so many samples the nearest training images are looked for.
      scorer: tells the samples that a setting's `accept_rate` keeps; None without such a setting.
      classifier: of the training images, for `class_accuracy`; None where that is not measured.
    """

    samples: int
    settings: Sequence[Mapping[str, Any]]
    reference: str = "validation"
    neighbours: int = 0
    scorer: drawing.Scorer | None = None
    classifier: Classifier | None = None


def evaluate(prior: models.Prior, request: Request, draws: DrawRequest, *, workdir: str) -> Evaluation:
    """Measures the likelihood of held-out tokens, and samples against real images.

    Raises:
      ValueError: a metric of others than priors, too few images for one, or one that needs samples without any.
      FileNotFoundError: a metric's network is not there.
    """
    chosen = choose(prior, request, draws)
    images = image_config(prior, workdir)
    source = open_reference(request, draws, images) if chosen.keys() - {"nll"} else None
    if source is not None:
        if "own_class" in chosen:
            check_names(source, images)
        protocol.check_counts(chosen, samples=draws.samples, reference=len(source))
    networks = open_networks(chosen.values(), request.inception)
    files = networks.files | ({"classifier": draws.classifier.file} if draws.classifier else {})
    run = {"model": workdir, "step": prior.step, "weights": prior.weights, "seed": request.seed}
    results, nats = [], np.zeros((0, 2))
    if "nll" in chosen:  # of tokens, which no pixels were compared for
        nats = likelihoods(prior, request)
        subject = Summary(f"codes of {prior.config.data.source}, held out", len(nats))
        fields = {"resize": "as the tokenizer's images were", "rounding": protocol.NOTHING, "sampling": {}}
        values = {"nll": float(np.mean(nats[:, 1]))}
        results += protocol.records(values, chosen, files, subject, Summary(), run | fields)
    title, lead = "A prior, measured", f"{workdir}, step {prior.step}, {prior.weights} weights."
    if source is None:
        sections: dict[str, Any] = {"classes": class_rows(prior, (), nats)}
        return Evaluation(results=results, title=title, lead=lead, reference=None, sections=sections)
    size = prior.config.data.image_size
    real = collect(source, request, networks, size=size, name="real images")
    judges: dict[str, Judge] = {}
    if "own_class" in chosen:
        judges["own_class"] = nearest_judge(networks, *gallery(source, real, size))
    if "class_accuracy" in chosen and draws.classifier is not None:
        judges["class_accuracy"] = draws.classifier.labels
    first, shares = [], []
    for i, options in enumerate(draws.settings):
        name = f"drawing {i + 1} of {len(draws.settings)}"
        numbers = accepted(prior, request, draws, options, name)
        drawn, shown, looks = draw(prior, request, networks, numbers, options, judges, name=name)
        first.append(shown)
        shares.append((drawn.labels, looks))
        values = protocol.compare(chosen, real, drawn, seed=request.seed)
        values |= {judge: float(np.mean(drawn.labels == look)) for judge, look in looks.items()}
        fields = {"resize": real.resized(drawn), "rounding": ROUNDING, "sampling": dict(options)}
        results += protocol.records(values, chosen, files, drawn, real, run | fields)
    swept = protocol.swept_settings(results)
    names = [", ".join(f"{name} {options[name]}" for name in swept) or "samples" for options in draws.settings]
    labels, looks = shares[0]
    judge = next((judge for judge in JUDGES if judge in looks), "")
    classes = class_rows(prior, source.class_names, nats, labels, looks.get(judge))
    sections = {"samples": dict(zip(names, first, strict=True)), "classes": classes, "judge": JUDGES.get(judge, "")}
    if draws.neighbours:
        others = data.spread(program.open_split(images, images.data.eval_split), draws.neighbours)
        held_out = crops(others, range(len(others)), size)
        samples = first[0][: draws.neighbours]
        sections["neighbours"] = neighbours(prior, request, networks, images, samples, held_out)
    return Evaluation(results=results, title=title, lead=lead, reference=real, sections=sections)


def nearest_judge(networks: Networks, references: UInt8[np.ndarray, "r H W 3"], labels: Int[np.ndarray, "r"]) -> Judge:
    """Returns a function that gives images the class of the nearest of these references by LPIPS."""
    return lambda images: likeness.nearest_labels(networks.lpips, images, references, labels)


def check_names(source: Any, images: Any) -> None:
    """Raises ValueError for references whose labels do not number the classes of the prior's data."""
    theirs, ours = (tuple(each.class_names) for each in (source, program.open_split(images, images.data.eval_split)))
    if theirs != ours:
        text = lambda names: f"{len(names)} classes, {', '.join(names[:3])} ..." if names else "none"
        raise ValueError(
            f"`own_class` needs references of the prior's {text(ours)}; {source.name} has {text(theirs)}. Name a split "
            "of the run as the --reference, or leave the metric out."
        )


def choose(prior: models.Prior, request: Request, draws: DrawRequest) -> dict[str, Metric]:
    """Returns the metrics, of a prior that has no samples its likelihood only; errors as of `evaluate`."""
    chosen = protocol.choose(request.metrics, "prior")
    if not request.metrics and not draws.samples:
        chosen = {"nll": chosen["nll"]}
    of_samples = [name for name in chosen if name != "nll"]
    if of_samples and not draws.samples:
        raise ValueError(
            f"`{of_samples[0]}` is of samples, of which none are asked for. Give --samples, or leave it out."
        )
    if draws.neighbours > min(SHOWN, draws.samples):
        raise ValueError(f"`--neighbours` must be at most {SHOWN}, and `--samples`; got {draws.neighbours}. Lower it.")
    check_judges(chosen, prior.module.condition, has_classifier=draws.classifier is not None)
    if "class_accuracy" in chosen and draws.classifier is not None:
        variant = f"samples that {draws.classifier.name} puts in their class"
        chosen["class_accuracy"] = chosen["class_accuracy"]._replace(variant=variant)
    for rate in {options.get("accept_rate", 1.0) for options in draws.settings} - {1.0}:
        if not 0 < rate < 1 or draws.scorer is None or not prior.module.condition.num_labels:
            raise ValueError(
                f"`accept_rate` must be in (0, 1], of a class-conditional prior and with a `--scorer` or a "
                f"`--classifier`; got {rate}. Give one, or leave it out."
            )
    return chosen


def check_judges(chosen: Collection[str], condition: Condition, *, has_classifier: bool) -> None:
    """Raises ValueError for a figure of classes without classes, or without the classifier that it needs."""
    for name in protocol.JUDGED:
        if name in chosen and not condition.num_labels:
            raise ValueError(f"`{name}` is of a class-conditional prior; this one has no classes. Leave it out.")
    if "class_accuracy" in chosen and not has_classifier:
        raise ValueError("`class_accuracy` needs a classifier. Give `vqgan evaluate` a --classifier, or leave it out.")


def open_reference(request: Request, draws: DrawRequest, images: Any) -> Any:
    """Returns the source of the real images: a split of the config `images`, or a folder or .npz."""
    splits = {"validation": images.data.eval_split, "train": images.data.train_split}
    if draws.reference in splits:
        return request.limited(program.open_split(images, splits[draws.reference]))
    return open_images(draws.reference)


def image_config(prior: models.Prior, workdir: str) -> Any:
    """Returns the config that names the prior's images: its own, or, of a run on a token cache, its tokenizer's."""
    if not data.is_cache(prior.config.data.source):
        return prior.config
    config = models.config_of(models.find_tokenizer(prior.config.tokenizer.workdir, near=workdir))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=prior.config.data.image_size))


def likelihoods(prior: models.Prior, request: Request) -> Float[np.ndarray, "n 2"]:
    """Returns first condition token and nats a token of every held-out example, or of `limit`, over all processes."""
    source = request.limited(program.open_examples(prior.config, "validation"))
    mesh, done, numbers, rows = sharding.local_mesh(), 0, [], []
    placed = jax.device_put(prior, sharding.replicated(mesh))
    batches = program.held_out_batches(prior.config, source, len(source), request.global_batch)
    progress = request.track("likelihood", -(-len(source) // jax.process_count()))
    for i, batch in enumerate(batches):
        mask = np.asarray(batch.pop("mask"))
        first, nll = measured(placed, jax.device_put(dict(batch), jax.NamedSharding(mesh, sharding.BATCH)))
        nats = np.asarray(nll, np.float64).mean(axis=1)
        rows.append(np.stack([np.asarray(first, np.float64), nats], axis=1)[mask])
        numbers.append(numbers_of(i, mask, **program.share()))
        progress(done := done + int(mask.sum()))
    return in_order(numbers, rows)


@jax.jit
def measured(prior: models.Prior, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Returns first condition token of each example, and nats of each of its tokens."""
    condition, indices = stage2.codes(prior.module, prior.tokenizer.module, prior.frozen, batch)
    return condition[:, 0], priors.nll(prior.module, prior.params, condition, indices)


def subjects_of(prior: models.Prior, count: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Label, number within its label, and rows of each of `count` samples: classes in turn, each equally often."""
    condition = prior.module.condition
    if condition.argument == "condition":
        subjects = drawing.held_out(prior, count)
        which = np.arange(count) % len(subjects.labels)
        return subjects.labels[which], np.arange(count), {name: rows[which] for name, rows in subjects.rows.items()}
    classes = condition.num_labels or 1
    return np.arange(count, dtype=np.int32) % classes, np.arange(count) // classes, {}


def accepted(
    prior: models.Prior, request: Request, draws: DrawRequest, options: Mapping[str, Any], name: str
) -> Int[np.ndarray, "n"]:
    """Returns numbers of the samples that count: all, or the best of more of each class (section 4.4 of the paper).

    What is refused is drawn, scored and forgotten, and what is accepted is drawn again, because a sample is known by
    its number: so memory does not grow with the rate, and any number of processes accepts the same.
    """
    rate, count = options.get("accept_rate", 1.0), draws.samples
    if rate == 1.0 or draws.scorer is None:
        return np.arange(count)
    parts = []
    candidates = np.arange(math.ceil(count / rate))
    for part, images, labels in drawn_chunks(prior, request, candidates, options, f"{name}, to choose"):
        parts.append((part, drawing.scored(draws.scorer, images, labels), labels))
    numbers, scores, classes = zip(*parts, strict=True)
    everyone, labels = in_order(numbers, scores), in_order(numbers, classes)
    counts = np.bincount(labels[:count], minlength=prior.module.condition.num_labels)
    best = []
    for label in np.flatnonzero(counts):  # few samples may leave a class out
        rows = np.flatnonzero(labels == label)
        best.append(rows[drawing.best(everyone[rows], labels[rows], int(counts[label]))])
    return np.sort(np.concatenate(best))


def draw(
    prior: models.Prior,
    request: Request,
    networks: Networks,
    which: Int[np.ndarray, "n"],
    options: Mapping[str, Any],
    judges: Mapping[str, Judge],
    *,
    name: str,
) -> tuple[Summary, UInt8[np.ndarray, "_ H W 3"], dict[str, Int[np.ndarray, "n"]]]:
    """Draws the samples `which`, this process its share; no two samples have one key.

    Returns:
      Their statistics, the first of them, and the class that each looks like, by judge.
    """
    collector, first, classes = Collector(networks.run, keep=networks.keep), [], []
    looks: dict[str, list[np.ndarray]] = {judge: [] for judge in judges}
    for part, images, labels in drawn_chunks(prior, request, which, options, name):
        collector.add(part, images, batch_size=request.local_batch)
        classes.append(labels)
        first = [*first, *images[: SHOWN - len(first)]]
        for judge, look in judges.items():
            looks[judge].append(look(images))
    side = prior.config.data.image_size
    summary = collector.summary("samples", f"none, drawn at {side}x{side}", classes)
    return summary, np.stack(first), {judge: in_order(collector.numbers, rows) for judge, rows in looks.items()}


def drawn_chunks(
    prior: models.Prior, request: Request, which: Int[np.ndarray, "n"], options: Mapping[str, Any], name: str
) -> Iterator[tuple[Int[np.ndarray, "_b"], UInt8[np.ndarray, "_b H W 3"], Int[np.ndarray, "_b"]]]:
    """Yields places in `which`, images and labels of this process's share of these samples, some batches at a time."""
    labels, numbers, rows = subjects_of(prior, int(which.max()) + 1)
    options = {key: value for key, value in options.items() if key != "accept_rate"}
    mine = np.arange(jax.process_index(), len(which), jax.process_count())
    prior = jax.device_put(prior, sharding.replicated(sharding.local_mesh()))
    progress, size = request.track(name, len(mine)), CHUNK * request.local_batch
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        images, _ = drawing.draw(
            prior,
            labels[which[part]],
            numbers[which[part]],
            seed=request.seed,
            batch_size=request.local_batch,
            options=options,
            rows={key: row[which[part]] for key, row in rows.items()},
            progress=lambda done: progress(start + done),  # noqa: B023
        )
        yield part, images, labels[which[part]]


def class_rows(
    prior: models.Prior,
    names: Sequence[str],
    likelihood: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "_s"] | None = None,
    looks: Int[np.ndarray, "_s"] | None = None,
) -> list[ClassRow]:
    """Returns the table of classes, NaN for what was not measured; empty for a prior without classes."""
    rows, labels = [], np.zeros(0) if labels is None else labels
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
    for label in range(prior.module.condition.num_labels):
        nats, drawn = likelihood[likelihood[:, 0] == label, 1], labels == label
        own = float("nan") if looks is None else mean(looks[drawn] == label)
        name = names[label] if label < len(names) else str(label)
        rows.append((name, len(nats), mean(nats), int(drawn.sum()), own))
    return rows


def neighbours(
    prior: models.Prior, request: Request, networks: Networks, images: Any, samples: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds the training images nearest to each sample by LPIPS, and how near held-out images come to any.

    Where a run mirrors its images, their mirror images are training images, too.

    Returns:
      Samples, images nearest to each (n*NEAREST H W 3), their LPIPS (n NEAREST), and that of the nearest of each of
      as many held-out images.
    """
    source = program.open_split(images, images.data.train_split)
    size, progress, seen = prior.config.data.image_size, request.track("neighbours", len(source)), []
    batches = data.evaluation_batches(source, image_size=size, batch_size=request.local_batch)

    def references() -> Iterator[np.ndarray]:
        for numbers, batch in numbered(batches, process_index=0, process_count=1):
            mirrored = [False, True][: 1 + images.data.flip]
            seen.extend((side, numbers) for side in mirrored)
            yield np.concatenate([batch["image"][:, :, ::-1] if side else batch["image"] for side in mirrored])
            progress(sum(len(part) for side, part in seen if not side))

    queries = np.concatenate([samples, held_out[: len(samples)]])
    places, distances = likeness.nearest_images(networks.lpips, queries, references(), count=NEAREST)
    nearest = places[: len(samples)].reshape(-1)
    near = crops(source, np.concatenate([numbers for _, numbers in seen])[nearest].tolist(), size)
    turned = np.concatenate([np.full(len(numbers), side) for side, numbers in seen])[nearest]
    near = np.where(turned[:, None, None, None], near[:, :, ::-1], near)
    return samples, near, distances[: len(samples)], distances[len(samples) :, 0]


def settings(base: Mapping[str, Any], sweep: str) -> list[dict[str, Any]]:
    """Returns all combinations of `top_k:50,100;guidance:1,2` over the base settings, the last name changing fastest.

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
