"""Photographs of the paper's other data at 256 pixels: one variant a data set and downsample factor.

    vqgan train --config=stage1_photographs:ade20k --workdir=runs/ade20k

f is 2 to the number of halvings; crops are 16 f pixels, so that every image has 16 x 16 codes. The paper gives its
channel multipliers for f8 and f16 only: those of other factors are ours. Not run by us.
"""

from recipe import FIRST_LOOK, PAPER_CODES, laptop_stage1, paper_stage1

from vqgan_jax.config import choose, stage1, vary


def crop(factor: int, multipliers: tuple[int, ...]) -> dict:
    """Crops of 16 x 16 codes."""
    size = 16 * factor
    return {
        "data.image_size": size,
        "data.resize": (size, 2 * size),
        "model.channel_multipliers": multipliers,
        "model.resolution": size,
    }


F4, F8, F32 = crop(4, (1, 2, 4)), crop(8, (1, 1, 2, 4)), crop(32, (1, 1, 2, 2, 4, 4))

VARIANTS = {
    "ade20k": {"data.source": "paired:ade20k", "quantizer.codebook_size": 4096},
    "coco_stuff": {
        "data.source": "coco:coco",
        "data.train_split": "train2017",
        "data.eval_split": "val2017",
        "quantizer.codebook_size": 8192,
    },
    "drin": {"data.source": "paired:drin"},
    "deepfashion": {"data.source": "paired:deepfashion"},
    "landscapes": {"data.source": "folder:landscapes"},
    "sflckr_f4": {"data.source": "paired:sflckr"} | F4,
    "sflckr_f16": {"data.source": "paired:sflckr"},
    "sflckr_f32": {"data.source": "paired:sflckr"} | F32,
    "imagenet_f8": {"data.source": "tfds:imagenet2012"} | F8,
    "paper": paper_stage1(batch_size=5, disc_start=10_000) | PAPER_CODES,
    "laptop": laptop_stage1(image_size=64) | FIRST_LOOK | {"steps": 600},  # 64-pixel crops, f4
}


def get_config(variant: str = "ade20k"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "ade20k,laptop"."""
    config = vary(stage1(), {"data.resize": (256, 512), "batch_size": 64, "steps": 300_000})
    return choose(config, VARIANTS, variant)
