"""Samples of a prior: which of them count, and what is known of those."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vqgan_jax import drawing, inputs, models
from vqgan_jax.evaluate import likeness
from vqgan_jax.evaluate.collection import Collector, Summary
from vqgan_jax.evaluate.gathering import gather
from vqgan_jax.evaluate.of_images import Networks, Request
from vqgan_jax.train import sharding

CHUNK = 8  # batches that are drawn before their statistics are taken
SHOWN = 32  # samples to look at


class Drawn(NamedTuple):
    """Samples of one setting: their statistics, the first of them, the class of each and that which it looks like."""

    summary: Summary
    first: UInt8[np.ndarray, "n H W 3"]
    labels: Int[np.ndarray, "n"]
    looks: Int[np.ndarray, "n"]


def subjects_of(prior: models.Prior, count: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Label, number within its label, and rows of each of `count` samples: classes in turn, each equally often."""
    condition = prior.module.condition
    if condition.argument == "condition":
        given = inputs.held_out(prior, count)
        which = np.arange(count) % len(given.labels)
        return given.labels[which], np.arange(count), {name: rows[which] for name, rows in given.rows.items()}
    classes = condition.num_labels or 1
    return np.arange(count, dtype=np.int32) % classes, np.arange(count) // classes, {}


def accepted(
    prior: models.Prior,
    request: Request,
    count: int,
    scorer: drawing.Scorer | None,
    options: Mapping[str, Any],
    title: str,
) -> Int[np.ndarray, "n"]:
    """Numbers of the samples that count: all, or the best of more of each class (section 4.4 of the paper).

    What is refused is drawn, scored and forgotten, and what is accepted is drawn again, because a sample is known by
    its number: so memory does not grow with the rate, and any number of processes accepts the same.
    """
    rate = options.get("accept_rate", 1.0)
    if rate == 1.0 or scorer is None:
        return np.arange(count)
    labels, numbers, _ = subjects_of(prior, math.ceil(count / rate))
    mine = np.arange(jax.process_index(), len(labels), jax.process_count())
    told, size, scores = request.track(f"{title}, to choose", len(mine)), CHUNK * request.local_batch, []
    drawn = {name: value for name, value in options.items() if name != "accept_rate"}
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        images, _ = drawing.draw(
            prior, labels[part], numbers[part], seed=request.seed, batch_size=request.local_batch, options=drawn
        )
        scores.append(drawing.scored(scorer, images, labels[part]))
        told(start + len(part))
    everyone = gather(np.concatenate(scores))[np.argsort(gather(mine))]
    wanted = np.bincount(labels[:count], minlength=prior.module.condition.num_labels)
    best = [drawing.best(everyone[labels == c], labels[labels == c], n) for c, n in enumerate(wanted.tolist())]
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[kept] for c, kept in enumerate(best)]))


def draw(
    prior: models.Prior, request: Request, networks: Networks, which: Int[np.ndarray, "n"],
    options: Mapping[str, Any], *, keep: frozenset[str], gallery: tuple[np.ndarray, np.ndarray] | None, title: str,
) -> Drawn:  # fmt: skip
    """Draws this process's share of the samples `which`, some batches at a time; no two samples have one key."""
    labels, numbers, rows = (
        jax.tree.map(lambda row: row[which], part) for part in subjects_of(prior, int(which.max()) + 1)
    )
    options = {name: value for name, value in options.items() if name != "accept_rate"}
    mine = np.arange(jax.process_index(), len(which), jax.process_count())
    prior = jax.device_put(prior, sharding.replicated(sharding.local_mesh()))
    collector, told = Collector(networks.run, keep=keep), request.track(title, len(mine))
    first, looks, size = [], [], CHUNK * request.local_batch
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        images, _ = drawing.draw(
            prior, labels[part], numbers[part], seed=request.seed, batch_size=request.local_batch, options=options,
            rows={name: row[part] for name, row in rows.items()}, progress=lambda done: told(start + done),  # noqa: B023
        )  # fmt: skip
        collector.add(part, images, batch_size=request.local_batch)
        first = [*first, *images[: SHOWN - len(first)]]
        if gallery is not None:
            looks.append(likeness.nearest_labels(networks.lpips, images, *gallery))
    order = np.argsort(gather(mine))
    seen = gather(np.concatenate(looks))[order] if looks else labels
    return Drawn(collector.summary(), np.stack(first), labels, seen)
