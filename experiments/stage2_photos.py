"""A prior over the codes of the embedded photographs: eleven classes, one a photograph.

    vqgan train --config=stage1_photos --workdir=runs/photos
    vqgan tokenize --config=stage2_photos --workdir=runs/photos_tokens
    vqgan train --config=stage2_photos:cached --workdir=runs/photos_prior

Crops of 64 pixels are 16 x 16 codes. Without `cached` the frozen tokenizer runs inside the step.
"""

from recipe import laptop_stage2, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "quick": {"steps": 300, "sampling.top_k": 100, "sampling.guidance": 2.0},  # what `vqgan quickstart` trains
    "cached": {"data.source": "tokens:runs/photos_tokens"},
    "unconditional": {"condition.kind": "none", "condition.drop": 0.0},
    "guided": {"sampling.guidance": 2.0},
    "gpt": {  # upstream's layers instead of their successors
        "transformer.norm": "layer",
        "transformer.mlp": "gelu",
        "transformer.positions": "learned",
        "transformer.qk_norm": False,
        "transformer.bias": True,
    },
    "paper": paper_stage2(batch_size=16),
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        laptop_stage2(image_size=64)
        | {
            "condition.num_classes": 11,
            "steps": 400,
            "batch_size": 16,
            "data.resize": (64, 256),
            "tokenizer.workdir": "runs/photos",
            "tokenizer.crops": 300,
            "log.metrics_every": 20,
            "log.eval_every": 100,
            "log.eval_examples": 40,  # all that are held out
            "log.checkpoint_every": 100,
        },
    )
    return choose(config, VARIANTS, variant)
