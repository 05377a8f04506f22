"""A tokenizer of your own pictures, in any folder, with one dial for its size.

    vqgan train --config=own:tiny --workdir=runs/mine --config.data.source=folder:PICTURES
    vqgan plan --config=own --fit --topology=v5e:1x1

`own_prior` is its second stage; docs/training.md goes through both. Five numbers of `Size` are chosen; all else follows
from them by the arithmetic of `tokenizer`, so that a larger size is the same recipe.

| size | crop | codes | images that pass | made for |
|---|---|---|---|---|
| tiny | 64 px, f4 | 512 | 800 x 4 | two CPU cores, minutes |
| small | 128 px, f8 | 2048 | 20,000 x 16 | one GPU, hours |
| base | 256 px, f16 | 4096 | 100,000 x 32 | one large GPU or a few TPUs, days |
| large | 256 px, f16 | 16384 | 400,000 x 128 | a pod: as long as LlamaGen's VQ-16, 40 epochs of ImageNet |

Only `tiny` was trained by us.
"""

from typing import NamedTuple

from recipe import ADVERSARIES, laptop_stage1

from vqgan_jax.config import choose, stage1


class Size(NamedTuple):
    """What the dial chooses.

    Attributes:
      halvings: of an image's side, so f = 2^halvings; a crop is 16 f pixels and has 16 x 16 codes.
      channels: at the finest level.
      batch_size: images a step.
      steps: of the run.
      disc_start: the share of the run after which the generator sees the discriminator.
    """

    halvings: int
    channels: int
    batch_size: int
    steps: int
    disc_start: float


SIZES = {
    "tiny": Size(2, 16, 4, 800, 0.5),
    "small": Size(3, 64, 16, 20_000, 0.25),
    "base": Size(4, 128, 32, 100_000, 0.1),
    "large": Size(4, 128, 128, 400_000, 0.05),  # step 20,000, as LlamaGen
}
MULTIPLIERS = {2: (1, 2, 4), 3: (1, 2, 2, 4), 4: (1, 1, 2, 2, 4)}  # by halvings; the last ones are the paper's


def pictures(size: Size) -> dict:
    """Crops of nearly the whole picture, 80 to 100% of its short side (LlamaGen); stronger crops made rFID worse."""
    side = 16 * 2**size.halvings
    return {"data.image_size": side, "data.resize": (side, side * 5 // 4)}


def logs(steps: int) -> dict:
    """Forty lines, eight evaluations and eight checkpoints a run, or more where that would be too rare."""
    return {
        "log.metrics_every": min(100, steps // 40),
        "log.eval_every": min(5_000, steps // 8),
        "log.eval_examples": 512,
        "log.checkpoint_every": min(2_500, steps // 8),
    }


def num_codes(size: Size) -> int:
    """A crop has 256 codes: with 128 in the codebook for each image of a batch, a step brings two latents a code."""
    return 128 * size.batch_size


def tokenizer(size: Size) -> dict:
    """What follows from the five numbers."""
    factor, rate = 2**size.halvings, 0.016 / size.channels
    return (
        pictures(size)
        | logs(size.steps)
        | {
            "batch_size": size.batch_size,
            "steps": size.steps,
            "model.channels": size.channels,
            "model.channel_multipliers": MULTIPLIERS[size.halvings],
            "model.resolution": 16 * factor,
            "model.norm_groups": min(32, size.channels // 2),  # two channels a group at least
            # Codes that live from the first step: of unit length and 8 wide, as LlamaGen's, which uses 97% of 16384.
            "quantizer.codebook_size": num_codes(size),
            "quantizer.embed_dim": 8,
            "quantizer.unit_length": True,
            "quantizer.kmeans_batches": 8,
            "quantizer.revive_below": 0.1,
            # The harder the compression, the more must be invented: 0.8 of f16 is the paper's, 0.2 of f4 ours.
            "loss.disc_weight": 0.05 * factor,
            "loss.disc_start": size.disc_start,
            "loss.disc_ramp": size.disc_start / 4,
            # Adam's rate goes with 1 / width: 1e-3 of 16 channels is ours, 1e-4 of 128 that of LlamaGen and VQGAN+.
            "optimizer.learning_rate": rate,
            "optimizer.disc_learning_rate": min(rate, 3e-4),
            "optimizer.warmup_steps": min(5_000, size.steps // 16),
            "optimizer.ema_decay": min(0.999, 1 - 8 / size.steps),  # remembers an eighth of the run at most
        }
    )


VARIANTS = {
    **{name: tokenizer(size) for name, size in SIZES.items()},
    "tiny": laptop_stage1(image_size=64) | tokenizer(SIZES["tiny"]),
    "lecam": ADVERSARIES["lecam"],
    "augmented": ADVERSARIES["augmented"],  # for a few hundred pictures: the discriminator cannot learn them by heart
}


def get_config(variant: str = "tiny"):
    """`variant` is a name of SIZES, or that and others: "small,augmented"."""
    return choose(stage1(), VARIANTS, variant)
