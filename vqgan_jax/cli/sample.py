"""Draws images from a prior: by class, or completing what is given."""

import argparse
from collections.abc import Sequence

EXAMPLES = """examples:
  vqgan sample --workdir=runs/photos_prior --output=out
  vqgan sample --workdir=runs/photos_prior --output=out --labels=2,4 --count=8 --top_k=100 --seed=1
  vqgan sample --workdir=runs/photos_prior --output=out --complete=cat.png --labels=2 --keep=0.5
  vqgan sample --workdir=runs/photos_prior --output=out --count=5000 --batch_size=256 --guidance=4 --schedule=cosine

What is not given is as the run's config has it. Each image is LABEL_NUMBER.png; sheet.png shows up to eight of each,
samples.npz holds images (uint8 n H W 3), labels and indices. Sample i of a class is the same for any --batch_size.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        "vqgan sample", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of a stage-2 run")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--tokenizer", help="folder of its tokenizer; default: as the run's config names it")
    parser.add_argument("--labels", help="classes, such as 0,3,5; default: all")
    parser.add_argument("--count", type=int, default=8, help="images of each class; default: 8")
    parser.add_argument("--batch_size", type=int, default=64, help="drawn at a time; default: 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--complete", nargs="+", metavar="FILE", help="images of which to keep the first tokens")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the tokens to keep of them; default: 0.5")
    parser.add_argument(
        "--accept_rate", type=float, default=1.0, help="keep this share, the best by --scorer (the paper's rejection)"
    )
    parser.add_argument("--scorer", metavar="FILE.py:NAME", help="function (uint8 n H W 3, labels n) -> scores n")
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("guidance", float), ("power", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--schedule", help="of the guidance: constant, linear or cosine")
    parser.add_argument("--greedy", action="store_true", default=None)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`vqgan sample`."""
    flags = parse(argv)
    from pathlib import Path

    import numpy as np
    from rich.console import Console

    import vqgan_jax as vq
    from vqgan_jax import drawing
    from vqgan_jax.train.loop import progress_bar

    console = Console()
    prior = vq.load_prior(flags.workdir, tokenizer=flags.tokenizer)
    scorer, draws = load_scorer(flags)
    options = choose_options(flags, prior.config.sampling)
    given = prompts(flags, prior)
    classes = chosen_classes(flags, prior, len(given["prompt"]) if given else None)
    if given:  # each image is completed so many times
        classes, given["prompt"] = np.repeat(classes, draws), np.repeat(given["prompt"], draws, axis=0)
        numbers = np.arange(len(classes))
    else:
        classes, numbers = np.repeat(classes, draws), np.tile(np.arange(draws), len(classes))
    with progress_bar(console) as bar:
        task = bar.add_task("drawing", total=len(classes))
        images, indices = drawing.draw(
            prior, classes, numbers, seed=flags.seed, batch_size=flags.batch_size, options=options,
            progress=lambda done: bar.update(task, completed=done), **given,
        )  # fmt: skip
    if scorer is not None:
        kept = drawing.best(scorer(images, classes), classes, flags.count)
        images, indices, classes, numbers = images[kept], indices[kept], classes[kept], numbers[kept]
    output = Path(flags.output)
    save(output, images, indices, classes, numbers)
    console.print(f"{len(images)} images in {output}, step {prior.step} of {flags.workdir}")
    return 0


def load_scorer(flags):
    """The function that `--scorer` names, and how many images of each class to draw for it to choose from."""
    import importlib.util
    import math

    from vqgan_jax import cli

    if not 0 < flags.accept_rate <= 1 or flags.count < 1:
        raise cli.UsageError(
            f"`--accept_rate` must be in (0, 1] and `--count` positive; got {flags.accept_rate} and {flags.count}."
        )
    if (flags.scorer is None) != (flags.accept_rate == 1):
        raise cli.UsageError("`--accept_rate` below 1 and `--scorer` belong together; give both or neither.")
    if flags.scorer is None:
        return None, flags.count
    file, _, name = flags.scorer.rpartition(":")
    spec = importlib.util.spec_from_file_location("scorer", file) if file.endswith(".py") else None
    if spec is None or spec.loader is None:
        raise cli.UsageError(f"`--scorer` must look like FILE.py:NAME; got {flags.scorer!r}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name), math.ceil(flags.count / flags.accept_rate)


def choose_options(flags, config) -> dict:
    """What `sample_indices` takes: the run's own settings, and the flags over them."""
    import dataclasses

    from vqgan_jax import drawing

    changed = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(flags, field.name, None)) is not None
    }
    return drawing.options_of(dataclasses.replace(config, **changed))


def prompts(flags, prior) -> dict:
    """Codes of the images to complete, and how many of their tokens to keep."""
    import math

    import numpy as np

    import vqgan_jax as vq
    from vqgan_jax import cli
    from vqgan_jax.data import images, preprocessing

    if not flags.complete:
        return {}
    if not 0 <= flags.keep <= 1:
        raise cli.UsageError(f"`--keep` must be a share of the tokens, 0 to 1; got {flags.keep}.")
    view, unused = preprocessing.evaluation(prior.config.data.image_size), np.random.default_rng(0)
    pixels = np.stack([preprocessing.augment(images.decode(path), view, unused) for path in flags.complete])
    codes = np.asarray(vq.encode(prior.tokenizer, pixels))
    return {"prompt": codes, "prompt_length": math.floor(flags.keep * codes[0].size)}


def chosen_classes(flags, prior, files: int | None):
    """The classes to draw, or the class of each file to complete."""
    import numpy as np

    from vqgan_jax import cli

    if prior.config.condition.kind != "class":
        if flags.labels is not None:
            raise cli.UsageError("`--labels` are for a class-conditional prior; this one has no classes.")
        return np.zeros(files or 1, np.int32)
    if flags.labels is None:
        if files is not None:
            raise cli.UsageError("`--labels` must give the class of the files to complete: one, or one for each.")
        return np.arange(prior.config.condition.num_classes, dtype=np.int32)
    try:
        labels = np.array([int(text) for text in flags.labels.split(",")], np.int32)
    except ValueError:
        raise cli.UsageError(f"`--labels` must be numbers with commas between; got {flags.labels!r}.") from None
    if files is None:
        return labels
    if len(labels) not in (1, files):
        raise cli.UsageError(f"`--labels` must be one class, or one for each of {files} files; got {len(labels)}.")
    return np.broadcast_to(labels, files)


def save(output, images, indices, classes, numbers) -> None:
    """Single PNGs, a sheet of up to eight of each class, and an archive of everything."""
    import numpy as np
    from PIL import Image

    from vqgan_jax import pictures

    output.mkdir(parents=True, exist_ok=True)
    for image, label, number in zip(images, classes, numbers, strict=True):
        Image.fromarray(image).save(output / f"{label:04d}_{number:06d}.png")
    np.savez(output / "samples.npz", images=images, indices=indices, labels=classes, numbers=numbers)
    rows = [images[classes == label][:8] for label in np.unique(classes)]
    pad = lambda row: np.concatenate([row, np.full((max(map(len, rows)) - len(row), *row.shape[1:]), 255, np.uint8)])
    sheet = pictures.grid(np.concatenate([pad(row) for row in rows]), columns=max(map(len, rows)))
    (output / "sheet.png").write_bytes(pictures.png(sheet))
