"""Tokenizers of label maps at 256 pixels: the conditions of semantic synthesis.

    vqgan train --config=cond_segmentation:ade20k --workdir=runs/ade20k_segmentation

16 x 16 codes a map, 1024 of them. Cross-entropy, as in the paper; binary cross-entropy under `paper`, as in its code.
Not run by us at this size.
"""

from recipe import FIRST_LOOK, PAPER_CODES, SEGMENTATION, laptop_stage1, paper_stage1

from vqgan_jax.config import choose, stage1, vary

COCO_STUFF = {
    "data.source": "coco:coco",
    "data.train_split": "train2017",
    "data.eval_split": "val2017",
    "data.shift_labels": True,  # files hold 0 to 181, and 255 where there is no label
    "model.image_channels": 183,
}

VARIANTS = {
    "ade20k": {"data.source": "paired:ade20k", "model.image_channels": 151},
    "ade20k_tfds": {"data.source": "tfds:scene_parse150", "data.eval_split": "test", "model.image_channels": 151},
    "coco_stuff": COCO_STUFF,
    "sflckr": {"data.source": "paired:sflckr", "model.image_channels": 182},
    "paper": paper_stage1(batch_size=12, disc_start=0)
    | PAPER_CODES
    | {"loss.pixel": "binary_cross_entropy", "loss.disc_weight": 0.0},
    "laptop": laptop_stage1(image_size=64) | SEGMENTATION | FIRST_LOOK | {"steps": 300},  # 64-pixel crops, f4
}


def get_config(variant: str = "ade20k"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "ade20k,laptop"."""
    config = vary(stage1(), SEGMENTATION | {"data.resize": (256, 296), "batch_size": 64, "steps": 100_000})
    return choose(config, VARIANTS, variant)
