"""DeepFashion: people out of their poses, 256 codes after 81.

    vqgan train --config=stage2_pose --workdir=runs/pose_prior

It needs stage1_photographs.py:deepfashion and cond_pictures.py:keypoints, and pictures of rendered limbs in
deepfashion/keypoints/. The paper has 84 codes of a pose, of a shape that it does not tell; ours are 9 x 9. Not run by
us.
"""

from recipe import maps, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    # 129,417,216 parameters; positions for the 340 tokens that the paper counts
    "paper": paper_stage2(batch_size=2)
    | {"transformer.depth": 18, "transformer.width": 768, "transformer.max_len": 340},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        maps("keypoints", tokenizer="runs/deepfashion", condition="runs/deepfashion_keypoints")
        | {"data.source": "paired:deepfashion", "condition.size": 144, "batch_size": 64},
    )
    return choose(config, VARIANTS, variant)
