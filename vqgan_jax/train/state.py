"""The training state of both stages: one pytree, which a step consumes and a checkpoint holds."""

from typing import Any

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
