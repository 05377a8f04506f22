"""How to draw: top-k, top-p, temperature, guidance and rejection, each setting with samples of its own.

VQGAN_JAX_DATA=DIR vqgan study decoding --workdir=studies
"""

import dataclasses

from cifar import PRIOR, TOKENIZER

from vqgan_jax.studies import Comparison, Measure, Run, Study

MEASURE = Measure(
    metrics=("fd_vgg", "precision_vgg", "recall_vgg", "own_class"),
    examples=2_000,
    samples=1_000,
)


def sweep(setting: str) -> Run:
    """The same prior, drawn from with several values of a setting."""
    return Run("prior", tokenizer="tokenizer", measure=dataclasses.replace(MEASURE, sweep=setting))


REJECTION = dataclasses.replace(
    MEASURE, metrics=(*MEASURE.metrics, "class_accuracy"), sweep="accept_rate:1.0,0.5,0.2", classifier=True
)
FIDELITY = {  # a bold and a cautious value of each setting
    "top-k": ("top_k 512", "top_k 32"),
    "top-p": ("top_p 1.0", "top_p 0.8"),
    "temperature": ("temperature 1.0", "temperature 0.7"),
    "rejection": ("accept_rate 1.0", "accept_rate 0.2"),
}

STUDY = Study(
    title="Decoding",
    question="Do k, p, temperature, guidance and rejection trade diversity for fidelity?",
    claim="Smaller k or p, and rejection, improve fidelity up to a point, at the cost of diversity (table 4).",
    header=("decoding, class-conditional ImageNet", "accepted", "FID", "IS"),
    published=(
        ("mixed k, p = 1", "1", "17.04", "70.6"),
        ("k = 973, p = 1", "1", "29.20", "47.3"),
        ("k = 250, p = 1", "1", "15.98", "78.6"),
        ("k = 973, p = .88", "1", "15.78", "74.3"),
        ("k = 600, p = 1", ".05", "5.20", "280.3"),
    ),
    notes=(
        "CIFAR-10, 512 codes, 1000 samples a setting against 2000 test images. Precision is the share of samples near "
        "a real image (fidelity), recall that of real images near a sample (diversity). Rejection keeps the samples "
        "that a small classifier, trained on the same images, finds likeliest of their class; class_accuracy is by "
        "that classifier, all other figures are not. Guidance is not in the paper. Precision and recall were to "
        "decide, but here both go the wrong way: precision is highest of its sweep at temperature 1.15, where fd_vgg "
        "is the worst, and recall rises with fewer codes. Neither sees what it is meant to see, so the verdict "
        "says little about the claim. The prior is short: of a longer one recall falls with smaller k, and "
        "fd_vgg is best with all codes (docs/figures.md). fd_vgg of this one is better at k = 128 and p = 0.9 than "
        "with all codes, as FID is in table 4 at k = 250 and p = .88; the last three statements were added when this "
        "was seen."
    ),
    bases={"tokenizer": TOKENIZER, "prior": PRIOR},
    runs={
        "tokenizer": Run("tokenizer", seeds=(0,)),
        "top-k": sweep("top_k:32,64,128,256,512"),
        "top-p": sweep("top_p:0.8,0.9,0.95,1.0"),
        "temperature": sweep("temperature:0.7,0.85,1.0,1.15"),
        "guidance": sweep("guidance:1.0,1.5,2.0,3.0"),
        "rejection": Run("prior", tokenizer="tokenizer", measure=REJECTION),
    },
    figures={
        "fd_vgg1k": "lower",
        "precision_vgg1k": "higher",
        "recall_vgg1k": "higher",
        "own_class1k": "higher",
        "class_accuracy1k": "higher",
    },
    decides=tuple(
        comparison
        for run, (bold, cautious) in FIDELITY.items()
        for comparison in (
            Comparison(f"{run}, {cautious}", f"{run}, {bold}", "precision_vgg1k"),
            Comparison(f"{run}, {bold}", f"{run}, {cautious}", "recall_vgg1k"),
        )
    ),
    also=(
        Comparison("top-k, top_k 256", "top-k, top_k 512", "fd_vgg1k"),
        Comparison("top-p, top_p 0.95", "top-p, top_p 1.0", "fd_vgg1k"),
        Comparison("rejection, accept_rate 0.2", "rejection, accept_rate 1.0", "fd_vgg1k"),
        Comparison("rejection, accept_rate 0.2", "rejection, accept_rate 1.0", "own_class1k"),
        Comparison("guidance, guidance 2.0", "guidance, guidance 1.0", "own_class1k"),
        Comparison("guidance, guidance 1.0", "guidance, guidance 3.0", "recall_vgg1k"),
        Comparison("guidance, guidance 1.5", "guidance, guidance 1.0", "fd_vgg1k"),
        Comparison("top-k, top_k 128", "top-k, top_k 512", "fd_vgg1k"),
        Comparison("top-p, top_p 0.9", "top-p, top_p 1.0", "fd_vgg1k"),
        Comparison("temperature, temperature 0.85", "temperature, temperature 1.0", "fd_vgg1k"),
    ),
)
