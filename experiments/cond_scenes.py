"""Rendered scenes at 32 pixels: tokenizers of two conditions, segmentation and depth.

    vqgan train --config=cond_scenes:segmentation --workdir=runs/scenes_segmentation
    vqgan train --config=cond_scenes:depth --workdir=runs/scenes_depth

8 x 8 codes a map, as many as an image has.
"""

from recipe import SEGMENTATION, laptop_stage1

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {
    # Ground and eight shapes.
    "segmentation": SEGMENTATION | {"model.image_channels": 9, "steps": 2_000},
    "depth": {"data.field": "depth", "model.image_channels": 1},
}


def get_config(variant: str = "segmentation"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage1(),
        laptop_stage1(image_size=32)
        | {
            "steps": 1_000,
            "batch_size": 16,
            "data.source": "scenes",
            "data.resize": (32, 32),
            "quantizer.codebook_size": 256,
            "loss.disc_weight": 0.0,
            "log.metrics_every": 50,
            "log.eval_every": 250,
            "log.eval_examples": 256,
            "log.checkpoint_every": 250,
        },
    )
    return choose(config, VARIANTS, variant)
