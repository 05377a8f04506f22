"""Do samples obey their condition? Priors over rendered scenes, whose truth is known, against other scenes' conditions.

vqgan study obedience --workdir=studies
"""

import numpy as np
import scene_measures
from scenes import CONDITION, PRIOR, PRIORS, TOKENIZER, examples

import vqgan_jax as vq
from vqgan_jax.evaluate import drawing
from vqgan_jax.studies import Base, Comparison, Measure, Study

SCENES = 256
MEASURES = {
    "class": lambda images, truth: scene_measures.of_label(images, truth["label"]),
    "segmentation": lambda images, truth: scene_measures.of_segmentation(images, truth["segmentation"]),
    "depth": lambda images, truth: scene_measures.of_depth(images, truth["depth"]),
    "boxes": lambda images, truth: scene_measures.of_boxes(images, truth["boxes"], truth["categories"]),
}


def obeys(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """How far samples show their own condition, another scene's, and what tokenizer and true scenes show of it."""
    prior = vq.load_prior(workdir)
    kind = prior.config.condition.kind
    truth, batch = examples(prior, SCENES)
    rows = {} if kind == "class" else {"condition": batch[prior.module.condition.field]}
    labels = truth["label"] if kind == "class" else np.zeros(SCENES, np.int32)
    other = {name: np.roll(values, 1, axis=0) for name, values in truth.items()}
    score = lambda images, of: {"obeys": float(np.mean(MEASURES[kind](images, of)))}
    figures = {}
    for guidance in (1.0, 2.0):
        options = {"top_k": 100} | ({"guidance": guidance} if guidance != 1 else {})
        images, _ = drawing.draw(prior, labels, np.arange(SCENES), seed=seed, batch_size=64, options=options, rows=rows)
        figures["own" if guidance == 1 else "own guided"] = score(images, truth)
        if guidance == 1:
            figures["shuffled"] = score(images, other)
    if kind == "boxes":  # what another object's place costs tells whether places are read at all
        nats = lambda rows: -float(np.mean(vq.log_likelihood(prior, codes, condition=rows))) / codes[0].size
        codes, own = vq.encode(prior.tokenizer, batch["image"]), batch["boxes"]
        figures["own"]["nats"] = nats(own)
        figures["places swapped"] = {"nats": nats(swapped(prior, own))}
    kept = np.asarray(vq.to_uint8(vq.decode(prior.tokenizer, vq.encode(prior.tokenizer, batch["image"]))))
    return figures | {"tokenizer": score(kept, truth), "true scenes": score(batch["image"], truth)}


def swapped(prior: vq.Prior, layouts: np.ndarray) -> np.ndarray:
    """Layouts whose objects have each other's boxes."""
    rows = layouts.reshape(len(layouts), -1, 3).copy()
    for row in rows:
        count = np.sum(row[:, 0] != prior.config.condition.num_tokens - 1)
        row[:count, 1:] = np.roll(row[:count, 1:], 1, axis=0)
    return rows.reshape(layouts.shape)


STUDY = Study(
    title="Obedience",
    question="Do samples show what their condition says?",
    claim="Conditional samples follow their segmentation, depth, class or layout (section 4.2).",
    notes=(
        "Rendered scenes at 32 pixels can be read back by colour, so obedience is measured exactly, on 256 held-out "
        "scenes: mean overlap of regions, pairs of pixels in the order of depth, the nearest shape's class, overlap of "
        "boxes. `shuffled` compares the same samples with other scenes' conditions. The verdict "
        "says that samples follow their condition more than by chance. From chance to what the tokenizer keeps of true "
        "scenes, these short priors go a quarter of the way by class, half by segmentation and two thirds by depth and "
        "boxes."
    ),
    bases={
        "tokenizer": TOKENIZER,
        "condition": CONDITION,
        "prior": Base(PRIOR.page, PRIOR.changes, Measure(metrics=("nll",), examples=1_024, function=obeys)),
    },
    runs=PRIORS,
    figures={"obeys": "higher", "nll": "lower", "nats": "lower", "lpips_vgg": "lower", "psnr": "higher"},
    decides=tuple(Comparison(f"{kind}, own", f"{kind}, shuffled", "obeys") for kind in MEASURES),
    also=(
        *(Comparison(f"{kind}, own guided", f"{kind}, own", "obeys") for kind in MEASURES),
        Comparison("boxes, own", "boxes, places swapped", "nats"),
    ),
)
