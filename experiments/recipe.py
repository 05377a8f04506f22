"""What pages of this lab book share: sets of keys that differ from the defaults, which `vqgan_jax.config` holds."""

from typing import Any


def paper_stage1(*, batch_size: int, disc_start: int, disc_weight: float = 0.8) -> dict[str, Any]:
    """Upstream's training, to the letter: its order of updates, its weights and its learning rate."""
    rate = 4.5e-6 * batch_size
    return {
        "batch_size": batch_size,
        "data.flip": False,
        "data.resize": (256, 256),
        "model.dtype": "float32",
        "loss.lpips_dropout": True,
        "loss.disc_weight": disc_weight,
        "loss.disc_start": disc_start,
        "loss.disc_ramp": 0,
        "loss.disc_train_start": disc_start,
        "loss.shared_forward": False,
        "optimizer.learning_rate": rate,
        "optimizer.disc_learning_rate": rate,
        "optimizer.clip_norm": 0.0,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "optimizer.ema_decay": 0.0,
    }


# Upstream's beta of 0.25 sat on the codebook term, so the commitment weight was 1; Adam does not see the codebook's
# scale. It goes with `paper_stage1` where codes are learned.
PAPER_CODES: dict[str, Any] = {"quantizer.codebook_weight": 0.25, "quantizer.commitment_weight": 1.0}


def laptop_stage1(*, image_size: int) -> dict[str, Any]:
    """A tokenizer of less than a million parameters with codes that live from the first step, for a laptop's CPU.

    16, 32, 64 channels instead of the paper's 128 to 512, so 8 groups a norm: with 32 groups the last norm of 32
    channels normalises each channel by itself and no image has a colour of its own.
    """
    return {
        "data.image_size": image_size,
        "data.num_threads": 1,  # the other core's time belongs to the step
        "model.channels": 16,
        "model.channel_multipliers": (1, 2, 4),  # 2 halvings: f4
        "model.num_res_blocks": 1,
        "model.attn_resolutions": (),  # there is one in the middle anyway
        "model.resolution": image_size,
        "model.latent_channels": 64,
        "model.norm_groups": 8,
        "model.dtype": "float32",
        "quantizer.codebook_size": 512,
        "quantizer.embed_dim": 8,
        "quantizer.unit_length": True,
        "quantizer.kmeans_batches": 8,
        "quantizer.decay": 0.9,  # a dead code is born again after some 20 steps
        "quantizer.revive_below": 0.1,
        "discriminator.channels": 32,
        "discriminator.num_layers": 2,
        "loss.disc_weight": 0.2,
        "optimizer.learning_rate": 1e-3,
        "optimizer.disc_learning_rate": 3e-4,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.99,
        "optimizer.warmup_steps": 50,
        "optimizer.ema_decay": 0.99,
    }


def paper_stage2(*, batch_size: int, top_k: int = 100) -> dict[str, Any]:
    """Upstream's GPT and its training, to the letter."""
    return {
        "batch_size": batch_size,
        "condition.shared_vocab": True,
        "condition.drop": 0.0,
        "transformer.norm": "layer",
        "transformer.mlp": "gelu",
        "transformer.positions": "learned",
        "transformer.qk_norm": False,
        "transformer.bias": True,
        "transformer.dropout": 0.0,
        "transformer.dtype": "float32",
        "sampling.top_k": top_k,
        "optimizer.learning_rate": 4.5e-6 * batch_size,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.01,
        "optimizer.clip_norm": 0.0,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "optimizer.ema_decay": 0.0,
    }


def laptop_stage2(*, image_size: int) -> dict[str, Any]:
    """A prior of a few million parameters over the codes of `laptop_stage1`, for a laptop's CPU."""
    return {
        "data.image_size": image_size,
        "data.num_threads": 1,
        "tokenizer.codebook_size": 512,
        "tokenizer.downsample_factor": 4,
        "transformer.depth": 4,
        "transformer.width": 192,
        "transformer.num_heads": 4,
        "transformer.dropout": 0.0,
        "transformer.remat": "none",
        "transformer.dtype": "float32",
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 50,
        "optimizer.ema_decay": 0.99,
    }


