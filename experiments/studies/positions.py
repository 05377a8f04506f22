"""A question of our own: do 2-D rotary positions beat learned ones at equal steps, in the order that they are best at?

VQGAN_JAX_DATA=DIR vqgan study positions --workdir=studies
"""

from cifar import PRIOR, TOKENIZER

from vqgan_jax.studies import Comparison, Run, Study

STUDY = Study(
    title="Positions",
    question="Do 2-D rotary positions give a prior a lower likelihood cost than learned ones at equal steps?",
    claim="Our own: rotary positions of rows and columns beat the learned ones of the published transformer.",
    notes="CIFAR-10, 8 x 8 codes. Learned positions must find out which codes are neighbours: few steps favour rotary.",
    bases={"tokenizer": TOKENIZER, "prior": PRIOR},
    runs={
        "tokenizer": Run("tokenizer", seeds=(0,)),
        "rotary": Run("prior", {"transformer.positions": "rope2d"}, tokenizer="tokenizer"),
        "learned": Run("prior", {"transformer.positions": "learned"}, tokenizer="tokenizer"),
    },
    figures={"nll": "lower", "own_class1k": "higher", "fd_vgg1k": "lower"},
    decides=(Comparison("rotary", "learned", "nll"),),
    also=(Comparison("rotary", "learned", "fd_vgg1k"),),
)
