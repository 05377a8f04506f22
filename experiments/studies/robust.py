"""Codes that bear being changed: perturbed codes in training, and a decoder that is tuned afterwards, alone.

VQGAN_JAX_DATA=DIR vqgan study robust --workdir=studies
"""

from cifar import CODES, FIGURES, PRIOR_OF_ITS_OWN

from vqgan_jax.studies import Comparison, Run, Study

TUNING = {"start.freeze": True, "steps": 250, "perturb.share": 0.5}

STUDY = Study(
    title="Robust codes",
    question="Do perturbed codes in training, or in a tuning of the decoder alone, make better samples of one prior?",
    claim=(
        "Perturbed codes in training lower the distance of perturbed reconstructions (pFID), which follows the quality "
        "of samples, where the distance of reconstructions does not (Qiu et al. 2025)."
    ),
    notes=(
        "CIFAR-10 at f4, no discriminator. Each tokenizer has 500 steps; the tuned ones 250 more, in which encoder and "
        "codes stay as they are, so one prior draws for both; `more steps` are as many without perturbed codes. "
        "pfd_vgg replaces half of the codes by near ones."
    ),
    bases={"tokenizer": CODES, "prior": PRIOR_OF_ITS_OWN},
    runs={
        "unit 512": Run("tokenizer"),
        "perturbed": Run("tokenizer", {"perturb.share": 0.1}),
        "more steps": Run("tokenizer", TUNING | {"perturb.share": 0.0}, start="unit 512"),
        "tuned": Run("tokenizer", TUNING, start="unit 512"),
        "perturbed and tuned": Run("tokenizer", TUNING, start="perturbed"),
    }
    | {
        "unit 512 drawn": Run("prior", tokenizer="unit 512"),
        "perturbed drawn": Run("prior", tokenizer="perturbed"),
        "tuned drawn": Run("prior", tokenizer="unit 512", decoder="tuned"),
    },
    figures=FIGURES,
    decides=(
        Comparison("perturbed", "unit 512", "pfd_vgg2k"),
        Comparison("perturbed drawn", "unit 512 drawn", "fd_vgg1k"),
    ),
    also=(
        Comparison("unit 512", "perturbed", "fd_vgg2k"),
        Comparison("tuned", "more steps", "pfd_vgg2k"),
        Comparison("more steps", "tuned", "fd_vgg2k"),
        Comparison("tuned drawn", "unit 512 drawn", "fd_vgg1k"),
        Comparison("perturbed and tuned", "perturbed", "pfd_vgg2k"),
    ),
)
