"""The embedded photographs at 64 pixels: a real VQGAN on a laptop in minutes, with nothing to download.

    vqgan train --config=stage1_photos --workdir=runs/photos

Eleven photographs and textures out of scikit-image; each step draws four crops of 64 pixels at a random scale, and the
rightmost fifth of every photograph is held out. f4: 16 x 16 codes a crop, 1024 codes a step for a codebook of 512.
"""

from recipe import ADVERSARIES, CODEBOOKS, LATER_CODES, PAPER_CODES, laptop_stage1, paper_stage1

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {
    "base": {},
    "quick": {"steps": 700, "loss.disc_start": 350},  # what `vqgan quickstart` trains
    **CODEBOOKS,
    **LATER_CODES,
    **ADVERSARIES,
    "no_disc": {"loss.disc_weight": 0.0},
    "l1_only": {"loss.disc_weight": 0.0, "loss.perceptual_weight": 0.0},
    "strong_disc": {"loss.disc_weight": 0.8},
    "two_forwards": {"loss.shared_forward": False},
    "paper": paper_stage1(batch_size=4, disc_start=600) | PAPER_CODES | {"data.resize": (64, 256)},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "ema,no_disc"."""
    config = vary(
        stage1(),
        laptop_stage1(image_size=64)
        | {
            "steps": 1_200,
            "batch_size": 4,
            "data.resize": (64, 256),  # a crop's side is the photograph's short one, down to a quarter of it
            "loss.disc_start": 600,
            "loss.disc_ramp": 200,
            "log.metrics_every": 20,
            "log.eval_every": 200,
            "log.eval_examples": 40,  # all that are held out
            "log.checkpoint_every": 200,
        },
    )
    return choose(config, VARIANTS, variant)
