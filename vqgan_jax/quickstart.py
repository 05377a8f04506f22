"""The main job from one command: tokenizer, token cache, prior, samples and a report, on the embedded photographs."""

import dataclasses
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console

from vqgan_jax import api, data, models
from vqgan_jax import config as configs
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.data import storage
from vqgan_jax.evaluate import drawing, of_training
from vqgan_jax.evaluate.likeness import nearest_labels
from vqgan_jax.nn.pixels import to_uint8
from vqgan_jax.report import run as report
from vqgan_jax.report.quickstart import Results, page
from vqgan_jax.train import loop, metrics, program, token_cache, watch

PER_CLASS = 8  # samples, and twice as many real crops to compare them with


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What to run, and where.

    Attributes:
      workdir: gets `tokenizer`, `tokens`, `prior`, `report.html` and `quickstart.json`.
      tokenizer: stage 1.
      prior: stage 2, on the token cache.
      images: stage 2 on images, from which the cache is made.
      commands: the same by hand.
    """

    workdir: epath.Path
    tokenizer: configs.Stage1
    prior: configs.Stage2
    images: configs.Stage2
    commands: list[str]


class Clock:
    """Seconds of each step over all runs of the command, kept in a file."""

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text())["seconds"] if path.exists() else {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work and adds its time, also where it fails or is stopped."""
        start = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            storage.write_json(self.path, {"seconds": self.seconds, "peak_gib": self.peak_gib})

    @property
    def peak_gib(self) -> float:
        """The most memory that this process, or an earlier one of the same command, had."""
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return max(now, json.loads(self.path.read_text())["peak_gib"] if self.path.exists() else 0.0)


def run(plan: Quickstart, console: Console) -> bool:
    """Does what is not done yet.

    Returns:
      Whether everything is; if not, a signal stopped it and the same call goes on.
    """
    storage.make_folder(plan.workdir)

    def train(config: Any, name: str) -> bool:
        """Trains a stage; in its folder is a page then, and what it finds is printed."""
        finished = loop.train(config, folder(name), console, evaluator=of_training.evaluator)
        if finished:
            report.finish(str(folder(name)), console)
        return finished

    clock = Clock(plan.workdir / "quickstart.json")
    folder = lambda name: plan.workdir / name
    say = lambda number, text: console.rule(f"[bold]{number} of 5[/]  {text}", align="left")

    say(1, "the tokenizer: photographs to codes and back")
    if not clock.run("tokenizer", lambda: train(plan.tokenizer, "tokenizer")):
        return False
    say(2, "the token cache: crops of the photographs as codes")
    if not (folder("tokens") / "tokens.json").exists():
        clock.run("token cache", lambda: token_cache.write_cache(plan.images, folder("tokens"), console))
    say(3, "the prior: codes of each class")
    if not clock.run("prior", lambda: train(plan.prior, "prior")):
        return False
    say(4, "samples and completions")
    results = clock.run("pictures", lambda: results_of(plan, console))
    results = dataclasses.replace(results, seconds=clock.seconds, peak_gib=clock.peak_gib)
    say(5, "the report")
    lines = [metrics.Writer.read(folder(name) / "metrics.jsonl") for name in ("tokenizer", "prior")]
    (plan.workdir / "report.html").write_text(page(plan, results, *lines))
    console.print(
        f"[bold]{results.own_class:.0%}[/] of the samples have their nearest photograph in their own class "
        f"(by chance {1 / len(results.names):.0%}). Everything else: [bold]{plan.workdir / 'report.html'}[/]"
    )
    return True


def results_of(plan: Quickstart, console: Console) -> Results:
    """Pictures and figures of both trained models."""
    prior = models.load_prior(plan.workdir / "prior")
    held_out = program.open_split(plan.tokenizer, plan.tokenizer.data.eval_split)
    size, names = plan.tokenizer.data.image_size, held_out.class_names
    (batch,) = data.evaluation_batches(held_out, image_size=size, batch_size=len(held_out))
    originals, labels = batch["image"], batch["label"]
    indices = np.asarray(api.encode(prior.tokenizer, originals))
    shown = np.array([np.flatnonzero(labels == label)[0] for label in range(len(names))])
    classes = np.repeat(np.arange(len(names), dtype=np.int32), PER_CLASS)
    thrice = np.repeat(shown, 3)
    options = vars(plan.prior.sampling.settings)
    common: dict[str, Any] = {"seed": plan.prior.seed, "batch_size": 64, "options": options}
    with watch.tracking(console) as track:
        numbers, progress = np.tile(np.arange(PER_CLASS), len(names)), track("samples", len(classes))
        samples, _ = drawing.draw(prior, classes, numbers, progress=progress, **common)
        numbers, progress = np.arange(len(thrice)), track("completions", len(thrice))
        prompts = {"prompt": indices[thrice]}
        completed, _ = drawing.draw(prior, labels[thrice], numbers, rows=prompts, progress=progress, **common)
    lpips, crops = jax.device_put(load_lpips()), real_crops(plan, len(names))
    in_own_class = lambda images, labels: float(np.mean(nearest_labels(lpips, images, *crops) == labels))
    return Results(
        names=names,
        grid=indices.shape[1:],
        originals=originals,
        recons=np.asarray(to_uint8(api.decode(prior.tokenizer, indices))),
        labels=labels,
        hits=np.bincount(indices.reshape(-1), minlength=prior.tokenizer.codebook_size),
        shown=shown,
        samples=samples,
        completed=completed,
        own_class=in_own_class(samples, classes),
        own_class_real=in_own_class(originals, labels),
    )


def real_crops(plan: Quickstart, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Training crops, equally many of each class, and their labels."""
    count = 2 * PER_CLASS
    batches = program.training_batches(plan.images, program.open_split(plan.images, plan.images.data.train_split))
    by_class: dict[int, list[np.ndarray]] = {label: [] for label in range(num_classes)}
    while min(map(len, by_class.values())) < count:
        batch = next(batches)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            by_class[int(label)].append(image)
    crops = [images[:count] for images in by_class.values()]
    return np.concatenate(crops), np.repeat(np.arange(num_classes), count)
