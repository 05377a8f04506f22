"""What a backward pass computes again, instead of keeping it in memory (Chen et al. 2016)."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

REMAT: dict[str, Any] = {
    "none": None,
    # Products and convolutions with a kernel, with their biases: what is given to `kept`.
    "dots": jax.checkpoint_policies.save_only_these_names("kept"),
    "full": jax.checkpoint_policies.nothing_saveable,
}

kept = functools.partial(checkpoint_name, name="kept")  # for the backward pass, under remat "dots"


def remat(block: type[nn.Module], policy: str, *, static: int, scanned: bool = False) -> type[nn.Module]:
    """Returns a class of blocks of which the backward pass computes again what a policy of REMAT does not keep.

    Args:
      block: the class; its parameters have the same names either way.
      policy: a name of REMAT.
      static: number of the argument of `__call__` that is no array, counted from `self`.
      scanned: inside of a scan no barrier against common subexpressions is needed.
    """
    if policy == "none":
        return block
    return nn.remat(block, prevent_cse=not scanned, policy=REMAT[policy], static_argnums=(static,))
