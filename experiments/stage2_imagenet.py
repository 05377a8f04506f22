"""Class-conditional ImageNet at 256 pixels: the prior of the paper, and what later work would train on the same codes.

    vqgan tokenize --config=stage2_imagenet:f16_16384 --workdir=tokens
    vqgan train --config=stage2_imagenet:f16_16384,cached --workdir=gs://bucket/prior --distributed

256 codes an image. `tokenizer.workdir` is the stage-1 run; `vqgan tokenize` writes ten crops of each of the 1,281,167
images: 13 million rows of 257 numbers of 2 bytes, 6.6 GB. Not run by us: the numbers in the comments are published
ones of the run that a variant restates.
"""

from recipe import paper_stage2

from vqgan_jax.config import choose, stage2, vary

F16_16384 = {"tokenizer.workdir": "runs/imagenet_f16_16384", "tokenizer.codebook_size": 16384}

VARIANTS = {
    "f16_1024": {},
    "f16_16384": F16_16384,
    "cached": {"data.source": "tokens:tokens"},
    "guided": {"sampling.guidance": 4.0, "sampling.schedule": "cosine", "sampling.power": 2.5},
    # 457,108,480 parameters: RAR-L (Yu et al. 2024), which modulates its head, too. Published FID: 1.70.
    "rar": {
        "batch_size": 2048,
        "steps": 250_000,
        "loss.random_order": (0.5, 0.75),
        "transformer.norm": "layer",
        "transformer.mlp": "gelu",
        "transformer.positions": "learned_target",
        "transformer.bias": True,
        "transformer.attn_dropout": 0.1,
        "transformer.adaln": True,
        "sampling.guidance": 15.5,
        "sampling.schedule": "cosine",
        "sampling.power": 2.5,
        "sampling.temperature": 1.02,
        "optimizer.b2": 0.96,
        "optimizer.weight_decay": 0.03,
        "optimizer.warmup_steps": 62_500,
        "optimizer.final_fraction": 0.025,
        "optimizer.ema_decay": 0.0,
    },
    "sharded": {"mesh.data": -1, "mesh.fsdp": 4},
    # 1,410,640,896 parameters: 48 layers of 1536 channels. Published FID: 15.78 at top-k 973 and top-p 0.88.
    "paper": paper_stage2(batch_size=128, top_k=250)
    | F16_16384
    | {"transformer.depth": 48, "transformer.width": 1536, "data.flip": False, "data.resize": (256, 256)},
    # 308,014,032 parameters where `f16_1024` has 311,456,768, and as many layers of attention (table 1 of the paper).
    "pixelsnail": {
        "transformer.kind": "pixelsnail",
        "transformer.depth": 24,
        "transformer.num_res_blocks": 2,
        "transformer.width": 400,
    },
    # Unconditional, on the f16 tokenizer of 1024 codes; no published number.
    "unconditional": {"condition.kind": "none", "condition.drop": 0.0},
}


def get_config(variant: str = "f16_1024"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "f16_16384,cached"."""
    config = vary(
        stage2(),
        {
            "data.source": "tfds:imagenet2012",
            "data.resize": (256, 288),
            "tokenizer.workdir": "runs/imagenet_f16",
        },
    )
    return choose(config, VARIANTS, variant)
