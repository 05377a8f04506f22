"""The prior's parts one at a time: what of later transformers helps a small one, on the codes of one tokenizer?

VQGAN_JAX_DATA=DIR vqgan study prior_parts --workdir=studies
"""

from cifar import PRIOR, TOKENIZER

from vqgan_jax.studies import Base, Comparison, Run, Study

GPT = {  # the published transformer
    "transformer.norm": "layer",
    "transformer.mlp": "gelu",
    "transformer.positions": "learned",
    "transformer.qk_norm": False,
    "transformer.bias": True,
}
PARTS = {
    "gpt": {},
    "rms norm": {"transformer.norm": "rms"},
    "swiglu": {"transformer.mlp": "swiglu"},
    "qk norm": {"transformer.qk_norm": True},
    "adaln": {"transformer.adaln": True},
    "targets": {"transformer.positions": "learned_target"},
    "random order": {"transformer.positions": "learned_target", "loss.random_order": (0.3, 0.7)},
    "gpt slower": {"optimizer.learning_rate": 1e-3},
    "muon": {"optimizer.matrices": "muon"},
    "muon slower": {"optimizer.matrices": "muon", "optimizer.learning_rate": 1e-3},
}

STUDY = Study(
    title="Parts of a prior",
    question="Which parts of later transformers help a small prior at equal steps?",
    claim=(
        "Random orders annealed to raster improve the FID of RAR-L from 3.08 to 2.18 (Yu et al. 2024). RMSNorm, "
        "SwiGLU, rotary positions and normalised queries and keys were published as a package, never one at a time."
    ),
    header=("RAR-L", "FID"),
    published=(("raster", "3.08"), ("random orders", "3.01"), ("annealed", "2.18")),
    notes=(
        "CIFAR-10, 8 x 8 codes of 512, all priors on the codes of one tokenizer. Each part alone is added to the "
        "published transformer; rotary positions have the study `positions`. The positions of targets, without which "
        "there is no random order, stand alone, too. Learning rates are 2e-3, and of the slower ones 1e-3."
    ),
    bases={"tokenizer": TOKENIZER, "prior": Base(PRIOR.page, {**PRIOR.changes, **GPT}, PRIOR.measure, cached=True)},
    runs={"tokenizer": Run("tokenizer", seeds=(0,))}
    | {name: Run("prior", changes, tokenizer="tokenizer") for name, changes in PARTS.items()},
    figures={"nll": "lower", "own_class1k": "higher", "fd_vgg1k": "lower"},
    decides=(Comparison("random order", "targets", "fd_vgg1k"),),
    also=(
        *(Comparison(name, "gpt", "nll") for name in PARTS if name not in ("gpt", "gpt slower", "muon slower")),
        Comparison("gpt slower", "gpt", "nll"),
        Comparison("muon slower", "muon", "nll"),
        Comparison("muon slower", "gpt slower", "nll"),
    ),
)
