"""In which order should a prior write its codes? Six orders over the same codes.

VQGAN_JAX_DATA=DIR vqgan study orders --workdir=studies
"""

from cifar import PRIOR, TOKENIZER

from vqgan_jax.studies import Comparison, Run, Study

ORDERS = ("raster", "z_curve", "alternate", "spiral_out", "spiral_in", "subsample")

STUDY = Study(
    title="Orders",
    question="Is row-major the best of six orders in which a transformer writes the codes of an image?",
    claim="Row-major has the lowest validation NLL of six orders after a fixed budget (appendix F).",
    header=("order", "validation NLL, ImageNet, nats a code"),
    published=(
        ("row-major", "4.767"),
        ("z-curve", "4.810"),
        ("alternate", "4.812"),
        ("spiral out", "4.889"),
        ("spiral in", "4.901"),
        ("subsample", "5.015"),
    ),
    notes=(
        "CIFAR-10, 8 x 8 codes instead of 16 x 16, all priors on the codes of one tokenizer. Positions are 2-D rotary; "
        "the published ones were learned. Rotary positions are relative: where the next code stands is easiest to tell "
        "in row-major order, so that a part of this advantage, which is larger than the published one, may be theirs."
    ),
    bases={"tokenizer": TOKENIZER, "prior": PRIOR},
    runs={"tokenizer": Run("tokenizer", seeds=(0,))}
    | {order: Run("prior", {"transformer.order": order}, tokenizer="tokenizer") for order in ORDERS},
    figures={"nll": "lower", "own_class1k": "higher", "fd_vgg1k": "lower"},
    decides=tuple(Comparison("raster", order, "nll") for order in ORDERS[1:]),
    also=tuple(Comparison("raster", order, "fd_vgg1k") for order in ORDERS[1:]),
)
