"""CIFAR-10 on a laptop: f4 codes of the whole 32-pixel images.

    pip install 'vqgan-jax[prepare]' && tfds build cifar10 --file_format=array_record      # once
    vqgan train --config=stage1_cifar10 --workdir=runs/cifar10

Each image becomes 8 x 8 codes: 1024 codes a step of 16 images, for a codebook of 512.
"""

from recipe import ADVERSARIES, CODEBOOKS, LATER_CODES, PAPER_CODES, laptop_stage1, paper_stage1

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {
    "base": {},
    **CODEBOOKS,
    **LATER_CODES,
    **ADVERSARIES,
    "no_disc": {"loss.disc_weight": 0.0},
    "paper": paper_stage1(batch_size=16, disc_start=2_000) | PAPER_CODES | {"data.resize": (32, 32)},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage1(),
        laptop_stage1(image_size=32)
        | {
            "steps": 4_000,
            "batch_size": 16,
            "data.source": "tfds:cifar10",
            "data.eval_split": "test",
            "data.resize": (32, 32),
            "loss.disc_start": 2_000,
            "loss.disc_ramp": 500,
            "log.metrics_every": 50,
            "log.eval_every": 500,
            "log.eval_examples": 512,
            "log.eval_metrics": ("fd_vgg",),
            "log.checkpoint_every": 500,
        },
    )
    return choose(config, VARIANTS, variant)
