"""Draws images from a prior: of classes, of maps or layouts, of any size, or completing what is given."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from rich.console import Console

import vqgan_jax as vq
from vqgan_jax import cli, pictures
from vqgan_jax.data import storage
from vqgan_jax.evaluate import classifier, drawing
from vqgan_jax.train.watch import tracking

EXAMPLES = """examples:
  vqgan sample --workdir=runs/photos_prior --output=out
  vqgan sample --workdir=runs/photos_prior --output=out --labels=2,4 --count=8 --top_k=100 --seed=1
  vqgan sample --workdir=runs/photos_prior --output=out --labels=2 --size=256x1024 --count=1
  vqgan sample --workdir=runs/photos_prior --output=out --complete cat.png --labels=2 --keep=0.5
  vqgan sample --workdir=runs/photos_prior --output=out --complete cat.png --labels=2 --mask=white_is_drawn.png
  vqgan sample --workdir=runs/scenes_prior_segmentation --output=out --count=4 --animate=gif
  vqgan sample --workdir=runs/scenes_prior_segmentation --output=out --condition map.png --size=64x128
  vqgan sample --workdir=runs/captions_prior --output=out --condition "a red cube" "a dog" more_captions.txt
  vqgan sample --workdir=runs/photos_prior --output=out --count=5000 --batch_size=256 --guidance=4 --schedule=cosine

What is not given is as the run's config has it. Each image is SUBJECT_NUMBER.png, where the subject is a class, or a
condition or file by its place; sheet.png shows up to eight of each beside what they were made of; samples.npz holds
images (uint8 n H W 3), labels and indices. Without --condition, a prior that needs maps, objects or captions takes
held-out examples of its own data. Of a prior over captions, what ends in .txt (a caption a line) or .npy (token ids) is
a file, and all else is a caption. Sample i of a subject is the same for any --batch_size.
"""
FPS = 12  # frames a second


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = cli.parser("sample", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="of a stage-2 run, or hf://OWNER/NAME")
    cli.add_step_flag(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--tokenizer", help="folder of its tokenizer; default: as the run's config names it")
    parser.add_argument("--condition_tokenizer", help="likewise, of its condition's tokenizer")
    parser.add_argument("--labels", help="classes, such as 0,3,5; default: all")
    parser.add_argument("--condition", nargs="+", metavar="FILE", help="maps, pictures, layouts as JSON, captions")
    parser.add_argument("--examples", type=int, default=4, help="held-out ones, without --condition; default: 4")
    parser.add_argument("--size", metavar="HxW", help="in pixels; default: that of the training images")
    parser.add_argument(
        "--stride", type=int, default=1, help="codes from one move of a large image's window to the next"
    )
    parser.add_argument("--count", type=int, default=8, help="images of each; default: 8")
    parser.add_argument("--batch_size", type=int, default=64, help="drawn at a time; default: 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--complete", nargs="+", metavar="FILE", help="images of which to keep some codes")
    parser.add_argument("--keep", type=float, default=0.5, help="share to keep of them, the first; default: 0.5")
    parser.add_argument("--mask", metavar="FILE", help="instead: a picture that is white where they are drawn anew")
    parser.add_argument("--animate", choices=("gif", "mp4"), help="also shows how the first image of each came to be")
    parser.add_argument(
        "--accept_rate", type=float, default=1.0, help="keep this share, the best by --scorer (the paper's rejection)"
    )
    parser.add_argument("--scorer", metavar="FILE.py:NAME", help="function (uint8 n H W 3, labels n) -> scores n")
    parser.add_argument("--classifier", metavar="DIR", help="instead of a --scorer: of `vqgan evaluate --classifier`")
    cli.add_sampling_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`vqgan sample`."""
    flags = parse(argv)

    console = Console()
    prior = vq.load_prior(
        flags.workdir, tokenizer=flags.tokenizer, condition=flags.condition_tokenizer, step=flags.step
    )
    scorer, draws = load_scorer(flags)
    size = cli.size(flags.size, prior.config.data.image_size)
    options = cli.sampling_options(flags, prior.config.sampling) | {"size": size, "stride": flags.stride}
    subjects = choose_subjects(flags, prior, size)
    which = np.repeat(np.arange(len(subjects.labels)), draws)
    numbers = np.tile(np.arange(draws), len(subjects.labels))
    if subjects.rows:  # else the class tells them apart
        numbers += which * draws
    with tracking(console) as track:
        images, indices = drawing.draw(
            prior,
            subjects.labels[which],
            numbers,
            seed=flags.seed,
            batch_size=flags.batch_size,
            options=options,
            rows={name: rows[which] for name, rows in subjects.rows.items()},
            progress=track("drawing", len(which)),
        )
    if scorer is not None:
        scores = drawing.scored(scorer, images, subjects.labels[which])
        kept = drawing.best(scores, which.astype(np.int32), flags.count)
        images, indices, which, numbers = images[kept], indices[kept], which[kept], numbers[kept]
    with storage.local_folder(flags.output) as output:
        save(output, images, indices, which, numbers, subjects)
        if flags.animate:
            animate(output, prior, indices, which, subjects, flags.animate)
    console.print(f"{len(images)} images in {flags.output}, step {prior.step} of {flags.workdir}", soft_wrap=True)
    return 0


