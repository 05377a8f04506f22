"""A prior over the codes of `own`, of the same size of the dial: draws new pictures like yours.

    vqgan train --config=own_prior:tiny --workdir=runs/mine_prior --config.tokenizer.workdir=runs/mine \
        --config.data.source=folder:PICTURES

The first-level sub-folders of PICTURES are its classes; without sub-folders it draws unconditionally. The run decides
that at its start and writes it down: later lives of the run refuse data of other classes.
"""

from typing import NamedTuple

from own import SIZES, Size, logs, num_codes, pictures
from recipe import laptop_stage2

from vqgan_jax.config import choose, stage2


class Network(NamedTuple):
    """What the dial chooses; 12 depth width^2 parameters, about."""

    depth: int
    width: int
    num_heads: int
    batch_size: int
    steps: int


NETWORKS = {
    "tiny": Network(4, 192, 4, 16, 400),  # 2 million
    "small": Network(8, 512, 8, 32, 20_000),  # 25 million
    "base": Network(12, 768, 12, 64, 60_000),  # 85 million: that of the paper's animals, and LlamaGen-B
    "large": Network(24, 1024, 16, 256, 300_000),  # 302 million: the paper's of ImageNet, and LlamaGen-L
}


def prior(size: Size, network: Network) -> dict:
    """What follows from the numbers of both tables."""
    return (
        pictures(size)
        | logs(network.steps)
        | {
            "batch_size": network.batch_size,
            "steps": network.steps,
            "tokenizer.workdir": "runs/mine",
            "tokenizer.codebook_size": num_codes(size),
            "tokenizer.downsample_factor": 2**size.halvings,
            "condition.num_classes": 0,  # as many as there are sub-folders
            "transformer.depth": network.depth,
            "transformer.width": network.width,
            "transformer.num_heads": network.num_heads,
            # Adam's rate goes with 1 / width: 2e-3 of 192 is ours, 4e-4 of 1024 that of RAR-L.
            "optimizer.learning_rate": 0.384 / network.width,
            "optimizer.warmup_steps": min(10_000, network.steps // 8),
            "optimizer.ema_decay": min(0.9999, 1 - 4 / network.steps),  # remembers a quarter of the run at most
        }
    )


VARIANTS = {
    **{name: prior(SIZES[name], network) for name, network in NETWORKS.items()},
    "tiny": laptop_stage2(image_size=64) | prior(SIZES["tiny"], NETWORKS["tiny"]),
}


def get_config(variant: str = "tiny"):
    """`variant` is a name of NETWORKS."""
    return choose(stage2(), VARIANTS, variant)
