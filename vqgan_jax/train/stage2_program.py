"""Stage 2 for the loop: images or a token cache, the frozen tokenizer, and sheets of samples."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqgan_jax import build, data, models, pictures
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.train import program, sharding, stage2

SHOWN = ("loss", "accuracy", "grad_norm", "nll", "images_per_second")


def abstract_state(config: configs.Stage2, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    return program.placed(models.prior_state(config), config, mesh)


def stage2_program(config: configs.Stage2, mesh: jax.sharding.Mesh) -> program.Program:
    """Loads the tokenizer, opens the data and binds the config; the compiler runs at each function's first call.

    Raises:
      ValueError: the config does not fit the tokenizer, the data or the mesh.
      FileNotFoundError: there is no tokenizer.
    """
    tokenizers = models.load_frozen(config)
    config = models.with_fingerprints(config, *tokenizers)
    source, held_out = (open_split(config, split) for split in ("train", "validation"))
    rows = jax.NamedSharding(mesh, sharding.BATCH)
    task = stage2.from_config(config, tokenizers[0].module, models.condition_module(*tokenizers), rows=rows)
    abstract = abstract_state(config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    frozen = jax.device_put(jax.device_get(models.frozen(*tokenizers)), sharding.replicated(mesh))
    pure = functools.partial(stage2.train_step, task)
    step = program.compiled_step(pure, where, mesh, nonfinite=config.optimizer.nonfinite)
    start = jax.jit(functools.partial(stage2.init, task), out_shardings=where)
    return program.Program(
        config=config, mesh=mesh, abstract=abstract, frozen=frozen, step=step,
        batches=functools.partial(training_batches, config, source),
        start=lambda: start(jax.random.key(config.seed)),
        optimizers=functools.partial(stage2.optimizers, task),
        evaluate=evaluation(config, task, mesh, where, frozen, held_out),
        best=models.best_figure(config), shown=SHOWN,
    )  # fmt: skip


def open_split(config: configs.Stage2, split: str) -> Any:
    """Images, or a token cache of this tokenizer and condition; `split` is "train" or "validation".

    Raises:
      ValueError: the cache or the labels do not fit the config.
    """
    condition = build.unbound(config)
    if config.data.source.startswith("tokens:"):
        source = data.open_tokens(
            config.data.source.removeprefix("tokens:"), split=split, fingerprint=config.tokenizer.fingerprint
        )
        wanted = {"grid": build.grid(config), "condition": condition.meaning(config.data, config.tokenizer)}
        for name, expected in wanted.items():
            if getattr(source.plan, name) != expected:
                raise ValueError(
                    f"the token cache must have {name} {expected}; {config.data.source} has "
                    f"{getattr(source.plan, name)}. Run `vqgan tokenize` with this config into another folder."
                )
        names = source.plan.class_names
    else:
        source = program.open_split(
            config, {"train": config.data.train_split, "validation": config.data.eval_split}[split]
        )
        names = source.class_names
    condition.check_classes(config.data.source, names)
    return source


def training_batches(config: configs.Stage2, source: Any) -> data.Batches:
    """This process's share of the training batches, from the first one on."""
    if isinstance(source, data.TokenSource):
        return data.token_batches(
            source,
            batch_size=config.batch_size,
            seed=config.seed,
            num_threads=config.data.num_threads,
            **program.share(),
        )
    return program.image_batches(config, source)


def evaluation_batches(config: configs.Stage2, source: Any, count: int, batch_size: int) -> Iterator[Any]:
    """Each of `count` held-out examples once, spread over the source."""
    source, size, views = data.spread(source, count), config.data.image_size, build.views(config)
    share = program.share()
    if "tokens" in source[0]:
        batches = data.evaluation_token_batches(source, batch_size=batch_size, **share)
    else:
        batches = data.evaluation_batches(source, image_size=size, batch_size=batch_size, fields=views, **share)
    return program.in_time(config, "held-out batch", batches)


def evaluation(
    config: configs.Stage2, task: stage2.Task, mesh: jax.sharding.Mesh, where: Any, frozen: Any, source: Any
) -> Any:
    """A function of the state: held-out likelihood of the averaged parameters where there are any, and samples."""
    everywhere, rows = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
    transformer = where.ema.get("transformer", where.params["transformer"])
    measure = jax.jit(
        functools.partial(stage2.eval_step, task),
        in_shardings=(transformer, everywhere, rows, rows),
        out_shardings=everywhere,
    )
    show = jax.jit(
        functools.partial(preview, task, build.settings(config.sampling)),
        in_shardings=(transformer, everywhere, rows, everywhere),
        out_shardings=everywhere,
    )
    parts = math.prod(mesh.shape[axis] for axis in sharding.BATCH[0])
    shown = min(config.sampling.previews, len(source))

    def evaluate(state: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        params = state.ema.get("transformer", state.params["transformer"])
        sums = lambda batch: measure(params, frozen, *masked(batch))
        totals = program.summed(
            evaluation_batches(config, source, config.log.eval_examples, config.batch_size), mesh, sums
        )
        nll = float(totals["nll"] / totals["count"])
        results = {"nll": nll, "bits_per_token": nll / math.log(2)}
        (batch,) = evaluation_batches(config, source, shown, -(-shown // parts) * parts)
        batch, _ = masked(sharding.put_batch(batch, mesh))
        tokens, *images = jax.device_get(show(params, frozen, batch, jax.random.key(config.seed)))
        names = getattr(source, "category_names", source.class_names)
        titles = task.prior.condition.picture(frozen, tokens, config.data.image_size, names)
        rows = np.stack([titles, *images])[:, :shown]
        return results, {"samples": pictures.grid(rows.reshape(-1, *rows.shape[2:]), columns=shown)}

    return evaluate


def masked(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """The batch without its mask, and the mask."""
    batch = dict(batch)
    mask = batch.pop("mask")
    return batch, mask


def preview(task: stage2.Task, settings: Any, transformer: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
    """The conditions' tokens; held-out images as the tokenizer sees them, their first half completed, and samples."""
    condition, indices = stage2.codes(task.prior, task.tokenizer, frozen, batch)
    batch_size, twice = len(indices), lambda x: jnp.concatenate([x, x])
    half = jnp.where(jnp.arange(2 * batch_size) < batch_size, math.prod(task.prior.grid) // 2, 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2 * batch_size))
    known = priors.leading(task.prior, half, 2 * batch_size)
    drawn = priors.sample(task.prior, transformer, twice(condition), keys, settings, twice(indices), known)
    decode = lambda codes: stage2.decode(task, frozen, codes)
    completed, sampled = jnp.split(decode(drawn), 2)
    return condition, decode(indices), completed, sampled
