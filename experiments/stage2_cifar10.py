"""CIFAR-10 on a laptop: a class-conditional prior over 8 x 8 codes.

vqgan train --config=stage1_cifar10 --workdir=runs/cifar10
vqgan tokenize --config=stage2_cifar10 --workdir=runs/cifar10_tokens
vqgan train --config=stage2_cifar10:cached --workdir=runs/cifar10_prior
"""

from recipe import laptop_stage2, paper_stage2

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "cached": {"data.source": "tokens:runs/cifar10_tokens"},
    "unconditional": {"condition.kind": "none", "condition.drop": 0.0},
    "adaln": {"transformer.adaln": True},
    "random_order": {"transformer.positions": "learned_target", "loss.random_order": (0.5, 0.75)},
    "muon": {"optimizer.matrices": "muon"},
    "guided": {"sampling.guidance": 2.0},
    # 5,368,664 parameters where the base has 5,380,864, and as many layers of attention (table 1 of the paper).
    "pixelsnail": {
        "transformer.kind": "pixelsnail",
        "transformer.depth": 6,
        "transformer.num_res_blocks": 2,
        "transformer.width": 104,
        "transformer.num_heads": 4,
        "transformer.dropout": 0.0,
        "transformer.dtype": "float32",
    },
    "paper": paper_stage2(batch_size=32),
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage2(),
        laptop_stage2(image_size=32)
        | {
            "condition.num_classes": 10,
            "steps": 4_000,
            "batch_size": 32,
            "data.source": "tfds:cifar10",
            "data.eval_split": "test",
            "data.resize": (32, 32),
            "tokenizer.workdir": "runs/cifar10",
            "tokenizer.crops": 2,  # with and without the flip, by chance
            "transformer.width": 256,
            "transformer.depth": 6,
            "log.metrics_every": 50,
            "log.eval_every": 500,
            "log.eval_examples": 1_024,
            "log.checkpoint_every": 500,
        },
    )
    return choose(config, VARIANTS, variant)
