"""The adversary where it is too strong: what keeps the reconstructions from falling apart when it starts?

VQGAN_JAX_DATA=DIR vqgan study adversary --workdir=studies
"""

from cifar import CODES

from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

LECAM = {"loss.lecam_weight": 0.05, "loss.lecam_decay": 0.99}
AUGMENTED = {"loss.disc_augment": ("color", "translation", "cutout")}
PATCH_V2 = {"discriminator.kind": "patch_v2", "discriminator.channels": 32, "discriminator.num_stages": 2}


def against(changes: dict) -> Run:
    """Goes on training the codes of its seed, now with an adversary."""
    return Run("adversary", changes, start="codes")


STUDY = Study(
    title="Adversary",
    question="Which of the later remedies keeps a strong adversary from spoiling small images?",
    claim="LeCAM and a discriminator of 3x3 convolutions with blur improve the rFID of VQGAN+ from 2.40 to 2.00.",
    header=("step of the roadmap of VQGAN+", "rFID"),
    published=(("ResNet50 logits", "2.40"), ("+ patch_v2, then blur and LeCAM", "2.00")),
    notes=(
        "CIFAR-10 at f4. Every run goes on from the codes of its seed, trained without an adversary: 400 steps of 16 "
        "images, with the paper's weight of 0.8 times the adaptive one from step 100 on; `none` has no adversary. "
        "LeCAM has fifty times its published weight of 0.001, and averages over a hundred steps, as runs are short. "
        "fd_vgg and LPIPS look through the network of the perceptual loss."
    ),
    bases={
        "codes": CODES,
        "adversary": Base(
            CODES.page,
            {**CODES.changes, "steps": 400, "loss.disc_weight": 0.8, "loss.disc_start": 100, "log.eval_every": 50},
            Measure(metrics=("fd_vgg", "lpips_vgg", "psnr", "codebook_usage"), examples=2_000),
        ),
    },
    runs={
        "codes": Run("codes"),
        "none": against({"loss.disc_weight": 0.0}),
        "adaptive": against({}),
        "lecam": against(LECAM),
        "lecam and augmented": against(LECAM | AUGMENTED),
        "patch_v2": against(PATCH_V2),
        "patch_v2 and lecam": against(PATCH_V2 | LECAM),
    },
    figures={"fd_vgg2k": "lower", "lpips_vgg": "lower", "psnr": "higher", "codebook_usage": "higher"},
    decides=(Comparison("patch_v2 and lecam", "adaptive", "fd_vgg2k"),),
    also=(
        Comparison("none", "adaptive", "fd_vgg2k"),
        Comparison("lecam", "adaptive", "fd_vgg2k"),
        Comparison("lecam and augmented", "lecam", "fd_vgg2k"),
        Comparison("patch_v2", "adaptive", "fd_vgg2k"),
        Comparison("none", "adaptive", "psnr"),
        Comparison("lecam", "adaptive", "psnr"),
    ),
)
