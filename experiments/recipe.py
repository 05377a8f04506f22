"""What the pages of this lab book share: every key with its default, and how a variant changes some of them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def stage1() -> ConfigDict:
    """The tokenizer of the paper (f16, 1024 codes) with our defaults of training."""
    return ConfigDict(
        {
            "stage": 1,
            "seed": 0,
            "steps": 300_000,
            "batch_size": 256,  # over all devices
            "accumulate": 1,  # parts of a batch, one after the other
            "data": {
                "source": "photos",  # photos | scenes | {folder,paired,coco}:PATH | tfds:NAME; stage 2 also tokens:PATH
                "data_dir": "",  # of prepared TFDS datasets; "" is TFDS's own
                "train_split": "train",
                "eval_split": "validation",
                "image_size": 256,  # side of the square crop
                "resize": (256, 256),  # range of the short side before the crop, drawn for every image
                "crop": "random",  # random | center
                "flip": True,
                "small": "upscale",  # upscale | refuse images below `resize`
                "field": "image",  # that is learned; segmentation | depth | edges | low_resolution | keypoints
                "low_resolution_factor": 4,
                "edge_sigma": 2.0,  # of the blur before Canny's edges, in pixels
                "shift_labels": False,  # true for COCO-Stuff's files: adds 1, and 255 becomes 0
                "num_threads": 16,
                "timeout_seconds": 600,  # that a training batch may take to come; 0 waits for ever
            },
            "model": {
                "kind": "paper",  # paper | maskgit
                "channels": 128,
                "channel_multipliers": (1, 1, 2, 2, 4),  # 4 halvings: f16
                "num_res_blocks": 2,  # the decoder has one more a level
                "attn_resolutions": (16,),
                "resolution": 256,  # only decides which levels have attention
                "image_channels": 3,
                "latent_channels": 256,
                "norm_groups": 32,
                "dropout": 0.0,
                "dtype": "bfloat16",  # of convolutions; parameters, norms, codes and losses are float32
            },
            "quantizer": {
                "kind": "vq",  # vq | gumbel | fsq
                "codebook_size": 1024,
                "embed_dim": 256,
                "unit_length": False,
                "ema": False,
                "decay": 0.99,  # of the hits (and of the EMA codebook)
                "revive_below": 0.0,  # share of a uniform code's hits below which a code is born again
                "kmeans_batches": 0,  # batches for a k-means start
                "noisy_eval": False,  # Gumbel
                "temperature": (1.0, 1.0, 1),  # Gumbel: cosine from, to, over steps
                "levels": (8, 5, 5, 5),  # FSQ: of each channel; their product is the codebook's size
            },
            "discriminator": {"channels": 64, "num_layers": 3, "norm": "batch"},
            "loss": {
                "pixel": "l1",  # l1 | l2; of segmentations cross_entropy | binary_cross_entropy
                "pixel_weight": 1.0,
                "perceptual_weight": 1.0,
                "lpips_dropout": False,
                "codebook_weight": 1.0,
                "commitment_weight": 0.25,
                "kl_weight": 0.0,  # Gumbel
                "adversarial": "hinge",  # hinge | vanilla | non_saturating
                "disc_weight": 0.8,  # 0 is: no discriminator
                "adaptive": True,  # times equation 7
                "disc_start": 20_000,  # from here the generator sees the discriminator
                "disc_ramp": 5_000,  # linearly within so many steps
                "disc_train_start": 0,  # from here the discriminator learns
                "shared_forward": True,
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "disc_learning_rate": 1e-4,
                "b1": 0.5,
                "b2": 0.9,
                "weight_decay": 0.0,
                "clip_norm": 1.0,  # 0 is off
                "schedule": "cosine",  # constant | cosine
                "warmup_steps": 5_000,
                "final_fraction": 0.1,
                "ema_decay": 0.999,  # 0 is off
                "nonfinite": "stop",  # stop | skip a step whose losses or gradients are not finite
            },
            "mesh": {
                "data": -1,  # -1 is all devices that are left
                "fsdp": 1,
                "tensor": 1,
                "zero1": False,  # true cuts the optimisers' moments and the running average along `data` too
            },
            "log": {
                "metrics_every": 100,
                "eval_every": 5_000,
                "eval_examples": 2_048,
                "eval_metrics": (),  # of `vqgan evaluate`: fd_vgg, ssim, own_class, ...
                "checkpoint_every": 2_500,
                "keep": 2,
            },
        }
    )


def stage2() -> ConfigDict:
    """A prior of 24 layers and 1024 channels with our defaults of training; the paper's are a variant."""
    tokenizer = stage1()
    return ConfigDict(
        {
            "stage": 2,
            "seed": 0,
            "steps": 300_000,
            "batch_size": 256,  # over all devices
            "accumulate": 1,  # parts of a batch, one after the other
            "data": tokenizer.data,
            "tokenizer": {
                "workdir": "",  # of the stage-1 run
                "fingerprint": "",  # "" takes what is there; the run writes down what that was
                "codebook_size": 1024,
                "downsample_factor": 16,
                "crops": 10,  # of each training image, in a token cache
            },
            "condition": {
                "kind": "class",  # class | none | coordinates | boxes | centers | text | a `data.field`
                "num_classes": 1000,  # of labels, segmentations, objects
                "num_tokens": 1024,  # of coordinates, boxes and centers
                "max_objects": 30,
                "max_tokens": 128,  # of a caption
                "num_ids": 0,  # of a caption's tokenizer; 0: captions are UTF-8 bytes
                "crop_points": True,  # boxes of the whole image, and two tokens for the part that is seen
                "paper": False,  # upstream's quirks of boxes
                "size": 0,  # pixels to which a map is brought first; 0 leaves it
                "tokenizer": {  # of a map; without a workdir the images' own encodes it
                    "workdir": "",
                    "fingerprint": "",
                    "codebook_size": 1024,
                    "downsample_factor": 16,
                },
                "shared_vocab": False,  # true: upstream's one table for classes and codes
                "drop": 0.1,  # so often the null class, for guidance
            },
            "transformer": {
                "depth": 24,
                "width": 1024,
                "num_heads": 16,
                "max_len": 0,  # 0 is as long as needed
                "bidirectional_prefix": 0,
                "order": "raster",  # alternate | z_curve | subsample | spiral_in | spiral_out | random
                "norm": "rms",  # layer | rms
                "mlp": "swiglu",  # gelu | swiglu
                "positions": "rope2d",  # learned | rope2d | rope2d_blank | rope2d_line
                "qk_norm": True,
                "bias": False,
                "dropout": 0.1,
                "remat": "dots",  # none | dots | full
                "dtype": "bfloat16",  # of products; parameters, norms, softmax, logits and losses are float32
            },
            "loss": {"keep": 1.0, "label_smoothing": 0.0},
            "sampling": {
                "temperature": 1.0,
                "top_k": 0,  # 0 is off
                "top_p": 1.0,  # 1 is off
                "guidance": 1.0,  # 1 is off
                "schedule": "constant",  # constant | linear | cosine
                "power": 1.0,  # of the cosine
                "greedy": False,
                "previews": 8,
            },
            "optimizer": {
                "learning_rate": 4e-4,
                "b1": 0.9,
                "b2": 0.95,
                "weight_decay": 0.05,
                "clip_norm": 1.0,  # 0 is off
                "schedule": "cosine",  # constant | cosine
                "warmup_steps": 10_000,
                "final_fraction": 0.05,
                "ema_decay": 0.9999,  # 0 is off
                "nonfinite": "stop",  # stop | skip a step whose losses or gradients are not finite
            },
            "mesh": tokenizer.mesh,
            "log": tokenizer.log,
        }
    )


