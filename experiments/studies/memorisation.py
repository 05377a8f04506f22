"""500 training images, far too few: which figure sees that a prior learns them by heart?

VQGAN_JAX_DATA=DIR vqgan study memorisation --workdir=studies
"""

import json
from pathlib import Path

import numpy as np
from cifar import PRIOR, TOKENIZER

import vqgan_jax as vq
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate import drawing, likeness, of_images, of_prior
from vqgan_jax.evaluate.protocol import Request
from vqgan_jax.studies import Base, Comparison, Measure, Run, Study
from vqgan_jax.train import program

STEPS = (50, 100, 200, 400)
SAMPLES, NEAREST = 500, 64


def over_steps(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """Figures of several checkpoints: likelihoods, distances to both sets, and how near samples are to copies."""
    figures = {}
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    request = Request(
        metrics=("nll", "fd_vgg"),
        seed=seed,
        batch_size=100,
        inception=None,
        track=lambda name, total: lambda done: None,
        limit=2_000,
    )
    for step in STEPS:
        prior = vq.load_prior(workdir, step=step)
        settings = [vars(prior.config.sampling.settings)]
        found: dict[str, float] = {}
        for name, reference in (("fd_test", "validation"), ("fd_train", "train")):
            draws = of_prior.DrawRequest(samples=SAMPLES, settings=settings, reference=reference)
            for result in of_prior.evaluate(prior, request, draws, workdir=workdir).results:
                found["nll" if result.metric == "nll" else name] = result.value
        found["train_nll"] = next(line["train/loss"] for line in lines if line["step"] == step and "train/loss" in line)
        found["to_nearest"] = to_nearest(prior, seed)
        figures[f"step {step}"] = found
    return figures


def to_nearest(prior: vq.Prior, seed: int) -> float:
    """The median LPIPS of samples to the training image nearest to each."""
    config = prior.config
    classes = np.arange(NEAREST, dtype=np.int32) % 10
    options = vars(config.sampling.settings)
    images, _ = drawing.draw(prior, classes, np.arange(NEAREST), seed=seed, batch_size=64, options=options)
    source = program.open_split(config, config.data.train_split)
    training = of_images.crops(source, list(range(len(source))), config.data.image_size)
    _, distances = likeness.nearest_images(load_lpips(), images, np.split(training, range(50, len(training), 50)))
    return float(np.median(distances[:, 0]))


FIRST, LAST = (f"500 images, step {step}" for step in (STEPS[1], STEPS[-1]))

STUDY = Study(
    title="Memorisation",
    question="Which figure sees that a prior reproduces its training images?",
    claim="Over-fitting shows in the held-out likelihood; the Frechet distance improves meanwhile (appendix E).",
    header=("checkpoint", "FID, FFHQ", "FID, CelebA-HQ"),
    published=(
        ("best validation NLL, epoch 10 and 13", "9.6", "10.2"),
        ("best training NLL, epoch 1000", "2.68", "3.86"),
    ),
    notes=(
        "CIFAR-10: a prior of 500 images, 400 steps of 32 are 26 epochs. `fd_train` is against the 500 training "
        "images, `fd_test` against 2000 test images, of 500 samples; `to_nearest` is the median LPIPS of 64 samples to "
        "the training image that is nearest to each; `train_nll` the mean loss of the 50 steps "
        "before. Distances to sets of different sizes are not compared. At its lowest held-out likelihood the prior "
        "has learned little yet, so that a part of what the distance gains afterwards is training, and not copying."
    ),
    bases={
        "tokenizer": TOKENIZER,
        "prior": Base(
            PRIOR.page,
            {
                **PRIOR.changes,
                "steps": STEPS[-1],
                "batch_size": 32,
                "data.train_split": "train[:500]",
                "data.flip": False,
                "transformer.width": 192,
                "log.keep": 8,
                "log.eval_every": 50,
                "log.checkpoint_every": 50,
            },
            Measure(function=over_steps),
        ),
    },
    runs={
        "tokenizer": Run("tokenizer", seeds=(0,)),
        "500 images": Run("prior", tokenizer="tokenizer"),
    },
    figures={"nll": "lower", "train_nll": "lower", "fd_train": "lower", "fd_test": "lower", "to_nearest": "higher"},
    decides=(
        Comparison(FIRST, LAST, "nll"),
        Comparison(LAST, FIRST, "fd_train"),
        Comparison(FIRST, LAST, "to_nearest"),
    ),
    also=(
        Comparison(LAST, FIRST, "train_nll"),
        Comparison(LAST, FIRST, "fd_test"),
    ),
)
