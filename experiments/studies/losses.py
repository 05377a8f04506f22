"""The losses of stage 1: pixels alone, with LPIPS, with a discriminator at fixed weights, with the adaptive weight.

VQGAN_JAX_DATA=DIR vqgan study losses --workdir=studies
"""

from cifar import SHORT, TOKENIZER

from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

NO_DISC = {"loss.disc_weight": 0.0}

STUDY = Study(
    title="Losses",
    question="Do a perceptual and an adversarial loss make better codes than a pixel loss, without tuning a weight?",
    claim=(
        "A perceptual and an adversarial loss in place of L2 keep the image good at strong compression (section 3.1), "
        "and the adaptive weight balances the two (equation 7)."
    ),
    notes=(
        "CIFAR-10 at f4, 500 steps of 16 images; the decoder sees the discriminator from step 250 on. LPIPS and "
        "fd_vgg look through the network of the perceptual loss, so both favour it; PSNR favours the pixel loss."
    ),
    bases={
        "tokenizer": Base(
            TOKENIZER.page,
            SHORT,
            Measure(metrics=("fd_vgg", "lpips_vgg", "psnr", "codebook_usage", "perplexity"), examples=2_000),
        )
    },
    runs={
        "l2": Run("tokenizer", {"loss.pixel": "l2", "loss.perceptual_weight": 0.0, **NO_DISC}),
        "l1+lpips": Run("tokenizer", NO_DISC),
        "adversary .02": Run("tokenizer", {"loss.adaptive": False, "loss.disc_weight": 0.02}),
        "adversary .2": Run("tokenizer", {"loss.adaptive": False, "loss.disc_weight": 0.2}),
        "adaptive": Run("tokenizer", {"loss.disc_weight": 0.8}),
    },
    figures={
        "fd_vgg2k": "lower",
        "lpips_vgg": "lower",
        "psnr": "higher",
        "codebook_usage": "higher",
        "perplexity": "higher",
    },
    decides=(
        Comparison("l1+lpips", "l2", "fd_vgg2k"),
        Comparison("adaptive", "l1+lpips", "fd_vgg2k"),
        Comparison("adaptive", "adversary .02", "fd_vgg2k"),
        Comparison("adaptive", "adversary .2", "fd_vgg2k"),
    ),
    also=(
        Comparison("l1+lpips", "l2", "lpips_vgg"),
        Comparison("l2", "l1+lpips", "psnr"),
        Comparison("adaptive", "l1+lpips", "lpips_vgg"),
    ),
)
