"""The smallest prior that has every part: dropout, dropped classes, replaced codes, guidance, an EMA.

It goes with the tokenizer of `tiny.py`: give `--config.tokenizer.workdir`.
"""

from vqgan_jax.config import choose, stage2, vary

VARIANTS = {
    "base": {},
    "unconditional": {"condition.kind": "none", "condition.drop": 0.0, "sampling.guidance": 1.0},
    "gpt": {  # upstream's layers
        "condition.shared_vocab": True,
        "transformer.norm": "layer",
        "transformer.mlp": "gelu",
        "transformer.positions": "learned",
        "transformer.qk_norm": False,
        "transformer.bias": True,
    },
    # Conditions, over the codes in the order that a sliding window needs.
    "raster": {"transformer.order": "raster"},
    "segmentation": {
        "transformer.order": "raster",
        "data.source": "scenes",
        "condition.kind": "segmentation",
        "condition.drop": 0.2,
        "condition.num_classes": 9,
        "condition.tokenizer.workdir": "runs/segmentation",
        "condition.tokenizer.codebook_size": 32,
        "condition.tokenizer.downsample_factor": 2,
    },
    "edges": {"transformer.order": "raster", "data.source": "scenes", "condition.kind": "edges", "condition.drop": 0.2},
    "coordinates": {
        "transformer.order": "raster",
        "condition.kind": "coordinates",
        "condition.drop": 0.2,
        "condition.num_tokens": 64,
        "sampling.guidance": 1.0,
    },
    "boxes": {
        "transformer.order": "raster",
        "data.source": "scenes",
        "condition.kind": "boxes",
        "condition.drop": 0.2,
        "condition.num_classes": 8,
        "condition.num_tokens": 65,
        "condition.max_objects": 6,
    },
    "centers": {
        "transformer.order": "raster",
        "data.source": "scenes",
        "condition.kind": "centers",
        "condition.drop": 0.2,
        "condition.num_classes": 8,
        "condition.num_tokens": 65,
        "condition.max_objects": 6,
    },
    "depth": {
        "transformer.order": "raster",
        "data.source": "scenes",
        "condition.kind": "depth",
        "condition.drop": 0.2,
        "condition.tokenizer.workdir": "runs/depth",
        "condition.tokenizer.codebook_size": 32,
        "condition.tokenizer.downsample_factor": 2,
    },
    "half": {  # a map of half the image's size, so of half as many rows and columns of codes
        "transformer.order": "raster",
        "data.source": "scenes",
        "condition.kind": "edges",
        "condition.drop": 0.2,
        "condition.size": 8,
    },
    "text": {"transformer.order": "raster", "condition.kind": "text", "condition.max_tokens": 12},
    "rar": {
        "transformer.adaln": True,
        "transformer.positions": "learned_target",
        "loss.random_order": (0.5, 0.75),
    },
    "pixelsnail": {
        "transformer.kind": "pixelsnail",
        "transformer.num_res_blocks": 1,
        "transformer.depth": 2,
        "transformer.width": 32,
        "transformer.num_heads": 4,
        "transformer.dtype": "float32",
    },
    "plain": {
        "transformer.dropout": 0.0,
        "transformer.attn_dropout": 0.0,
        "condition.drop": 0.0,
        "loss.keep": 1.0,
        "loss.random_order": (0.0, 0.0),
        "sampling.guidance": 1.0,
    },
}


def get_config(variant: str = ""):
    """A config page like those of the lab book; 16 px, 8 x 8 codes."""
    config = vary(
        stage2(),
        {
            "steps": 10,
            "batch_size": 8,
            "data.source": "photos",
            "data.image_size": 16,
            "data.resize": (16, 20),
            "data.num_threads": 1,
            "tokenizer.codebook_size": 32,
            "tokenizer.downsample_factor": 2,
            "tokenizer.crops": 2,
            "condition.num_classes": 11,
            "condition.drop": 0.2,
            "transformer.depth": 2,
            "transformer.width": 32,
            "transformer.num_heads": 4,
            "transformer.order": "spiral_out",  # not its own inverse
            "transformer.attn_dropout": 0.1,
            "transformer.remat": "none",
            "transformer.dtype": "float32",
            "loss.keep": 0.9,
            "sampling.guidance": 2.0,
            "sampling.previews": 2,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 0,
            "optimizer.ema_decay": 0.99,
            "log.metrics_every": 1,
            "log.eval_every": 6,
            "log.eval_examples": 16,
            "log.checkpoint_every": 3,
        },
    )
    return choose(config, VARIANTS, variant)
