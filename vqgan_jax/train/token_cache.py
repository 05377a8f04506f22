"""Fills a token cache: the frozen tokenizer over all images of a config, on all devices of all processes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from vqgan_jax import config as configs
from vqgan_jax import data, models
from vqgan_jax import prior as priors
from vqgan_jax.data import tokens
from vqgan_jax.train import program, sharding, stage2, watch

PER_SHARD = 16_384  # at most, and at least 16 shards, for processes to share and for a killed run to go on from


def write_cache(
    config: configs.Stage2,
    folder: epath.PathLike,
    console: Console,
    *,
    step: int | str = "",
) -> tokens.CachePlan:
    """Writes the cache of a config, or what is missing of it; every process of a cluster calls this.

    Args:
      config: of the run that will train on it; its `data.source` names images.
      folder: the cache's, on a disk that all processes see.
      console: shows how many of this process's examples are done, and of how many.
      step: of the images' tokenizer: a number, "newest" or "best"; by default the newest, or the one that the config's
        fingerprint names. A run that trains on the cache finds the same one by that fingerprint.

    Raises:
      ValueError: the config does not fit the tokenizer or the images, or the folder holds another cache.
      FileNotFoundError: there is no tokenizer.
    """
    if data.is_cache(config.data.source):
        raise ValueError(f"a token cache is made of images; `config.data.source` is {config.data.source!r}.")
    tokenizers = models.load_frozen(config, step=step)
    config = program.of_data(models.with_fingerprints(config, *tokenizers))
    sources = {split: program.open_examples(config, split) for split in ("train", "validation")}
    mesh = sharding.local_mesh()
    batch_size = -(-config.batch_size // mesh.size) * mesh.size
    plan = make_plan(config, sources, batch_size)
    encode = make_encode(config, tokenizers, mesh)
    with watch.tracking(console) as track:
        tokens.write(
            folder,
            plan,
            sources,
            encode,
            fields=config.views(),
            num_threads=config.data.num_threads,
            progress=track("tokenizing", None),
            **program.share(),
        )
    multihost_utils.sync_global_devices("token cache written")
    if jax.process_index() == 0:
        plan = tokens.finish(folder, plan)
    multihost_utils.sync_global_devices("token cache finished")
    return plan


def make_plan(config: configs.Stage2, sources: dict[str, Any], batch_size: int) -> tokens.CachePlan:
    """What the cache of a config holds."""
    d, condition = config.data, config.prefix()
    total = len(sources["train"]) * config.tokenizer.crops
    per_shard = -(-min(PER_SHARD, -(-total // 16)) // batch_size) * batch_size
    return tokens.CachePlan(
        fingerprint=config.tokenizer.fingerprint,
        codebook_size=config.tokenizer.codebook_size,
        grid=config.grid,
        prefix=condition.length,
        condition=config.condition.meaning(d, config.tokenizer),
        class_names=sources["train"].class_names,
        dtype=tokens.dtype_for(max(config.tokenizer.codebook_size, condition.vocab_size)),
        source=d.source,
        crops=config.tokenizer.crops,
        seed=config.seed,
        augmentation=d.augmentation,
        batch_size=batch_size,
        splits=tokens.split_up(sources, crops=config.tokenizer.crops, per_shard=per_shard),
    )


def make_encode(config: configs.Stage2, tokenizers: Any, mesh: jax.sharding.Mesh) -> Any:
    """From a batch to rows of a cache, over the devices of this process."""
    prior = priors.from_config(config, models.condition_module(*tokenizers))
    rows, everywhere = jax.NamedSharding(mesh, sharding.BATCH), sharding.replicated(mesh)
    frozen = jax.device_put(jax.device_get(models.frozen(*tokenizers)), everywhere)

    def encode(frozen: Any, batch: Any) -> Any:
        condition, indices = stage2.codes(prior, tokenizers[0].module, frozen, batch)
        return jnp.concatenate([condition, indices.reshape(len(indices), -1)], axis=1)

    jitted = jax.jit(encode, in_shardings=(everywhere, rows), out_shardings=rows)
    return lambda batch: np.asarray(jitted(frozen, batch))
