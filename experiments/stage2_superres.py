"""Stochastic super-resolution on ImageNet: an image out of one with an eighth of its side, 256 codes after 256.

    vqgan train --config=stage2_superres --workdir=runs/superres_prior
    vqgan sample --workdir=runs/superres_prior --condition photo.png --size=256x256 --output=out

f8, crops of 128 pixels. It needs stage1_photographs.py:imagenet_f8 and cond_pictures.py:low_resolution; the variant
`reuse` needs the first alone, which then encodes both. The text of the paper says a factor of 8, a caption of it f16.
Not run by us.
"""

from recipe import maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "reuse": {"condition.tokenizer.workdir": ""},
    # 153,778,176 parameters
    "paper": paper_stage2(batch_size=2) | {"transformer.depth": 12, "transformer.max_len": 512},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("low_resolution", tokenizer="runs/imagenet_f8", condition="runs/imagenet_low_resolution", factor=8)
        | {"data.source": "tfds:imagenet2012", "data.low_resolution_factor": 8, "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
