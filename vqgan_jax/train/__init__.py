"""Both stages of training: pure classes, one loop around them, and what a run keeps."""

from typing import Any

import jax

from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2

STAGES = {1: Stage1, 2: Stage2}


def stage_of(config: Any, *, rows: jax.sharding.NamedSharding | None = None) -> Stage1 | Stage2:
    """Returns the stage that a config describes, of stage 2 for token caches; `rows`: how a batch lies on devices."""
    return STAGES[config.stage].from_config(config, rows=rows)
