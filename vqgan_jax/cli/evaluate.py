"""Measures a tokenizer, a prior or two sets of images: figures with their protocol, a table and a page."""

import argparse
from collections.abc import Sequence

from vqgan_jax import cli

EXAMPLES = """examples:
  vqgan evaluate --workdir=runs/photos
  vqgan evaluate --workdir=runs/imagenet_f16 --metrics=psnr,ssim,lpips_vgg,rfid --inception=pt_inception-2015-12-05.pth
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --neighbours=8
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --sweep='top_k:50,100,250;guidance:1,2,4'
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --sweep='accept_rate:1,0.5,0.1' --scorer=classifier.py:score
  vqgan evaluate --reference=real/ --samples_from=out/samples --size=256
  vqgan evaluate --reference=VIRTUAL_imagenet256_labeled.npz --samples_from=samples.npz --metrics=fid,inception_score

Of a run every held-out example counts once: unflipped, centre crop, in order. Values that depend on the number of
images have it in their names: `fid5k`, `fd_vgg512`. `fd_vgg` is a Frechet distance of VGG16's features, which needs no
file; it is not FID. FID, rFID, KID, the Inception Score and precision and recall by Inception need its weights, which
are never downloaded. Sets are folders, or .npz with images as `arr_0`; a reference may also be statistics, such as the
reference_NETWORK.npz that every evaluation leaves. The results are evaluation.json and evaluation.html.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and overrides of the run's config."""
    parser = argparse.ArgumentParser(
        "vqgan evaluate", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", help="of the run to judge")
    cli.add_step_flag(parser)
    parser.add_argument("--metrics", help="with commas between; default: all common ones that need no file")
    parser.add_argument("--weights", choices=("ema", "raw"), default="", help="default: ema where there are any")
    parser.add_argument(
        "--reference", default="", help="of a run: validation or train; else a folder or .npz. Default: validation"
    )
    parser.add_argument("--samples_from", default="", metavar="DIR_OR_NPZ", help="images to judge, instead of a run")
    parser.add_argument("--size", type=int, help="pixels to which sets are brought; default: that of the first sample")
    parser.add_argument("--reference_count", type=int, help="images behind an .npz of mu and sigma, if it tells none")
    parser.add_argument("--output", metavar="DIR", help="default: evaluation in the workdir, or here")
    parser.add_argument("--inception", metavar="FILE", help="weights of Inception-2015; default: found in the cache")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time, over all devices; default: 64")
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("priors")
    group.add_argument("--samples", type=int, default=256, help="images to draw, 0 for none; default: 256")
    group.add_argument("--sweep", default="", metavar="NAME:VALUE,...[;...]", help="settings of drawing to go through")
    group.add_argument(
        "--scorer", metavar="FILE.py:NAME", help="for accept_rate: (uint8 n H W 3, labels n) -> n scores"
    )
    group.add_argument("--neighbours", type=int, default=0, metavar="N", help="samples to compare with training images")
    group.add_argument("--tokenizer", help="folder of its tokenizer; default: as the run's config names it")
    group.add_argument("--condition_tokenizer", help="likewise, of its condition's tokenizer")
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("guidance", float), ("power", float)):
        group.add_argument(f"--{name}", type=kind)
    group.add_argument("--schedule", help="of the guidance: constant, linear or cosine")
    group.add_argument("--greedy", action="store_true", default=None)
    cli.add_cluster_flags(parser)
    return parser.parse_known_args(argv)


def main(argv: Sequence[str]) -> int:
    """`vqgan evaluate`."""
    flags, overrides = parse(argv)
    if (flags.workdir is None) == (not flags.samples_from):
        raise cli.UsageError("give a run by --workdir, or two sets of images by --reference and --samples_from.")
    if flags.samples_from and not flags.reference:
        raise cli.UsageError("`--samples_from` needs a `--reference`: another folder, or an .npz.")
    if min(flags.batch_size, flags.samples + 1, flags.neighbours + 1) < 1:
        raise cli.UsageError("`--batch_size` must be positive, `--samples` and `--neighbours` 0 or more.")
    cli.join_cluster(flags)
    import shlex

    import jax
    from absl import logging
    from rich.console import Console

    from vqgan_jax.evaluate.of_images import Request

    logging.set_verbosity(logging.WARNING)
    console = Console(quiet=jax.process_index() != 0)
    with progress(console) as bar:

        def track(name: str, total: int):
            task = bar.add_task(name, total=total)
            return lambda done: bar.update(task, completed=done)

        request = Request(
            metrics=tuple(filter(None, (flags.metrics or "").split(","))), seed=flags.seed,
            batch_size=flags.batch_size, inception=flags.inception, track=track,
        )  # fmt: skip
        found = evaluate(flags, overrides, request)
    if jax.process_index() == 0:
        save(flags, console, shlex.join(["vqgan", "evaluate", *argv]), *found)
    return 0


def progress(console):
    """A bar for each part of the work, with its rate."""
    from rich.progress import ProgressColumn, TextColumn
    from rich.text import Text

    from vqgan_jax.train.loop import progress_bar

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task) -> Text:
            """Of one bar."""
            return Text(f"{task.speed or 0.0:,.1f} / s")

    bar = progress_bar(console)
    bar.columns = (TextColumn("{task.description}"), *bar.columns, Rate())
    return bar


