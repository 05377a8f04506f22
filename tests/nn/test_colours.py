"""Pixels as codes: a palette without encoder and decoder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli
from vqgan_jax.train.stage1 import Stage1

TINY = str(Path(__file__).parents[1] / "train" / "tiny.py")
PALETTE = ("codebook_size=8", "embed_dim=3", "ema=True", "decay=0.5", "codebook_weight=0.0", "unit_length=False")
FLAGS = [
    "--config.model.kind=colours",
    *(f"--config.quantizer.{text}" for text in PALETTE),
    "--config.loss.disc_weight=0.0",
    "--config.loss.pixel=l2",
]


def test_training_is_k_means_of_pixels():
    """Each pixel becomes the nearest colour, and in the end each colour is the mean of its pixels."""
    stage = Stage1.from_config(cli.load_config(TINY, FLAGS))
    images = jax.random.randint(jax.random.key(0), (1, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    state = jax.jit(stage.init)(jax.random.key(1), images)
    assert {*state.params["generator"]} == {"quantizer"}
    step = jax.jit(stage.train_step)
    for _ in range(60):
        state, _ = step(state, {}, {"image": images[0]}, jax.random.key(2))
    colours = np.asarray(state.params["generator"]["quantizer"]["codebook"])
    pixels = np.asarray(stage.inputs(images[0])).reshape(-1, 3)
    _, quantized = stage.reconstruct(state.params["generator"], images[0])
    indices = np.asarray(quantized.indices).reshape(-1)
    np.testing.assert_array_equal(indices, np.square(pixels[:, None] - colours).sum(-1).argmin(-1))
    means = np.stack([pixels[indices == code].mean(0) for code in range(8)])
    np.testing.assert_allclose(colours, means, atol=0.02)


def test_a_palette_of_another_width_than_the_pixels_is_refused():
    config = cli.load_config(TINY, [*FLAGS, "--config.quantizer.embed_dim=8"])
    with pytest.raises(ValueError, match=r"pixels of 3 channels; `config\.quantizer\.embed_dim` is 8"):
        jax.eval_shape(config.make_vqgan().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="has one level and no blocks"):
        cli.load_config(TINY, [*FLAGS, "--config.model.dropout=0.5"])


@pytest.mark.parametrize("flags", [["loss.disc_weight=0.1"], ["start.workdir=there", "start.freeze=True"]])
def test_what_needs_a_decoder_is_refused(flags):
    with pytest.raises(ValueError, match="has no decoder, whose last kernel the adaptive weight reads"):
        cli.load_config(TINY, [*FLAGS, *(f"--config.{flag}" for flag in flags)])