# What keeps the codes of a laptop page alive, taken away or replaced. The study `codes` compares them.
CODEBOOKS: dict[str, dict[str, Any]] = {
    "no_kmeans": {"quantizer.kmeans_batches": 0},
    "no_revival": {"quantizer.revive_below": 0.0},
    "euclidean": {"quantizer.unit_length": False},
    "ema": {"quantizer.unit_length": False, "quantizer.ema": True, "quantizer.codebook_weight": 0.0},
    "plain": {"quantizer.unit_length": False, "quantizer.kmeans_batches": 0, "quantizer.revive_below": 0.0},
}


# Codes of later work in place of a laptop page's 512 of unit length; no figure of ours yet.
LATER_CODES: dict[str, dict[str, Any]] = {
    "fsq": {"quantizer.kind": "fsq", "quantizer.levels": (8, 8, 8)},  # nothing to keep alive, and no loss
    "lfq": {"quantizer.kind": "lfq", "quantizer.bits": 9},
    "bsq": {"quantizer.kind": "lfq", "quantizer.bits": 9, "quantizer.unit_length": True},
    "simvq": {"quantizer.kind": "simvq", "quantizer.codebook_size": 512, "quantizer.embed_dim": 8},
    "rotation": {"quantizer.estimator": "rotation"},
    "robust": {"perturb.share": 0.1},
    "semantic": {"loss.semantic_weight": 0.1},
    "semantic_dinov2": {"loss.semantic_weight": 0.1, "loss.semantic": "dinov2_vits14"},
}


# What later work made of the adversary, for a laptop page; no figure of ours yet.
ADVERSARIES: dict[str, dict[str, Any]] = {
    "patch_v2": {"discriminator.kind": "patch_v2", "discriminator.channels": 32, "discriminator.num_stages": 2},
    "lecam": {"loss.lecam_weight": 0.05, "loss.lecam_decay": 0.99},  # published: 0.001 and 0.999, of long runs
    "augmented": {"loss.disc_augment": ("color", "translation", "cutout")},
}


def maps(kind: str, *, tokenizer: str, condition: str, codebook_size: int = 1024, factor: int = 16) -> dict[str, Any]:
    """A prior over the 16 x 16 codes of crops, each told by as many codes of a map; both f`factor`."""
    return {
        "data.image_size": 16 * factor,
        "data.resize": (16 * factor, 32 * factor),
        "tokenizer.workdir": tokenizer,
        "tokenizer.codebook_size": codebook_size,
        "tokenizer.downsample_factor": factor,
        "condition.kind": kind,
        "condition.tokenizer.workdir": condition,
        "condition.tokenizer.downsample_factor": factor,
    }


# To see that one's data goes through: 64-pixel crops, minutes on a laptop; goes with `laptop_stage1`.
FIRST_LOOK: dict[str, Any] = {
    "batch_size": 4,
    "data.resize": (64, 128),
    "loss.disc_weight": 0.0,
    "log.metrics_every": 50,
    "log.eval_every": 100,
    "log.eval_examples": 16,
    "log.checkpoint_every": 100,
}


def laptop_maps() -> dict[str, Any]:
    """A small prior over 64-pixel crops of f4, told by 8 x 8 codes of a map that is brought to half its size."""
    return laptop_stage2(image_size=64) | {
        "data.resize": (64, 128),
        "condition.size": 32,
        "condition.tokenizer.codebook_size": 512,
        "condition.tokenizer.downsample_factor": 4,
        "batch_size": 8,
        "steps": 200,
        "log.metrics_every": 20,
        "log.eval_every": 100,
        "log.eval_examples": 16,
        "log.checkpoint_every": 100,
    }


def objects(*, num_classes: int) -> dict[str, Any]:
    """A prior over 16 x 16 codes, told by up to 30 boxes of objects and by where the crop lies."""
    return {
        "tokenizer.codebook_size": 8192,
        "condition.kind": "boxes",
        "condition.num_classes": num_classes,
        "condition.num_tokens": 8192,  # 90 x 90 places
        "batch_size": 64,
    }


# A tokenizer of label maps: cross-entropy, as in the paper, and neither perceptual loss nor discriminator. There are
# `model.image_channels` classes.
SEGMENTATION: dict[str, Any] = {
    "data.field": "segmentation",
    "loss.pixel": "cross_entropy",
    "loss.perceptual_weight": 0.0,
    "loss.disc_weight": 0.0,
}
