"""Scenes of COCO out of boxes, or out of the centres of objects: 256 codes after 92, or after 62.

    vqgan train --config=stage2_scenes_coco --workdir=runs/scenes_coco_prior
    vqgan sample --workdir=runs/scenes_coco_prior --condition layout.json --output=out

It needs stage1_photographs.py:coco_stuff. 80 things and 91 kinds of stuff. Not run by us: the numbers in the comment
are published ones, read off a figure.
"""

from recipe import objects, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "centers": {"condition.kind": "centers", "condition.num_classes": 171, "condition.num_tokens": 8192},
    # 975,876,352 parameters. At epoch 60: FID 33.8, SceneFID 9.1, Inception score 21.3.
    "paper": paper_stage2(batch_size=6)
    | {
        "condition.paper": True,
        "transformer.depth": 40,
        "transformer.width": 1408,
        "transformer.max_len": 348,
        "transformer.dropout": 0.1,
        "transformer.attn_dropout": 0.1,
    },
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        objects(num_classes=171)
        | {
            "data.source": "coco:coco",
            "data.train_split": "train2017",
            "data.eval_split": "val2017",
            "tokenizer.workdir": "runs/coco_stuff",
        },
    )
    return choose(config, VARIANTS, variant)
