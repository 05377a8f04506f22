"""What studies of rendered scenes have in common: tokenizers of images and of conditions, priors, and the truth."""

import numpy as np

import vqgan_jax as vq
from vqgan_jax import data
from vqgan_jax.data import storage
from vqgan_jax.studies import Base, Measure, Run
from vqgan_jax.train import program
from vqgan_jax.train.metrics import Writer

TOKENIZER = Base(
    "stage1_scenes",
    {"steps": 800, "log.metrics_every": 50},
    Measure(metrics=("lpips_vgg", "psnr"), examples=1_000),
)


def last_figures(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """A tokenizer of maps is measured while it trains: these are its last held-out figures."""
    lines = Writer.read(storage.place(workdir) / "metrics.jsonl")
    last = next(line for line in reversed(lines) if any(name.startswith("eval/") for name in line))
    return {"": {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}}


CONDITION = Base("cond_scenes", {"steps": 600}, Measure(function=last_figures))
PRIOR = Base(
    "stage2_scenes",
    {
        "steps": 1_000,
        "batch_size": 16,
        "transformer.depth": 3,
        "transformer.width": 128,
        "log.eval_every": 500,
        "log.checkpoint_every": 250,
    },
)
ONCE = (0,)
MAPS = {"condition.tokenizer.codebook_size": 256, "condition.tokenizer.downsample_factor": 4}
PRIORS = {
    "tokenizer": Run("tokenizer", seeds=ONCE),
    "maps": Run(
        "condition",
        {
            "data.field": "segmentation",
            "model.image_channels": 9,
            "loss.pixel": "cross_entropy",
            "loss.perceptual_weight": 0.0,
        },
        seeds=ONCE,
    ),
    "depths": Run(
        "condition",
        {
            "data.field": "depth",
            "model.image_channels": 1,
            "loss.pixel": "l1",
            "loss.perceptual_weight": 1.0,
        },
        seeds=ONCE,
    ),
    "class": Run("prior", tokenizer="tokenizer"),
    "segmentation": Run(
        "prior",
        {"condition.kind": "segmentation", "condition.num_classes": 9, **MAPS},
        tokenizer="tokenizer",
        condition="maps",
    ),
    "depth": Run("prior", {"condition.kind": "depth", **MAPS}, tokenizer="tokenizer", condition="depths"),
    "boxes": Run(
        "prior",
        {
            "condition.kind": "boxes",
            "condition.num_classes": 8,
            "condition.num_tokens": 65,
            "condition.max_objects": 6,
            "condition.crop_points": False,
            "transformer.bidirectional_prefix": 18,
        },
        tokenizer="tokenizer",
    ),
}


def examples(prior: vq.Prior, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Held-out scenes: all their truth, and as the prior's loader shows them."""
    config = prior.config
    source = data.spread(program.open_split(config, config.data.eval_split), count)
    scenes = [source[i] for i in range(count)]
    truth = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    truth |= {"depth": truth["depth"][..., None], "segmentation": truth["segmentation"].astype(np.int32)}
    (batch,) = data.evaluation_batches(
        source, image_size=config.data.image_size, batch_size=count, fields=config.views()
    )
    return truth, batch
