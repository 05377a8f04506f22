"""Stage 1 for the loop: images, LPIPS's weights, and sheets of reconstructions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vqgan_jax import build, data, models, pictures
from vqgan_jax import config as configs
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.train import metrics, program, sharding, stage1, stage1_eval

PREVIEWS = 16
START = jax.P(None, *sharding.BATCH)  # batches of the start: one after the other, each cut into rows
SHOWN = (
    "rec_loss", "perceptual_loss", "generator_loss", "discriminator_loss", "adaptive_weight", "codebook_usage",
    "perplexity", "images_per_second",
)  # fmt: skip


def abstract_state(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    return program.placed(models.tokenizer_state(config), config, mesh)


def stage1_program(config: configs.Stage1, mesh: jax.sharding.Mesh) -> program.Program:
    """Opens the data and binds the config; the compiler itself runs at each function's first call.

    Raises:
      ValueError: the config does not fit the data or the mesh.
    """
    source, held_out = (program.open_split(config, s) for s in (config.data.train_split, config.data.eval_split))
    task, abstract = stage1.from_config(config), abstract_state(config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    frozen = jax.device_put({"lpips": load_lpips()}, sharding.replicated(mesh))
    pure = functools.partial(stage1.train_step, task)
    step = program.compiled_step(pure, where, mesh, nonfinite=config.optimizer.nonfinite)
    return program.Program(
        config=config, mesh=mesh, abstract=abstract, frozen=frozen, step=step,
        batches=functools.partial(program.image_batches, config, source),
        start=functools.partial(start, config, task, mesh, where, source),
        optimizers=functools.partial(stage1.optimizers, task),
        evaluate=evaluation(config, task, mesh, where, frozen, held_out),
        best=models.best_figure(config), shown=SHOWN,
    )  # fmt: skip


def start(config: configs.Stage1, task: stage1.Task, mesh: jax.sharding.Mesh, where: Any, source: data.Source) -> Any:
    """A fresh state, born sharded, from the first batches."""
    batches = program.in_time(config, "batch of the start", program.image_batches(config, source))
    images = np.stack([next(batches)["image"] for _ in range(start_batches(config))])
    images = sharding.put_batch({"image": images}, mesh, spec=START)["image"]
    return compiled_start(config, task, where)(jax.random.key(config.seed), images)


def start_batches(config: configs.Stage1) -> int:
    """How many batches `start` reads: those of the k-means start, or one for the norms' statistics."""
    return max(config.quantizer.start_batches, 1)


def compiled_start(config: configs.Stage1, task: stage1.Task, where: Any) -> Callable[..., Any]:
    """`stage1.init` of a key and of batches of images, jitted, with the state's shardings."""
    return jax.jit(functools.partial(stage1.init, task), out_shardings=where)


def evaluation(
    config: configs.Stage1, task: stage1.Task, mesh: jax.sharding.Mesh, where: Any, frozen: Any, source: data.Source
) -> Any:
    """A function of the state: held-out metrics of the averaged parameters where there are any, and a sheet."""
    everywhere, rows = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
    generator = where.ema.get("generator", where.params["generator"])
    measure = jax.jit(
        functools.partial(stage1_eval.eval_step, task),
        in_shardings=(generator, everywhere, rows, rows),
        out_shardings=everywhere,
    )
    show = jax.jit(
        lambda generator, images: (images, stage1_eval.reconstruct(task, generator, images)[0]),
        in_shardings=(generator, rows),
        out_shardings=everywhere,
    )
    held_out = lambda count: data.evaluation_batches(
        data.spread(source, count), image_size=config.data.image_size, batch_size=config.batch_size,
        fields=build.views(config), **program.share(),
    )  # fmt: skip
    batches = lambda count: program.in_time(config, "held-out batch", held_out(count))

    def evaluate(state: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        params = state.ema.get("generator", state.params["generator"])
        sums = lambda batch: measure(params, frozen, batch["image"], batch["mask"])
        totals = program.summed(batches(config.log.eval_examples), mesh, sums)
        count = totals.pop("count")
        results = metrics.code_statistics(totals.pop("code_hits"))
        results |= {name: float(value / count) for name, value in totals.items()}
        shown = [jax.device_get(show(params, sharding.put_batch(batch, mesh)["image"])) for batch in batches(PREVIEWS)]
        originals, recons = (
            np.concatenate(images)[: min(PREVIEWS, len(source))] for images in zip(*shown, strict=True)
        )
        return results, {"reconstructions": pictures.pairs(pictures.shown(originals), pictures.shown(recons))}

    return evaluate
