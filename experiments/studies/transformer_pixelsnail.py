"""The transformer against PixelSNAIL on the same codes: at equal steps, and in equal minutes.

    VQGAN_JAX_DATA=DIR vqgan study transformer_pixelsnail --workdir=studies

The runs of some minutes want a machine with nothing else on it, and one run at a time.
"""

import scenes
from cifar import PRIOR, TOKENIZER

from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

MINUTES = 2.0
SNAIL = {  # as many layers of attention; 1.4 million parameters, the transformer has 1.2
    "transformer.kind": "pixelsnail",
    "transformer.depth": 4,
    "transformer.width": 64,
    "transformer.num_heads": 4,
    "transformer.num_res_blocks": 2,
    "transformer.dropout": 0.0,
    "transformer.dtype": "float32",
}
FOUR_LAYERS = {"transformer.depth": 4}
LIKELIHOOD = Measure(metrics=("nll",), examples=2_000)
BY_CLOCK = {"optimizer.schedule": "constant", "steps": 100_000}  # its end is the minutes'


def runs(data: str) -> dict[str, Run]:
    """Both priors over the codes of one set of images."""
    codes, pairs = f"codes of {data}", {"transformer": {}, "pixelsnail": SNAIL}
    steps = {f"{data}: {name}": Run(f"prior of {data}", changes, codes) for name, changes in pairs.items()}
    clock = {
        f"{data}: {name} by the clock": Run(f"prior of {data}", changes | BY_CLOCK, codes, minutes=MINUTES)
        for name, changes in pairs.items()
    }
    return {codes: Run(codes, seeds=(0,))} | steps | clock


def better(data: str, ending: str = "") -> Comparison:
    """The published statement."""
    return Comparison(f"{data}: transformer{ending}", f"{data}: pixelsnail{ending}", "nll")


CLOCK = " by the clock"

STUDY = Study(
    title="Transformer and PixelSNAIL",
    question="Does a transformer model codes better than PixelSNAIL, at equal steps and in equal time?",
    claim="The transformer beats PixelSNAIL at its steps and in its time on all five sets of images (table 1).",
    header=("data", "transformer, PixelSNAIL's steps", "transformer, PixelSNAIL's time", "PixelSNAIL"),
    published=(
        ("RIN, 85M", "4.78", "4.84", "4.96"),
        ("LSUN-CT, 310M", "4.63", "4.69", "4.89"),
        ("IN, 310M", "4.78", "4.83", "4.96"),
        ("D-RIN, 180M", "4.70", "4.78", "4.88"),
        ("S-FLCKR, 310M", "4.49", "4.57", "4.64"),
    ),
    notes=(
        "Class-conditional priors over 8 x 8 codes with four layers of attention: 1.2 million parameters of the "
        "transformer, 1.4 of PixelSNAIL, both with the learning rate of the transformer's page, not tuned for "
        f"either. Runs by the clock have {MINUTES:g} minutes of steps, on one core each; a step on scenes encodes its "
        "images, too. The transformer is that of our pages, with rotary positions, RMSNorm, SwiGLU and normalised "
        "queries and keys, and not the published one: rotary positions alone are worth 0.13 nats (`positions`)."
    ),
    bases={
        "codes of cifar": TOKENIZER,
        "codes of scenes": scenes.TOKENIZER,
        "prior of cifar": Base(PRIOR.page, PRIOR.changes | FOUR_LAYERS, LIKELIHOOD, cached=True),
        "prior of scenes": Base(scenes.PRIOR.page, scenes.PRIOR.changes | FOUR_LAYERS, LIKELIHOOD),
    },
    runs=runs("cifar") | runs("scenes"),
    figures={"nll": "lower", "lpips_vgg": "lower", "psnr": "higher"},
    decides=(better("cifar"), better("scenes"), better("cifar", CLOCK), better("scenes", CLOCK)),
)
