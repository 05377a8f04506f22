"""Do samples obey their condition? Priors over rendered scenes, whose truth is known, against shuffled conditions.

    python benchmarks/scenes.py --kind=segmentation --workdir=runs/scenes_prior_segmentation --sheet=sheet.png

One row a measure: of samples under their own condition, of the same samples against other examples' conditions, of
what the tokenizer alone keeps of the true images, and of the true images. Means over held-out scenes, with the
standard error.
"""

import argparse
from pathlib import Path

import numpy as np
import obedience

import vqgan_jax as vq
from vqgan_jax import data, pictures
from vqgan_jax.evaluate import drawing
from vqgan_jax.train import program

MEASURES = {
    "segmentation": {
        "mean overlap of regions": lambda images, truth: obedience.of_segmentation(images, truth["segmentation"]),
        "pixel accuracy": lambda images, truth: obedience.pixel_accuracy(images, truth["segmentation"]),
    },
    "depth": {"pairs of pixels in order": lambda images, truth: obedience.of_depth(images, truth["depth"])},
    "class": {"class right": lambda images, truth: obedience.of_label(images, truth["label"])},
    "boxes": {
        "overlap of boxes": lambda images, truth: obedience.of_boxes(images, truth["boxes"], truth["categories"])
    },
}
MEASURES["centers"] = MEASURES["boxes"]


def main() -> None:
    """Draws, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=MEASURES, required=True)
    parser.add_argument("--workdir", required=True, help="of the prior's run")
    parser.add_argument("--examples", type=int, default=256, help="held-out scenes, one sample each; default: 256")
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--guidance", type=float, default=1.0, help="1 is off; default: 1")
    parser.add_argument("--sheet", help="PNG to write: condition, what its tokenizer keeps, true image, four samples")
    flags = parser.parse_args()
    prior = vq.load_prior(flags.workdir)
    truth, batch = examples(prior, flags.examples)
    options = {"top_k": flags.top_k} | ({"guidance": flags.guidance} if flags.guidance != 1 else {})
    rows = {} if flags.kind == "class" else {"condition": batch[prior.module.condition.field]}
    labels = truth["label"] if flags.kind == "class" else np.zeros(flags.examples, np.int32)
    images, _ = drawing.draw(
        prior, labels, np.arange(flags.examples), seed=0, batch_size=64, options=options, rows=rows
    )
    other = {name: np.roll(values, 1, axis=0) for name, values in truth.items()}
    tokenizer = prior.tokenizer
    kept = np.asarray(vq.to_uint8(vq.decode(tokenizer, vq.encode(tokenizer, batch["image"]))))
    print(f"{flags.kind}, step {prior.step}, {flags.examples} scenes, top-k {flags.top_k}, guidance {flags.guidance}")
    for name, measure in MEASURES[flags.kind].items():
        columns = {
            "own": measure(images, truth), "shuffled": measure(images, other), "tokenizer": measure(kept, truth),
            "true": measure(batch["image"], truth),
        }  # fmt: skip
        cells = [f"{k} {np.mean(v):.3f} +- {np.std(v) / np.sqrt(len(v)):.3f}" for k, v in columns.items()]
        print(f"  {name}: " + ", ".join(cells))
    if flags.kind == "boxes":
        own, indices = batch["boxes"], vq.encode(prior.tokenizer, batch["image"])
        layouts = {"own": own, "places swapped": swapped(prior, own), "shuffled": np.roll(own, 1, axis=0)}
        nats = lambda rows: -float(np.mean(vq.log_likelihood(prior, indices, condition=rows))) / indices[0].size
        print("  nats a token: " + ", ".join(f"{name} {nats(rows):.3f}" for name, rows in layouts.items()))
    if flags.sheet:
        Path(flags.sheet).write_bytes(pictures.png(sheet(prior, options)))


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


def swapped(prior: vq.Prior, layouts: np.ndarray) -> np.ndarray:
    """Layouts whose objects have each other's boxes: what they cost more tells whether places are used at all."""
    rows = layouts.reshape(len(layouts), -1, 3).copy()
    for row in rows:
        count = np.sum(row[:, 0] != prior.config.condition.num_tokens - 1)
        row[:count, 1:] = np.roll(row[:count, 1:], 1, axis=0)
    return rows.reshape(layouts.shape)


def sheet(prior: vq.Prior, options: dict) -> np.ndarray:
    """Eight held-out conditions with four samples each."""
    classes = np.arange(prior.module.condition.num_labels, dtype=np.int32)
    subjects = drawing.Subjects(classes, {}) if len(classes) else drawing.held_out(prior, 8)
    which = np.repeat(np.arange(8), 4)
    images, _ = drawing.draw(
        prior, subjects.labels[which], np.arange(32), seed=1, batch_size=32, options=options,
        rows={name: rows[which] for name, rows in subjects.rows.items()},
    )  # fmt: skip
    rows = [[b[i] for b in subjects.beside] + list(images[which == i]) for i in range(8)]
    return pictures.grid(np.stack([image for row in rows for image in row]), columns=len(rows[0]))


if __name__ == "__main__":
    main()
