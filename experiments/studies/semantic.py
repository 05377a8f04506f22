"""A semantic loss: are codes that follow a frozen network's features easier to model?

VQGAN_JAX_DATA=DIR vqgan study semantic --workdir=studies
"""

from cifar import CODES, FIGURES, PRIOR

from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

STUDY = Study(
    title="Semantic codes",
    question="Do codes that are drawn towards frozen features leave a prior an easier task and better classes?",
    claim="Our own: codes drawn towards VGG16's relu3_3 make samples of a clearer class, and cost at most 0.3 dB.",
    notes=(
        "CIFAR-10 at f4, 500 steps of 16 images, no discriminator. No Frechet distance of VGG16's features decides, "
        "because the loss looks through the same network; nor does own_class, which does too. class_accuracy is by a "
        "small classifier that was trained on the same images. Likelihoods of different codes do not decide: "
        "poorer codes have lower ones by themselves."
    ),
    bases={
        "tokenizer": CODES,
        "prior": Base(
            PRIOR.page,
            PRIOR.changes,
            Measure(metrics=("nll", "own_class", "class_accuracy"), examples=2_000, samples=1_000, classifier=True),
        ),
    },
    runs={
        "plain": Run("tokenizer"),
        "semantic": Run("tokenizer", {"loss.semantic_weight": 0.1}),
        "prior of plain": Run("prior", tokenizer="plain"),
        "prior of semantic": Run("prior", tokenizer="semantic"),
    },
    figures=FIGURES | {"class_accuracy1k": "higher"},
    decides=(
        Comparison("prior of semantic", "prior of plain", "class_accuracy1k"),
        Comparison("semantic", "plain", "psnr", margin=-0.3),
    ),
    also=(
        Comparison("prior of semantic", "prior of plain", "nll"),
        Comparison("prior of semantic", "prior of plain", "own_class1k"),
    ),
)
