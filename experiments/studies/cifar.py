"""What studies of CIFAR-10 have in common: a tokenizer of f4 and a small prior over its codes.

The tokenizer takes about a quarter of an hour of a core. Studies of one `--workdir` train it once.
"""

import dataclasses

from vqgan_jax.studies import Base, Measure

TOKENIZER = Base(
    "stage1_cifar10",
    {
        "steps": 1_500,
        "loss.disc_start": 750,
        "loss.disc_ramp": 100,
        "log.eval_every": 500,
        "log.eval_examples": 256,
        "log.eval_metrics": (),
        "log.checkpoint_every": 250,
    },
    Measure(metrics=("lpips_vgg", "psnr", "codebook_usage"), examples=1_000),
)
SHORT = {**TOKENIZER.changes, "steps": 500, "loss.disc_start": 250, "loss.disc_ramp": 50, "log.eval_every": 125}
CODES = Base(  # for studies of codes: shorter, and without a discriminator; `losses` has this run, too
    TOKENIZER.page,
    {**SHORT, "loss.disc_weight": 0.0},
    Measure(metrics=("fd_vgg", "pfd_vgg", "lpips_vgg", "psnr", "codebook_usage", "perplexity"), examples=2_000),
)
PRIOR = Base(
    "stage2_cifar10",
    {
        "steps": 1_000,
        "batch_size": 16,
        "transformer.depth": 3,
        "transformer.width": 128,
        "log.eval_every": 250,
        "log.checkpoint_every": 250,
    },
    Measure(metrics=("nll", "own_class", "fd_vgg"), examples=2_000, samples=1_000),
    cached=True,
)
# For a tokenizer with few priors: they see fewer images than a cache would encode.
PRIOR_OF_ITS_OWN = dataclasses.replace(PRIOR, cached=False)
FIGURES = {  # of CODES and of PRIOR
    "fd_vgg2k": "lower",
    "pfd_vgg2k": "lower",
    "lpips_vgg": "lower",
    "psnr": "higher",
    "codebook_usage": "higher",
    "perplexity": "higher",
    "nll": "lower",
    "own_class1k": "higher",
    "fd_vgg1k": "lower",
}