def paper_stage1(*, batch_size: int, disc_start: int, disc_weight: float = 0.8) -> dict[str, Any]:
    """Upstream's training, to the letter: its order of updates, its weights and its learning rate.

    Its beta of 0.25 sat on the codebook term, so the commitment weight was 1; Adam does not see the codebook's scale.
    """
    rate = 4.5e-6 * batch_size
    return {
        "batch_size": batch_size,
        "data.flip": False,
        "data.resize": (256, 256),
        "model.dtype": "float32",
        "loss.lpips_dropout": True,
        "loss.codebook_weight": 0.25,
        "loss.commitment_weight": 1.0,
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


def laptop_stage2(*, image_size: int, num_classes: int) -> dict[str, Any]:
    """A prior of a few million parameters over the codes of `laptop_stage1`, for a laptop's CPU."""
    return {
        "data.image_size": image_size,
        "data.num_threads": 1,
        "tokenizer.codebook_size": 512,
        "tokenizer.downsample_factor": 4,
        "condition.num_classes": num_classes,
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


# What keeps the codes of a laptop page alive, taken away or replaced. Held out, stage1_photos.py:VARIANT,no_disc with
# steps=200 and eval_every=200; the base has 16.57 dB, LPIPS 0.507, 98.8% of 512 codes, perplexity 302. One seed: what
# differs by less than half a decibel is no finding, but the dead codes are.
CODEBOOKS: dict[str, dict[str, Any]] = {  #                                                     dB LPIPS usage  perp
    "no_kmeans": {"quantizer.kmeans_batches": 0},  #                                            16.94 0.491  100%   325
    "no_revival": {"quantizer.revive_below": 0.0},  #                                           16.52 0.507   82%   136
    "euclidean": {"quantizer.unit_length": False},  #                                           16.45 0.491 99.6%   305
    "ema": {  #                                                                                 16.92 0.478 99.8%   351
        "quantizer.unit_length": False,
        "quantizer.ema": True,
        "loss.codebook_weight": 0.0,
    },
    "plain": {  #                                                                               14.67 0.584  7.2%   5.6
        "quantizer.unit_length": False,
        "quantizer.kmeans_batches": 0,
        "quantizer.revive_below": 0.0,
    },
}


# Finite scalars in place of a learned codebook of 512: nothing to keep alive, and no loss.
FSQ: dict[str, Any] = {
    "quantizer.kind": "fsq",
    "quantizer.levels": (8, 8, 8),
    "quantizer.codebook_size": 512,
    "quantizer.embed_dim": 3,
    "quantizer.unit_length": False,
    "quantizer.kmeans_batches": 0,
    "quantizer.revive_below": 0.0,
    "loss.codebook_weight": 0.0,
    "loss.commitment_weight": 0.0,
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


def laptop_maps(*, num_classes: int = 1) -> dict[str, Any]:
    """A small prior over 64-pixel crops of f4, told by 8 x 8 codes of a map that is brought to half its size."""
    return laptop_stage2(image_size=64, num_classes=num_classes) | {
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


def vary(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """The config with some `section.key`s changed; a key that is not there is an error."""
    config = config.copy_and_resolve_references()
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            section = section[name]
        if key not in section:
            raise KeyError(f"a variant may only change keys that exist; got `{path}`.")
        section[key] = value
    return config


def choose(config: ConfigDict, variants: Mapping[str, Mapping[str, Any]], names: str) -> ConfigDict:
    """Applies one variant or several, `a,b`, from left to right; none for the empty string."""
    for name in filter(None, names.split(",")):
        if name not in variants:
            raise ValueError(f"the variant must be one of {', '.join(variants)}; got {name!r}.")
        config = vary(config, variants[name])
    return config
