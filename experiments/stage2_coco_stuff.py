"""COCO-Stuff: photographs out of label maps of 183 classes, 256 codes after 256.

    vqgan train --config=stage2_coco_stuff --workdir=runs/coco_stuff_prior

It needs stage1_photographs.py:coco_stuff and cond_segmentation.py:coco_stuff, and label maps in coco/segmentations/.
Not run by us: the number in the comment is the published one, of samples at top-k 100 against the 5,000 validation
images.
"""

from recipe import maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    # 651,307,520 parameters. Published FID: 22.4, of the released model 20.4.
    "paper": paper_stage2(batch_size=2)
    | {"transformer.depth": 32, "transformer.width": 1280, "transformer.max_len": 512},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("segmentation", tokenizer="runs/coco_stuff", condition="runs/coco_stuff_segmentation", codebook_size=8192)
        | {
            "data.source": "coco:coco",
            "data.train_split": "train2017",
            "data.eval_split": "val2017",
            "data.shift_labels": True,
            "condition.num_classes": 183,
            "batch_size": 64,
        },
    )
    return choose(config, VARIANTS, variant)
