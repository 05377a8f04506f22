"""Tokenizers of pictures that condition pictures: depth, Canny's edges, low resolution, and limbs of people.

    vqgan train --config=cond_pictures:depth --workdir=runs/drin_depth

Edges and low resolution are made of the photographs as they are read. Not run by us at this size.
"""

from recipe import FIRST_LOOK, PAPER_CODES, laptop_stage1, paper_stage1

from vqgan_jax.config import choose, stage1, vary

F8 = {  # 128-pixel crops of 16 x 16 codes
    "data.source": "tfds:imagenet2012",
    "data.image_size": 128,
    "data.resize": (128, 256),
    "model.channel_multipliers": (1, 1, 2, 4),
    "model.resolution": 128,
}

VARIANTS = {
    "depth": {"data.source": "paired:drin", "data.field": "depth", "model.image_channels": 1},
    "depth_nyu": {"data.source": "tfds:nyu_depth_v2", "data.field": "depth", "model.image_channels": 1},
    "edges": F8 | {"data.field": "edges"},
    "low_resolution": F8 | {"data.field": "low_resolution", "data.low_resolution_factor": 8},
    "keypoints": {
        "data.source": "paired:deepfashion",
        "data.field": "keypoints",
        "data.image_size": 144,  # 9 x 9 codes
        "data.resize": (144, 144),
        "model.resolution": 144,
    },
    "paper": paper_stage1(batch_size=3, disc_start=50_001, disc_weight=0.75) | PAPER_CODES,
    "laptop": laptop_stage1(image_size=64) | FIRST_LOOK | {"steps": 300},  # 64-pixel crops, f4
}


def get_config(variant: str = "depth"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "depth,laptop"."""
    config = vary(stage1(), {"batch_size": 64, "steps": 200_000})
    return choose(config, VARIANTS, variant)
