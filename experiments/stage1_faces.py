"""Faces at 256 pixels: CelebA-HQ and FFHQ, from a folder of images.

    vqgan train --config=stage1_faces --workdir=runs/faces --config.data.source=folder:DIR

DIR may hold `train` and `validation`; else one image in twenty is held out by its name. The paper trains on 85,000
faces, 25,000 of CelebA-HQ and 60,000 of FFHQ: 300,000 steps of 64 are 226 epochs. Not run by us.
"""

from recipe import PAPER_CODES, paper_stage1

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {
    "base": {},
    "f16_16384": {"quantizer.codebook_size": 16384, "quantizer.embed_dim": 8, "quantizer.unit_length": True},
    "paper": paper_stage1(batch_size=3, disc_start=30_001) | PAPER_CODES,
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(stage1(), {"data.source": "folder:faces", "batch_size": 64, "steps": 300_000})
    return choose(config, VARIANTS, variant)
