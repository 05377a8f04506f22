"""The training state of both stages: one pytree, which a step consumes and a checkpoint holds."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """Everything that changes while training.

    Attributes:
      step: optimiser steps taken, an int32 scalar (or, like all here, its shape or its sharding).
      params: by network ("generator", "discriminator"), so that one table of sharding rules serves them all.
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
    return {name: optax.incremental_update(params[name], old, 1 - decayed) for name, old in state.ema.items()}
