"""Landscapes without a condition, drawn at any size through the sliding window.

    vqgan train --config=stage2_landscapes --workdir=runs/landscapes_prior
    vqgan sample --workdir=runs/landscapes_prior --size=512x2048 --count=1 --output=out

It needs stage1_photographs.py:landscapes. Scenes without a middle, such as landscapes and skies, suit a window that
knows not where it is; for what has a place in the image there are coordinates, see stage2_faces.py. Not run by us.
"""

from recipe import paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "paper": paper_stage2(batch_size=2),  # 304,670,720 parameters, those of the paper's churches and towers
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        {
            "data.source": "folder:landscapes",
            "data.resize": (256, 512),
            "tokenizer.workdir": "runs/landscapes",
            "condition.kind": "none",
            "condition.drop": 0.0,
            "batch_size": 64,
        },
    )
    return choose(config, VARIANTS, variant)