def evaluate(flags, overrides: Sequence[str], request) -> tuple:
    """Results, title, lead, what else the page shows, and statistics of the reference."""

    from vqgan_jax import config as configs
    from vqgan_jax import fields, models
    from vqgan_jax.evaluate import of_images, of_tokenizer

    if flags.samples_from:
        sets = of_images.evaluate(
            flags.reference, flags.samples_from, request, size=flags.size, count=flags.reference_count
        )
        lead = f"{flags.samples_from} against {flags.reference}."
        return sets.results, "Two sets of images", lead, {}, sets.reference.summary
    nested = fields.write(models.config_of(flags.workdir, step=flags.step))
    config = configs.read(cli.override(nested, overrides))
    if isinstance(config, configs.Stage2):
        return evaluate_prior(flags, config, request)
    split = flags.reference or "validation"
    if split not in ("validation", "train"):
        raise cli.UsageError(f"`--reference` of a tokenizer must be validation or train; got {split!r}.")
    model = models.load_tokenizer(flags.workdir, step=flags.step, weights=flags.weights)
    told = of_tokenizer.evaluate(model, config, request, workdir=flags.workdir, split=split)
    count = told.found.originals.count
    lead = f"{flags.workdir}, step {model.step}, {model.weights} weights, on {count:,} images: each once, centre crop."
    shown = {"recons": told.shown, "hits": told.found.hits, "distances": told.found.values["lpips_vgg"]}
    return told.results, "A tokenizer, measured", lead, shown, told.found.originals


def evaluate_prior(flags, config, request) -> tuple:
    """The same of a prior."""
    import dataclasses

    from vqgan_jax import drawing, models
    from vqgan_jax.evaluate import of_prior, of_samples
    from vqgan_jax.report.evaluation import swept_settings

    prior = models.load_prior(
        flags.workdir,
        tokenizer=flags.tokenizer,
        condition=flags.condition_tokenizer,
        step=flags.step,
        weights=flags.weights,
    )
    if flags.tokenizer:  # its config names the images of a run on a token cache
        config = dataclasses.replace(
            config, tokenizer=dataclasses.replace(config.tokenizer, workdir=str(flags.tokenizer))
        )
    prior = dataclasses.replace(prior, run=models.Run(config, prior.step, prior.weights))
    given = {field.name: getattr(flags, field.name, None) for field in dataclasses.fields(config.sampling)}
    changed = {name: value for name, value in given.items() if value is not None}
    base = drawing.options_of(dataclasses.replace(config.sampling, **changed))
    settings = of_prior.settings(base, flags.sweep)
    if flags.neighbours > min(of_samples.SHOWN, flags.samples):
        raise cli.UsageError(
            f"`--neighbours` must be at most {of_samples.SHOWN}, and `--samples`; got {flags.neighbours}."
        )
    scorer = cli.load_function("--scorer", flags.scorer) if flags.scorer else None
    asked = of_prior.Asked(
        samples=flags.samples, settings=settings, reference=flags.reference or "validation",
        neighbours=flags.neighbours, scorer=scorer,
    )  # fmt: skip
    told = of_prior.evaluate(prior, request, asked, workdir=flags.workdir)
    swept = swept_settings(told.results)
    title = lambda options: ", ".join(f"{name} {options[name]}" for name in swept) or "samples"
    samples = zip(map(title, settings), told.samples, strict=True) if told.samples else ()
    shown = {"samples": dict(samples), "classes": told.classes, "neighbours": told.neighbours}
    lead = f"{flags.workdir}, step {prior.step}, {prior.weights} weights."
    return told.results, "A prior, measured", lead, shown, told.reference and told.reference.summary


def save(flags, console, command: str, results, title: str, lead: str, shown, reference) -> None:
    """The table on the terminal, and the files."""
    import dataclasses
    import tempfile
    from pathlib import Path

    from rich.table import Table

    from vqgan_jax import storage
    from vqgan_jax.evaluate import moments
    from vqgan_jax.report import evaluation

    output = storage.place(flags.output or (f"{flags.workdir}/evaluation" if flags.workdir else "evaluation"))
    storage.make_folder(output)
    rate = reference.rate if reference else 0.0
    records = [dataclasses.asdict(result) for result in results]
    storage.write_json(output / "evaluation.json", {"results": records, "features_per_second": rate})
    (output / "evaluation.html").write_text(evaluation.page(title, lead, results, command, **shown))
    for network, found in reference.moments.items() if reference else ():
        with tempfile.TemporaryDirectory() as folder:  # the output may be a bucket
            moments.save(f"{folder}/moments.npz", found)
            (output / f"reference_{network}.npz").write_bytes(Path(folder, "moments.npz").read_bytes())
    tables = []
    plain = [result for result in results if not result.sampling] if evaluation.swept_settings(results) else results
    if plain:
        tables.append(Table("metric", "value", "unit", "definition"))
    for result in plain:
        tables[0].add_row(result.metric, f"{result.value:.5g}", evaluation.unit_of(result), result.variant)
    if len(plain) < len(results):
        header, rows = evaluation.by_setting(results)
        tables.append(Table(*header))
        for row in rows:
            tables[-1].add_row(*row)
    console.print(*tables, sep="\n")
    console.print(lead + (f" Features of {rate:,.0f} images a second and process." if rate else ""))
    console.print(f"{output / 'evaluation.json'} and evaluation.html", soft_wrap=True)
