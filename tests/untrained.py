"""Models that nobody trained: random parameters, made without compiling anything."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import vqgan_jax as vq
from vqgan_jax import cli, models
from vqgan_jax import prior as priors
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.train import stored
from vqgan_jax.train.checkpoint import Checkpoints

PAGE = str(Path(__file__).parent / "train" / "tiny_prior.py")


def randomised(tree: Any, scale: float) -> Any:
    """Normal numbers of that deviation for each leaf, by its path; scales of norms around 1."""

    def fill(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        noise = scale * np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
        return jnp.asarray(noise + ("scale" in name), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def tokenizer(codebook_size: int = 16, channels: int = 3) -> vq.Tokenizer:
    """Two pixels a code."""
    shape = {
        "channels": 32,
        "channel_multipliers": (1, 1),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "resolution": 8,
    }
    quantizer = VectorQuantizer(codebook_size, 4, True)
    module = VQGAN(quantizer, **shape, image_channels=channels, latent_channels=32, dtype="float32")
    abstract = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, channels)))["params"]
    return vq.Tokenizer(randomised(abstract, 0.1), module)


def prior(
    variant: str = "base", *, codebook_size: int = 16, side: int = 4, classes: int = 5, drop: float = 0.5, **more: Any
) -> vq.Prior:
    """Of one layer over side x side codes, far from uniform; `more` keys of the config, with `__` for the dot."""
    flags = {
        "data.image_size": 2 * side,
        "data.resize": (2 * side, 2 * side),
        "tokenizer.codebook_size": codebook_size,
        "condition.drop": drop,
        "transformer.depth": 1,
        "transformer.width": 16,
        "transformer.num_heads": 2,
        "sampling.guidance": 1.0,
    }
    if hasattr(cli.load_config(f"{PAGE}:{variant}").condition, "num_classes"):
        flags["condition.num_classes"] = classes
    flags |= {name.replace("__", "."): value for name, value in more.items()}
    config = cli.load_config(f"{PAGE}:{variant}", [f"--config.{name}={value}" for name, value in flags.items()])
    params = randomised(models.state_shapes(config).params["transformer"], 0.4)
    tokenizers = tokenizer(codebook_size), None
    own = config.condition.own_tokenizer
    if own is not None:
        tokenizers = tokenizers[0], tokenizer(own.codebook_size, config.prefix().channels)
    module = priors.from_config(config, models.condition_module(*tokenizers))
    return vq.Prior(params, tokenizers[0], module, tokenizers[1], run=models.Run(config, 0))


def save_tokenizer(workdir: Path, scale: float = 0.1, flags: Sequence[str] = ()) -> Path:
    """The workdir of a stage-1 run of `tiny.py`, as if it had been trained; another scale is another tokenizer."""
    return _save(workdir, str(Path(__file__).parent / "train" / "tiny.py"), scale, flags, {"lpips": 1.0})


def save_prior(workdir: Path, variant: str, tokenizer: Path, flags: Sequence[str] = ()) -> Path:
    """The workdir of a stage-2 run of `tiny_prior.py` over such a tokenizer."""
    flags = [f"--config.tokenizer.workdir={tokenizer}", *flags]
    return _save(workdir, f"{PAGE}:{variant}", 0.4, flags, {"nll": 1.0})


def _save(workdir: Path, page: str, scale: float, flags: Sequence[str], figures: dict[str, float]) -> Path:
    config = cli.load_config(page, flags)
    state = randomised(models.state_shapes(config), scale)
    with Checkpoints(epath.Path(workdir)) as checkpoints:
        checkpoints.save(1, state, {"next_index": 1}, stored.to_json(config), figures)
    return workdir