def load_scorer(flags: argparse.Namespace) -> tuple[drawing.Scorer | None, int]:
    """Returns the function that scores, if any, and how many images of each class to draw for it to choose from."""
    if not 0 < flags.accept_rate <= 1 or flags.count < 1:
        raise cli.UsageError(
            f"`--accept_rate` must be in (0, 1] and `--count` positive; got {flags.accept_rate} and {flags.count}."
        )
    scorers = [flag for flag in (flags.scorer, flags.classifier) if flag is not None]
    if len(scorers) != int(flags.accept_rate < 1):
        raise cli.UsageError(
            "`--accept_rate` below 1 and `--scorer` belong together, or `--classifier` in its place; give both or "
            "neither."
        )
    if not scorers:
        return None, flags.count
    score = (
        classifier.load(flags.classifier).scores if flags.classifier else cli.load_function("--scorer", flags.scorer)
    )
    return score, math.ceil(flags.count / flags.accept_rate)


def choose_subjects(flags: argparse.Namespace, prior: vq.Prior, size: tuple[int, int]) -> drawing.Subjects:
    """Returns what to draw images of."""
    condition = prior.module.condition
    if not 0 <= flags.keep <= 1:
        raise cli.UsageError(f"`--keep` must be a share of the codes, 0 to 1; got {flags.keep}.")
    if flags.mask and not flags.complete:
        raise cli.UsageError("`--mask` says what of a picture is drawn anew; give the picture by --complete.")
    if flags.labels is not None and not condition.num_labels:
        raise cli.UsageError("`--labels` are for a class-conditional prior; this one has no classes.")
    if flags.condition and condition.argument != "condition":
        raise cli.UsageError("`--condition` is for a prior over maps, layouts or captions; this one reads none.")
    if condition.num_labels:
        if flags.complete and flags.labels is None:
            raise cli.UsageError("`--labels` must give the class of the files to complete: one, or one for each.")
        subjects = drawing.Subjects(classes(flags.labels, condition.num_labels), {})
    elif flags.condition:
        subjects = drawing.of_values(prior, condition.read(flags.condition, size, prior.config.data), size)
    elif condition.argument == "condition":
        if flags.size:
            raise cli.UsageError("held-out examples have the training size; for another give --condition FILE.")
        subjects = drawing.held_out(prior, flags.examples)
    else:
        subjects = drawing.Subjects(np.zeros(1, np.int32), {})
    if not flags.complete:
        return subjects
    return drawing.completing(prior, subjects, flags.complete, size, keep=flags.keep, mask=flags.mask)


def classes(labels: str | None, count: int) -> Int[np.ndarray, "n"]:
    """Returns 0,3,5 as numbers; without labels all classes."""
    try:
        return np.array([int(text) for text in labels.split(",")] if labels is not None else range(count), np.int32)
    except ValueError:
        raise cli.UsageError(f"`--labels` must be numbers with commas between; got {labels!r}.") from None


def save(
    output: Path,
    images: UInt8[np.ndarray, "n H W c"],
    indices: Int[np.ndarray, "n h w"],
    which: Int[np.ndarray, "n"],
    numbers: Int[np.ndarray, "n"],
    subjects: drawing.Subjects,
) -> None:
    """Writes single PNGs, a sheet of up to eight of each subject beside what they were made of, and an archive."""
    labels = subjects.labels[which]
    names = which if subjects.rows else labels
    np.savez(output / "samples.npz", images=images, indices=indices, labels=labels, subjects=which, numbers=numbers)
    images = pictures.shown(images)
    for image, name, number in zip(images, names, numbers, strict=True):
        (output / f"{name:04d}_{number:06d}.png").write_bytes(pictures.png(pictures.grid(image[None], columns=1)))
    rows = [images[which == subject][:8] for subject in range(len(subjects.labels))]
    rows = [np.concatenate([*(b[i : i + 1] for b in subjects.beside), row]) for i, row in enumerate(rows)]
    columns = max(map(len, rows))
    pad = lambda row: np.concatenate([row, np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)])
    sheet = pictures.grid(np.concatenate([pad(row) for row in rows]), columns=columns)
    (output / "sheet.png").write_bytes(pictures.png(sheet))


def animate(
    output: Path,
    prior: vq.Prior,
    indices: Int[np.ndarray, "n h w"],
    which: Int[np.ndarray, "n"],
    subjects: drawing.Subjects,
    kind: str,
) -> None:
    """Writes how the first image of each subject came to be, code by code."""
    for subject in range(len(subjects.labels)):
        row = int(np.flatnonzero(which == subject)[0])
        known = subjects.rows["known"][subject] if "known" in subjects.rows else None
        frames = list(drawing.stages(prior, indices[row], known=known))
        path = output / f"{subject:04d}.{kind}"
        if kind == "gif":
            path.write_bytes(pictures.animation(frames, fps=FPS))
        else:
            film(path, frames)


def film(path: Path, frames: list[UInt8[np.ndarray, "H W 3"]]) -> None:
    """Writes an MP4, its last frame held for a second."""
    try:
        import imageio_ffmpeg  # noqa: F401  # type: ignore[reportMissingImports]  (the encoder itself)
        from imageio import v3 as imageio
    except ImportError:
        raise cli.UsageError("MP4 needs an encoder: `pip install 'vqgan-jax[video]'`, or --animate=gif.") from None
    held = np.stack(frames + frames[-1:] * FPS)
    imageio.imwrite(path, held, plugin="FFMPEG", fps=FPS, macro_block_size=1)
