"""S-FLCKR: landscapes of any size out of label maps of 182 classes, 256 codes after 256.

    vqgan train --config=stage2_sflckr:f16 --workdir=runs/sflckr_prior
    vqgan sample --workdir=runs/sflckr_prior --condition map.png --size=512x2048 --output=out

It needs stage1_photographs.py:sflckr_f16 and cond_segmentation.py:sflckr. The data was never distributed. Not run by
us: the number in the comment is a published negative log-likelihood, in nats a code.
"""

from recipe import maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary


def factor(f: int) -> dict:
    """Crops of 16 x 16 codes of f pixels, and maps at 256 pixels, which is 16 x 16 codes of theirs."""
    return {
        "data.image_size": 16 * f,
        "data.resize": (16 * f, 32 * f),
        "tokenizer.workdir": f"runs/sflckr_f{f}",
        "tokenizer.downsample_factor": f,
        "condition.size": 0 if f == 16 else 256,
    }


VARIANTS = {
    "f4": factor(4),
    "f16": factor(16),
    "f32": factor(32),
    # 304,932,864 parameters. f16 at PixelSNAIL's steps: 4.49.
    "paper": paper_stage2(batch_size=1) | {"transformer.max_len": 512},
}


def get_config(variant: str = "f16"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "f16,paper"."""
    config = vary(
        stage2(),
        maps("segmentation", tokenizer="runs/sflckr_f16", condition="runs/sflckr_segmentation")
        | {"data.source": "paired:sflckr", "condition.num_classes": 182, "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
