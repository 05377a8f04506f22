"""Rendered scenes at 32 pixels: one prior for each of four conditions, each measured exactly.

    vqgan train --config=stage2_scenes:segmentation --workdir=runs/scenes_prior_segmentation
    vqgan train --config=stage2_scenes:boxes --workdir=runs/scenes_prior_boxes

They need stage1_scenes.py, and for segmentation and depth cond_scenes.py.
"""

from recipe import laptop_stage2

from vqgan_jax.config import choose, stage2, vary

ENCODED = {"condition.tokenizer.codebook_size": 256, "condition.tokenizer.downsample_factor": 4}
OBJECTS = {
    "condition.num_classes": 8,
    "condition.num_tokens": 65,  # 8 x 8 points, one a code, and the token for none
    "condition.max_objects": 6,
    "condition.crop_points": False,
    "steps": 1_300,
}

VARIANTS = {
    "class": {},
    "segmentation": ENCODED
    | {
        "condition.kind": "segmentation",
        "condition.num_classes": 9,
        "condition.tokenizer.workdir": "runs/scenes_segmentation",
    },
    "depth": ENCODED | {"condition.kind": "depth", "condition.tokenizer.workdir": "runs/scenes_depth"},
    "boxes": OBJECTS | {"condition.kind": "boxes", "transformer.bidirectional_prefix": 18},
    "centers": OBJECTS | {"condition.kind": "centers", "transformer.bidirectional_prefix": 12},
    "guided": {"sampling.guidance": 2.0},
}


def get_config(variant: str = "class"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        laptop_stage2(image_size=32)
        | {
            "condition.num_classes": 8,
            "steps": 800,
            "batch_size": 32,
            "data.source": "scenes",
            "data.resize": (32, 32),
            "tokenizer.workdir": "runs/scenes",
            "tokenizer.crops": 1,
            "log.metrics_every": 50,
            "log.eval_every": 200,
            "log.eval_examples": 512,
            "log.checkpoint_every": 200,
        },
    )
    return choose(config, VARIANTS, variant)
