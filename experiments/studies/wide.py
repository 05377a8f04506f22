"""Images larger than the crops of training: does the sliding window keep a layout, and do its moves show?

VQGAN_JAX_DATA=DIR vqgan study wide --workdir=studies
"""

import larger
import numpy as np
import scene_measures
import scenes
from cifar import CODES, PRIOR, TOKENIZER

import vqgan_jax as vq
from vqgan_jax.evaluate import drawing
from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

SAMPLES, SCENES, STRIDE = 256, 128, 4


def large(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """Samples of 64 pixels by priors that saw crops of 32."""
    prior = vq.load_prior(workdir)
    images, _ = larger.draw(prior, 64, SAMPLES, STRIDE, seed)
    return {"": {"fd_vgg256": larger.frechet(prior, images, seed), "seam": larger.seam(images, 4 * STRIDE)}}


def two_scenes(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """Scenes twice as wide as the crop: two maps side by side, read back by colour."""
    prior = vq.load_prior(workdir)
    truth, batch = scenes.examples(prior, SCENES)
    maps, other = batch["segmentation"], np.roll(batch["segmentation"], 1, axis=0)
    figures = {}
    for name, rows in (("one scene", maps), ("two scenes", np.concatenate([maps, other], axis=2))):
        options = {"top_k": 100} | ({"size": rows.shape[1:3], "stride": STRIDE} if name == "two scenes" else {})
        images, _ = drawing.draw(
            prior,
            np.zeros(SCENES, np.int32),
            np.arange(SCENES),
            seed=seed,
            batch_size=64,
            options=options,
            rows={"condition": rows},
        )
        halves = np.split(images, images.shape[2] // 32, axis=2)
        truths = (truth["segmentation"], np.roll(truth["segmentation"], 1, axis=0))
        overlaps = [
            np.mean(scene_measures.of_segmentation(np.ascontiguousarray(half), of))
            for half, of in zip(halves, truths, strict=False)
        ]
        figures[name] = {"overlap": float(np.mean(overlaps))}
        if len(halves) == 2:
            wrong = scene_measures.of_segmentation(np.ascontiguousarray(halves[0]), truths[1])
            figures["two scenes, exchanged"] = {"overlap": float(np.mean(wrong))}
            figures[name]["seam"] = larger.seam(images, 4 * STRIDE)
    return figures


def prior(**changes) -> Run:
    """A prior over 32-pixel crops of images of 64 pixels."""
    return Run("prior", {"condition.drop": 0.0, **{f"condition.{k}": v for k, v in changes.items()}}, "tokenizer")


CROPS = {"data.resize": (64, 64)}

STUDY = Study(
    title="Wide",
    question="Does the sliding window draw images larger than the crops of training that keep their layout?",
    claim=(
        "With coordinates, or with a map, the sliding window makes images of any size; without them only statistics "
        "that are the same everywhere stay (section 4.3)."
    ),
    notes=(
        "CIFAR-10 brought to 64 pixels, priors over crops of 32; 256 samples of 64 pixels, the window moving by half "
        "its side. `seam` is the jump of colours where the window moved over that elsewhere. `map` is the prior of "
        "rendered scenes by segmentation, drawn over two scenes side by side, which are read back by colour. "
        "fd_vgg takes means over all positions, so that it sees little of a layout."
    ),
    bases={
        "tokenizer": Base(CODES.page, {**CODES.changes, **CROPS}, TOKENIZER.measure),
        "prior": Base(
            PRIOR.page, {**PRIOR.changes, **CROPS}, Measure(metrics=("nll",), examples=1_000, function=large)
        ),
        "scenes": scenes.TOKENIZER,
        "maps": scenes.CONDITION,
        "map": Base(scenes.PRIOR.page, scenes.PRIOR.changes, Measure(function=two_scenes)),
    },
    runs={
        "tokenizer": Run("tokenizer", seeds=scenes.ONCE),
        "scenes": Run("scenes", seeds=scenes.ONCE),
        "maps": Run("maps", scenes.PRIORS["maps"].changes, seeds=scenes.ONCE),
        "nowhere": prior(kind="none"),
        "coordinates": prior(kind="coordinates"),
        "map": Run("map", scenes.PRIORS["segmentation"].changes, "scenes", "maps"),
    },
    figures={
        "fd_vgg256": "lower",
        "seam": "lower",
        "overlap": "higher",
        "nll": "none",
        "lpips_vgg": "lower",
        "psnr": "higher",
    },
    decides=(
        Comparison("coordinates", "nowhere", "fd_vgg256"),
        Comparison("map, two scenes", "map, two scenes, exchanged", "overlap"),
    ),
    also=(Comparison("map, one scene", "map, two scenes", "overlap"),),
)
