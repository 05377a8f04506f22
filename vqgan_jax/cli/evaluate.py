"""Measures a tokenizer, a prior or two sets of images: figures with their protocol, a table and a page."""

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence

import jax
from rich.console import Console
from rich.table import Table

from vqgan_jax import cli, models
from vqgan_jax import config as configs
from vqgan_jax.convert import hub
from vqgan_jax.data import storage
from vqgan_jax.evaluate import of_images, of_prior, of_tokenizer
from vqgan_jax.evaluate.classifier import open_classifier
from vqgan_jax.evaluate.of_images import save_moments
from vqgan_jax.evaluate.protocol import Evaluation, Request, swept_settings
from vqgan_jax.nn import fields
from vqgan_jax.report.evaluation import by_setting, page, unit_of
from vqgan_jax.train.watch import tracking

EXAMPLES = """examples:
  vqgan evaluate --workdir=runs/photos
  vqgan evaluate --workdir=runs/imagenet_f16 --metrics=psnr,ssim,lpips_vgg,rfid --inception=pt_inception-2015-12-05.pth
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --neighbours=8
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --sweep='top_k:50,100,250;guidance:1,2,4'
  vqgan evaluate --workdir=runs/photos_prior --samples=512 --sweep='accept_rate:1,0.5,0.1' --scorer=classifier.py:score
  vqgan evaluate --workdir=runs/photos_prior --metrics=class_accuracy --classifier=runs/photos_classifier
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
    parser = cli.parser("evaluate", __doc__, EXAMPLES)
    parser.add_argument("--workdir", help="of the run to measure, or hf://OWNER/NAME")
    cli.add_step_flag(parser)
    parser.add_argument("--metrics", help="with commas between; default: all common ones that need no file")
    parser.add_argument("--weights", choices=("ema", "raw"), default="", help="default: ema where there are any")
    parser.add_argument(
        "--reference", default="", help="of a run: validation or train; else a folder or .npz. Default: validation"
    )
    parser.add_argument("--samples_from", default="", metavar="DIR_OR_NPZ", help="images to measure, instead of a run")
    parser.add_argument("--size", type=int, help="pixels to which sets are brought; default: that of the first sample")
    parser.add_argument("--reference_count", type=int, help="images behind an .npz of mu and sigma, if it tells none")
    parser.add_argument("--output", metavar="DIR", help="default: evaluation in the workdir, or here")
    parser.add_argument("--inception", metavar="FILE", help="weights of Inception-2015; default: found in the cache")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time, over all devices; default: 64")
    parser.add_argument(
        "--examples", type=int, default=0, help="held-out ones to look at, spread over all; default: every one"
    )
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("priors")
    group.add_argument("--samples", type=int, default=256, help="images to draw, 0 for none; default: 256")
    group.add_argument("--sweep", default="", metavar="NAME:VALUE,...[;...]", help="settings of drawing to go through")
    group.add_argument(
        "--scorer", metavar="FILE.py:NAME", help="for accept_rate: (uint8 n H W 3, labels n) -> n scores"
    )
    group.add_argument(
        "--classifier",
        metavar="DIR",
        help="for class_accuracy and, without --scorer, accept_rate; a small one is trained there if there is none",
    )
    group.add_argument("--neighbours", type=int, default=0, metavar="N", help="samples to compare with training images")
    group.add_argument("--tokenizer", help="folder of its tokenizer; default: as the run's config names it")
    group.add_argument("--condition_tokenizer", help="likewise, of its condition's tokenizer")
    cli.add_sampling_flags(group)
    cli.add_cluster_flags(parser)
    return parser.parse_known_args(argv)


def main(argv: Sequence[str]) -> int:
    """`vqgan evaluate`."""
    flags, overrides = parse(argv)
    if (flags.workdir is None) == (not flags.samples_from):
        raise cli.UsageError("give a run by --workdir, or two sets of images by --reference and --samples_from.")
    if flags.samples_from and not flags.reference:
        raise cli.UsageError("`--samples_from` needs a `--reference`: another folder, or an .npz.")
    if min(flags.batch_size, flags.samples + 1, flags.neighbours + 1, flags.examples + 1) < 1:
        raise cli.UsageError("`--batch_size` must be positive, `--samples`, `--neighbours` and `--examples` 0 or more.")
    console = cli.join_cluster(flags)
    with tracking(console) as track:
        request = Request(
            metrics=tuple(filter(None, (flags.metrics or "").split(","))),
            seed=flags.seed,
            batch_size=flags.batch_size,
            inception=flags.inception,
            track=track,
            limit=flags.examples,
        )
        if flags.samples_from:
            evaluation = of_images.evaluate(
                flags.reference, flags.samples_from, request, size=flags.size, count=flags.reference_count
            )
        else:
            nested = fields.write(models.config_of(flags.workdir, step=flags.step))
            config = configs.read(cli.override(nested, overrides))
            evaluation = BY_STAGE[config.stage](flags, config, request)
    if jax.process_index() == 0:
        save(flags, console, shlex.join(["vqgan", "evaluate", *argv]), evaluation)
    return 0


def evaluate_tokenizer(flags: argparse.Namespace, config: configs.Stage1, request: Request) -> Evaluation:
    """Returns the evaluation of a run of stage 1."""
    model = models.load_tokenizer(flags.workdir, step=flags.step, weights=flags.weights)
    split = flags.reference or "validation"
    return of_tokenizer.evaluate(model, config, request, workdir=flags.workdir, split=split)


def evaluate_prior(flags: argparse.Namespace, config: configs.Stage2, request: Request) -> Evaluation:
    """Returns the evaluation of a run of stage 2."""
    prior = models.load_prior(
        flags.workdir,
        tokenizer=flags.tokenizer,
        condition=flags.condition_tokenizer,
        step=flags.step,
        weights=flags.weights,
    )
    if flags.tokenizer:  # its config names the images of a run on a token cache
        tokenizer = dataclasses.replace(config.tokenizer, workdir=str(flags.tokenizer))
        config = dataclasses.replace(config, tokenizer=tokenizer)
    prior = dataclasses.replace(prior, run=models.Run(config, prior.step, prior.weights))
    classifier, scorer = None, None
    if flags.classifier:
        images = of_prior.image_config(prior, flags.workdir)
        # One for all seeds of what it measures.
        classifier = open_classifier(flags.classifier, images, seed=0, track=request.track)
        scorer = classifier.scores
    if flags.scorer:
        scorer = cli.load_function("--scorer", flags.scorer)
    draws = of_prior.DrawRequest(
        samples=flags.samples,
        settings=of_prior.settings(cli.sampling_options(flags, config.sampling), flags.sweep),
        reference=flags.reference or "validation",
        neighbours=flags.neighbours,
        scorer=scorer,
        classifier=classifier,
    )
    return of_prior.evaluate(prior, request, draws, workdir=flags.workdir)


BY_STAGE: dict[int, Callable[..., Evaluation]] = {1: evaluate_tokenizer, 2: evaluate_prior}


def save(flags: argparse.Namespace, console: Console, command: str, evaluation: Evaluation) -> None:
    """Writes the files, and prints the tables."""
    ours = flags.workdir is not None and not flags.workdir.startswith(hub.SCHEME)
    output = storage.place(flags.output or (f"{flags.workdir}/evaluation" if ours else "evaluation"))
    storage.make_folder(output)
    results, reference = evaluation.results, evaluation.reference
    rate = reference.rate if reference else 0.0
    figures = [dataclasses.asdict(result) for result in results]
    storage.write_json(output / "evaluation.json", {"results": figures, "features_per_second": rate})
    text = page(evaluation.title, evaluation.lead, results, command, **evaluation.sections)
    (output / "evaluation.html").write_text(text)
    for network, moments in reference.moments.items() if reference else ():
        save_moments(output / f"reference_{network}.npz", moments)
    single = [result for result in results if not result.sampling] if swept_settings(results) else results
    if single:
        table = Table("metric", "value", "unit", "definition")
        for result in single:
            table.add_row(result.metric, f"{result.value:.5g}", unit_of(result), result.variant)
        console.print(table)
    if len(single) < len(results):
        header, rows = by_setting(results)
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(evaluation.lead + (f" Features of {rate:,.0f} images a second and process." if rate else ""))
    console.print(f"{output / 'evaluation.json'} and evaluation.html", soft_wrap=True)
