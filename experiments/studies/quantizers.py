"""Quantizers of later work: which codes reconstruct best, are all used, and bear being changed?

VQGAN_JAX_DATA=DIR vqgan study quantizers --workdir=studies
"""

from cifar import CODES, FIGURES, PRIOR_OF_ITS_OWN

from vqgan_jax.studies import Comparison, Run, Study

ROTATION = {"quantizer.estimator": "rotation"}
EUCLIDEAN = {"quantizer.unit_length": False}
BITS = {512: 9, 4_096: 12}


def size(k: int) -> dict:
    """A learned table of `k` codes. Averages of a large table are longer, because each code is hit seldom."""
    start = {"quantizer.kmeans_batches": 32, "quantizer.decay": 0.99} if k > 512 else {}
    return {"quantizer.codebook_size": k} | start


def simvq(k: int) -> dict:
    """So many codes of a frozen table and a learned matrix."""
    return {"quantizer.kind": "simvq", "quantizer.codebook_size": k, "quantizer.embed_dim": 8}


def kinds(k: int) -> dict[str, Run]:
    """Runs with `k` codes: every kind at 512, and at 4096 only the kinds that a statement compares."""
    changes = {
        "unit": size(k),
        "fsq": {"quantizer.kind": "fsq", "quantizer.levels": (8,) * (BITS[k] // 3)},
        "lfq": {"quantizer.kind": "lfq", "quantizer.bits": BITS[k]},
        "simvq": simvq(k),
        "simvq rotated": simvq(k) | ROTATION,
        "euclidean rotated": size(k) | EUCLIDEAN | ROTATION,
    }
    compared = changes if k == 512 else ("unit", "lfq", "simvq")
    return {f"{name} {k}": Run("tokenizer", changes[name]) for name in compared}


def prior(kind: str) -> Run:
    """A prior over 512 codes of a kind."""
    return Run("prior", tokenizer=f"{kind} 512")


STUDY = Study(
    title="Quantizers",
    question="Which of the later quantizers beats unit-length codes, at the same network and the same steps?",
    claim=(
        "Once all codes live, the kind of quantizer moves little; SimVQ is best of them at large codebooks (Zhu et al. "
        "2024: ImageNet at 128 pixels, 65,536 codes)."
    ),
    header=("codes", "rFID", "used"),
    published=(
        ("plain", "3.74", "1.4%"),
        ("low-dimensional", "2.63", "-"),
        ("FSQ", "2.80", "-"),
        ("LFQ", "2.88", "-"),
        ("SimVQ", "2.24", "100%"),
    ),
    notes=(
        "CIFAR-10 at f4, 500 steps of 16 images, no discriminator. Steps of all kinds take the same time within a few "
        "percent. Likelihoods are in nats a code, of which an image has 64."
    ),
    bases={"tokenizer": CODES, "prior": PRIOR_OF_ITS_OWN},
    runs=kinds(512) | kinds(4_096) | {f"prior of {kind}": prior(kind) for kind in ("unit", "fsq", "simvq")},
    figures=FIGURES,
    decides=(Comparison("simvq 4096", "unit 4096", "fd_vgg2k"), Comparison("simvq 4096", "lfq 4096", "fd_vgg2k")),
    also=(
        *(Comparison(f"{kind} 512", "unit 512", "fd_vgg2k") for kind in ("fsq", "lfq", "simvq", "euclidean rotated")),
        Comparison("simvq rotated 512", "simvq 512", "fd_vgg2k"),
        Comparison("unit 4096", "unit 512", "fd_vgg2k"),
        Comparison("fsq 512", "unit 512", "pfd_vgg2k"),
        *(Comparison(f"prior of {kind}", "prior of unit", "fd_vgg1k") for kind in ("fsq", "simvq")),
    ),
)
