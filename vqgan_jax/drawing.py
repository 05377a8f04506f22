"""Many samples: in batches over all devices of this process, each sample the same however it is batched."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vqgan_jax import api, build
from vqgan_jax import config as configs
from vqgan_jax.models import Prior
from vqgan_jax.train import sharding

Scorer = Callable[[UInt8[np.ndarray, "n H W c"], Int[np.ndarray, "n"]], Any]


def draw(
    prior: Prior,
    labels: Int[np.ndarray, "n"],
    numbers: Int[np.ndarray, "n"],
    *,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
    prompt: Int[np.ndarray, "n h w"] | None = None,
    prompt_length: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[UInt8[np.ndarray, "n H W c"], Int[np.ndarray, "n h w"]]:
    """Draws one image for each label and number; it depends on these, its prompt and the seed alone.

    Args:
      prior: from `load_prior`.
      labels: classes; zeros for an unconditional prior.
      numbers: which sample of its class each one is.
      seed: of all.
      batch_size: images at a time, rounded up to a multiple of the devices.
      options: of `sample_indices`.
      prompt, prompt_length: as in `sample_indices`.
      progress: told how many are done.

    Returns:
      Pixels and codes.
    """
    mesh = sharding.local_mesh()
    rows, everywhere = jax.NamedSharding(mesh, sharding.BATCH), sharding.replicated(mesh)
    batch_size = -(-min(batch_size, len(labels)) // mesh.size) * mesh.size
    prior = jax.device_put(prior, everywhere)
    key = jax.random.key(seed)
    fold = jax.jit(jax.vmap(lambda label, number: jax.random.fold_in(jax.random.fold_in(key, label), number)))
    conditional = prior.config.condition.kind == "class"
    images, codes = [], []
    for start in range(0, len(labels), batch_size):
        index = np.arange(start, start + batch_size).clip(max=len(labels) - 1)  # the last batch repeats its last row
        put = lambda array: jax.device_put(np.asarray(array)[index], rows)  # noqa: B023
        given: dict[str, Any] = {"labels": put(labels)} if conditional else {"count": batch_size}
        if prompt is not None:
            given |= {"prompt": put(prompt), "prompt_length": prompt_length}
        indices = api.sample_indices(prior, fold(put(labels), put(numbers)), **given, **options)
        pixels = api.to_uint8(api.decode(prior.tokenizer, indices))
        images.append(np.asarray(pixels))
        codes.append(np.asarray(indices))
        progress(min(start + batch_size, len(labels)))
    return np.concatenate(images)[: len(labels)], np.concatenate(codes)[: len(labels)]


def options_of(config: configs.Sampling) -> dict[str, Any]:
    """The section of a config as the options of `sample_indices`."""
    settings = build.settings(config)
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def best(scores: Any, labels: Int[np.ndarray, "n"], count: int) -> Int[np.ndarray, "_"]:
    """Rows of the `count` highest scores of each class, in the order in which they came (section 4.4 of the paper).

    Raises:
      ValueError: scores that are not one finite number a row.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != labels.shape or not np.all(np.isfinite(scores)):
        raise ValueError(f"a scorer must return {len(labels)} finite numbers, one an image; got shape {scores.shape}.")
    order = np.argsort(-scores, kind="stable")
    kept = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))
