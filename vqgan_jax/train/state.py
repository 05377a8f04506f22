"""The training state of both stages, and what the steps of both do with it: parts of a batch, averages, skipping."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vqgan_jax.config.sections import Optimizer

Part = Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]]


@struct.dataclass
class TrainState:
    """Everything that changes while training.

    Attributes:
      step: optimiser steps taken, an int32 scalar (or, like all here, its shape or its sharding).
      params: by network ("generator", "discriminator", "semantic"): one table of sharding rules serves all.
      opt_state: the optimisers' states, by network.
      ema: running average of the parameters in `params` that has one, by network; empty where it is off.
      stats: what is neither trained nor constant: BatchNorm's running statistics, hits of the codes.
    """

    step: Any
    params: dict[str, Any]
    opt_state: dict[str, Any]
    ema: Any  # dicts too, but where they are empty Orbax puts a leaf of its own
    stats: Any


def moving_average(state: TrainState, params: dict[str, Any], decay: float) -> dict[str, Any]:
    """The running average of the networks that `state` keeps one of, after a step that made `params`.

    It forgets its first values as fast as it can, else it would be the initial parameters for long.
    """
    decayed = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    # In this form the average of a parameter that does not change is bit-equal to it.
    average = lambda new, old: old + (1 - decayed) * (new - old)
    return {name: jax.tree.map(average, params[name], old) for name, old in state.ema.items()}


def in_parts(count: int, part: Part, carry: Any, batch: Any, keys: jax.Array) -> tuple[Any, Any, Any]:
    """Applies `part` to `count` parts of a batch in one `lax.scan`; to the batch itself where `count` is 1.

    Part i has the rows i, i + count, i + 2 count ...: cut so, a batch that lies on the devices in contiguous rows moves
    between none of them, and each device works on a share of every part.

    Args:
      count: of parts; it divides the batch, and the batch of each device.
      part: `(carry, batch, keys) -> (carry, means, rows)`.
      carry: what one part hands to the next.
      batch: a tree of arrays (b, ...).
      keys: (n,), for every part others.

    Returns:
      The last carry; the means over all parts, which are summed in float32; the rows in the order of the batch.
    """
    if count == 1:
        return part(carry, batch, keys)
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(lambda *given: part(*given)[1], carry, jax.tree.map(lambda x: x[0], parts), keys)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    def add(total: tuple[Any, Any], given: tuple[Any, jax.Array]) -> tuple[tuple[Any, Any], Any]:
        rows, number = given
        carry, means, rows = part(total[0], rows, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        return (carry, jax.tree.map(lambda a, b: a + b / count, total[1], means)), rows

    (carry, means), rows = jax.lax.scan(add, (carry, zeros), (parts, jnp.arange(count)))
    return carry, means, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), rows)


def skipping(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, but one whose losses or gradients are not finite changes nothing except `state.step`.

    Whether they are is read off its metrics, in which there is each loss and the norm of the gradients of each network;
    `param_norm` is not asked, so that the old parameters need not outlive the new ones. The metric `skipped` is 1 of
    such a step, else 0.
    """

    def guarded(state: TrainState, *rest: Any) -> tuple[TrainState, dict[str, Any]]:
        new, metrics = step(state, *rest)
        asked = [value for name, value in metrics.items() if name != "param_norm" and value.ndim == 0]
        good = jnp.all(jnp.isfinite(jnp.stack(asked)))
        kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
        return kept.replace(step=new.step), metrics | {"skipped": 1.0 - good.astype(jnp.float32)}

    return guarded


def schedule(config: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Learning rate at each step: linear warm-up to `peak`, then constant or half a cosine down to the last step."""
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - config.warmup_steps, 1), config.final_fraction)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after


def rate_factor(batch_size: int, before: int) -> float:
    """Returns the factor of Adam's learning rate for another batch size than `before`: the square root of the ratio.

    SGD's linear rule would be too much: Adam divides a gradient by its size, and where noise makes this size it falls
    with the root of the batch size, so that half of the linear rule is done already (Malladi et al. 2022).
    """
    return math.sqrt(batch_size / before)


def make_optimizer(config: Optimizer, peak: float, steps: int) -> optax.GradientTransformation:
    """Adam, or Muon where `config.matrices` says so; global clipping in front and decoupled weight decay behind.

    Only kernels and codebook decay.
    """
    decayed = lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in ("kernel", "codebook")
    mask = lambda params: jax.tree_util.tree_map_with_path(decayed, params)
    adam = optax.scale_by_adam(config.b1, config.b2, eps=1e-8)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [adam if config.matrices == "adam" else optax.partition({"muon": muon(), "adam": adam}, kinds_of_leaves)]
    parts += [optax.add_decayed_weights(config.weight_decay, mask=mask)] if config.weight_decay else []
    parts += [optax.scale_by_learning_rate(schedule(config, peak, steps))]
    return optax.chain(*parts)


# Kernels that are stacks of matrices, with the input axes and the output axes of a matrix. The other axes (layers;
# queries, keys and values) number the matrices. Adam moves the embedding, the head, what reads the class alone (adaLN's
# modulation) and everything that is no matrix.
MATRICES = (
    (r"layers/qkv/kernel$", ((1,), (3, 4))),
    (r"layers/proj/kernel$", ((1, 2), (3,))),
    (r"layers/(up|gate|down)/kernel$", ((1,), (2,))),
)


def matrix_axes(path: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The input and output axes of a leaf by its path; None for what is no matrix."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((axes for pattern, axes in MATRICES if re.search(pattern, name)), None)


def kinds_of_leaves(params: Any) -> Any:
    """By which optimiser each leaf moves."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if matrix_axes(path) else "adam", params)


def muon() -> optax.GradientTransformation:
    """Muon: the momentum of each matrix, orthogonalised (Jordan et al. 2024).

    Updates are scaled to the root mean square that Adam's usually have, 0.2 for a square matrix, so that both use the
    same learning rate (Liu et al. 2025).
    """
    numbers = lambda path, _: MuonDimensionNumbers(*(matrix_axes(path) or ()))
    axes = lambda updates: jax.tree_util.tree_map_with_path(numbers, updates)

    def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        sizes = [math.prod(update.shape[axis] for axis in group) for group in matrix_axes(path) or ()]
        return 0.2 * max(sizes) ** 0.5 * update

    scale = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
    return optax.chain(scale_by_muon(weight_dimension_numbers=axes), scale)
