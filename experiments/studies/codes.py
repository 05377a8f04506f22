"""Codebooks: which kind is used, and does a larger one reconstruct better and still leave a prior its likelihood?

VQGAN_JAX_DATA=DIR vqgan study codes --workdir=studies
"""

from cifar import CODES, FIGURES, PRIOR_OF_ITS_OWN

from vqgan_jax.studies import Comparison, Run, Study

EUCLIDEAN = {"quantizer.unit_length": False}
NO_START = {"quantizer.kmeans_batches": 0, "quantizer.revive_below": 0.0}


def size(k: int) -> dict:
    """Unit-length codes of this number: the base's kind."""
    return {"quantizer.codebook_size": k}


def prior(k: int) -> Run:
    """A prior over the codes of `k`."""
    return Run("prior", {"tokenizer.codebook_size": k} if k != 512 else {}, tokenizer=f"unit {k}")


STUDY = Study(
    title="Codes",
    question="Which codebooks are used, and does a larger one make better images?",
    claim="A larger codebook reconstructs better: from 1024 to 16384 codes the rFID falls from 7.94 to 4.98 (table 5).",
    header=("codes", "K", "used", "rFID on validation"),
    published=(
        ("f16", "1024", "-", "7.94"),
        ("f16", "16384", "973", "4.98"),
        ("f8, Gumbel", "8192", "-", "1.49"),
    ),
    notes=(
        "CIFAR-10 at f4, 500 steps of 16 images, no discriminator. Likelihoods are in nats a "
        "code; an image has 64 codes, so a sixteenth of it is a pixel's."
    ),
    bases={"tokenizer": CODES, "prior": PRIOR_OF_ITS_OWN},
    runs={
        "plain": Run("tokenizer", EUCLIDEAN | NO_START),
        "ema": Run("tokenizer", EUCLIDEAN | NO_START | {"quantizer.ema": True, "quantizer.codebook_weight": 0.0}),
        "k-means and revival": Run("tokenizer", EUCLIDEAN),
        "gumbel": Run(
            "tokenizer",
            {
                "quantizer.kind": "gumbel",
                "quantizer.codebook_size": 512,
                "quantizer.embed_dim": 64,
                "quantizer.kl_weight": 5e-4,
                "quantizer.temperature": (1.0, 0.0625, 500),
            },
        ),
        "unit 128": Run("tokenizer", size(128)),
        "unit 512": Run("tokenizer"),
        "unit 2048": Run("tokenizer", size(2_048)),
        "prior of 128": prior(128),
        "prior of 512": prior(512),
        "prior of 2048": prior(2_048),
    },
    figures=FIGURES,
    decides=(
        Comparison("unit 2048", "unit 512", "fd_vgg2k"),
        Comparison("unit 512", "unit 128", "fd_vgg2k"),
    ),
    also=(
        Comparison("unit 512", "plain", "fd_vgg2k"),
        Comparison("unit 512", "plain", "codebook_usage"),
        Comparison("k-means and revival", "plain", "fd_vgg2k"),
        Comparison("ema", "plain", "fd_vgg2k"),
        Comparison("unit 512", "k-means and revival", "fd_vgg2k"),
        Comparison("unit 512", "gumbel", "fd_vgg2k"),
        Comparison("prior of 512", "prior of 128", "fd_vgg1k"),
        Comparison("prior of 2048", "prior of 512", "fd_vgg1k"),
    ),
)
