"""Rendered scenes at 32 pixels: the tokenizer of the pages that measure conditions exactly.

    vqgan train --config=stage1_scenes --workdir=runs/scenes

Coloured shapes over grey ground, of which segmentation, depth, boxes and class are known. f4: 8 x 8 codes an image.
"""

from recipe import laptop_stage1

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {"base": {}}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage1(),
        laptop_stage1(image_size=32)
        | {
            "steps": 2_400,
            "batch_size": 16,
            "data.source": "scenes",
            "data.resize": (32, 32),
            "loss.disc_weight": 0.0,
            "log.metrics_every": 50,
            "log.eval_every": 400,
            "log.eval_examples": 256,
            "log.checkpoint_every": 400,
        },
    )
    return choose(config, VARIANTS, variant)
