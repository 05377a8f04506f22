"""ADE20K: photographs out of label maps of 151 classes, 256 codes after 256.

    vqgan train --config=stage2_ade20k --workdir=runs/ade20k_prior

It needs stage1_photographs.py:ade20k and cond_segmentation.py:ade20k. Not run by us at this size: the number in the
comment is the published one, of samples at top-k 100 against the 2,000 validation images.
"""

from recipe import laptop_maps, maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    # 361,609,216 parameters; the paper prints 405 M, which no depth of that width gives. Published FID: 35.5.
    "paper": paper_stage2(batch_size=2)
    | {
        "transformer.depth": 28,
        "transformer.max_len": 512,
        "transformer.dropout": 0.1,
        "transformer.attn_dropout": 0.1,
    },
    "laptop": laptop_maps(),  # over the laptop variants of both tokenizers
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("segmentation", tokenizer="runs/ade20k", condition="runs/ade20k_segmentation", codebook_size=4096)
        | {"data.source": "paired:ade20k", "condition.num_classes": 151, "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
