"""Faces at 256 pixels, CelebA-HQ and FFHQ: without a condition, or told where in the image they are.

    vqgan train --config=stage2_faces --workdir=runs/faces_prior --config.data.source=folder:DIR
    vqgan train --config=stage2_faces:coordinates --workdir=runs/faces_places --config.data.source=...

With coordinates, crops are cut from larger faces, and a sliding window can draw a whole one that is larger than a crop.

Not run by us: the numbers in the comments are published ones of the run that a variant restates.
"""

from recipe import paper_stage2

from vqgan_jax.config import choose, stage2, vary

# 801,798,400 parameters: 24 layers of 1664 channels; the paper names the width "big".
BIG = {"transformer.width": 1664}

COORDINATES = {"condition.kind": "coordinates", "condition.drop": 0.0, "data.resize": (256, 512)}

VARIANTS = {
    "base": {},
    "coordinates": COORDINATES,
    # 304,932,864 parameters. The shipped config does not crop, so that all images have the same coordinates.
    "paper_faceshq": paper_stage2(batch_size=2) | COORDINATES | {"transformer.max_len": 512},
    # Published FID of the two: 9.6 on FFHQ at top-k 300, 10.2 on CelebA-HQ at top-k 400.
    "paper_ffhq": paper_stage2(batch_size=2, top_k=300) | BIG,
    "paper_celebahq": paper_stage2(batch_size=2, top_k=400) | BIG,
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        {
            "data.source": "folder:faces",
            "tokenizer.workdir": "runs/faces",
            "condition.kind": "none",
            "condition.drop": 0.0,
            "batch_size": 64,
        },
    )
    return choose(config, VARIANTS, variant)
