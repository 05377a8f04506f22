"""ImageNet out of Canny's edges: 256 codes after 256.

    vqgan train --config=stage2_edges --workdir=runs/edges_prior
    vqgan sample --workdir=runs/edges_prior --condition photo.png --output=out      # of whose edges it draws

f8, crops of 128 pixels. It needs stage1_photographs.py:imagenet_f8 and cond_pictures.py:edges. Not run by us.
"""

from recipe import maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "reuse": {"condition.tokenizer.workdir": ""},
    "paper": paper_stage2(batch_size=2) | {"transformer.max_len": 512},  # 304,932,864 parameters
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("edges", tokenizer="runs/imagenet_f8", condition="runs/imagenet_edges", factor=8)
        | {"data.source": "tfds:imagenet2012", "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
