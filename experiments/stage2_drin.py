"""D-RIN: animals of ImageNet out of depth maps, 256 codes after 256.

    vqgan train --config=stage2_drin --workdir=runs/drin_prior

It needs stage1_photographs.py:drin and cond_pictures.py:depth. Not run by us at this size: the numbers in the comments
are published negative log-likelihoods, in nats a code.
"""

from recipe import laptop_maps, maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

PAPER = paper_stage2(batch_size=2) | {"transformer.max_len": 512}

VARIANTS = {
    "base": {},
    "paper": PAPER,  # 304,932,864 parameters; the one whose samples the paper shows
    "paper_small": PAPER | {"transformer.depth": 14},  # 178,970,624 parameters; 4.70 at PixelSNAIL's steps
    "laptop": laptop_maps(),  # over the laptop variants of both tokenizers
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("depth", tokenizer="runs/drin", condition="runs/drin_depth")
        | {"data.source": "paired:drin", "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
