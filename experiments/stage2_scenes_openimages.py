"""Scenes of Open Images out of boxes: 256 codes after 92.

    vqgan train --config=stage2_scenes_openimages --workdir=runs/scenes_openimages_prior

Any data set in COCO's format or TFDS's `objects` will do; boxes may be group, occluded, depiction or inside. It needs a
tokenizer of 8192 codes. Not run by us: the numbers in the comment are published ones.
"""

from recipe import objects, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    # 1,045,638,144 parameters. At epoch 100: FID 41.48, SceneFID 14.60, Inception score 18.47.
    "paper": paper_stage2(batch_size=6)
    | {
        "transformer.depth": 36,
        "transformer.width": 1536,
        "transformer.max_len": 348,
        "transformer.dropout": 0.1,
        "transformer.attn_dropout": 0.1,
    },
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        objects(num_classes=340)
        | {"data.source": "tfds:open_images", "data.resize": (256, 512), "tokenizer.workdir": "runs/open_images"},
    )
    return choose(config, VARIANTS, variant)
