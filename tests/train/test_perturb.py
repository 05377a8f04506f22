"""Codes replaced by near ones in front of the decoder: which, how often, and with what gradient."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli
from vqgan_jax.nn.codebooks import nearest_others, neighbours
from vqgan_jax.train.stage1 import Stage1

TINY = str(Path(__file__).with_name("tiny.py"))


def test_neighbours_are_the_nearest_others_each_as_often(getkey):
    codebook, indices = jax.random.normal(getkey(), (20, 3)), jnp.tile(jnp.arange(20), 400)
    drawn = np.asarray(neighbours(indices, nearest_others(codebook, 4), getkey())).reshape(400, 20)
    codes = np.asarray(codebook, np.float64)
    squares = np.square(codes[:, None] - codes).sum(-1)
    for code in range(20):
        values, counts = np.unique(drawn[:, code], return_counts=True)
        assert set(values) == set(np.argsort(squares[code])[1:5])
        assert counts.min() > 60  # of 100


def test_a_codebook_of_few_codes_has_few_neighbours(getkey):
    drawn = neighbours(jnp.zeros(50, jnp.int32), nearest_others(jnp.arange(3.0)[:, None], 10), getkey())
    assert set(np.asarray(drawn)) == {1, 2}


@pytest.fixture(scope="module")
def stage():
    """A tiny stage whose codes are all perturbed; parameters, images in [-1, 1], and one compiled forward pass."""

    def make(*flags):
        return Stage1.from_config(cli.load_config(f"{TINY}:smooth", [f"--config.perturb.{flag}" for flag in flags]))

    plain, key = make(), jax.random.key(0)
    images = jax.random.randint(key, (1, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    params = jax.jit(plain.init)(key, images).params["generator"]
    x = jax.random.uniform(key, (8, 16, 16, 3), minval=-1.0)
    return make, plain, params, x


@pytest.mark.slow
def test_without_a_share_the_program_is_the_same(stage):
    make, plain, params, x = stage
    text = lambda task: jax.jit(task.forward).lower(0, params, x, jax.random.key(1)).as_text()
    assert text(make("share=0.0", "neighbours=3")) == text(plain)
    assert text(make("share=0.1")) != text(plain)


@pytest.mark.slow
def test_the_decoder_reads_the_nearest_other_code_and_the_losses_do_not(stage):
    make, plain, params, x = stage
    recon, quantized = jax.jit(make("share=1.0", "neighbours=1").forward)(0, params, x, jax.random.key(1))
    _, clean = jax.jit(plain.forward)(0, params, x, jax.random.key(1))
    np.testing.assert_array_equal(quantized.indices, clean.indices)
    np.testing.assert_allclose(quantized.loss, clean.loss, rtol=1e-6)
    codebook = np.asarray(params["quantizer"]["codebook"])
    squares = np.square(codebook[:, None] - codebook).sum(-1) + np.where(np.eye(len(codebook)), np.inf, 0.0)
    near = jnp.asarray(squares.argmin(-1)[np.asarray(clean.indices)])
    decoded = plain.model.apply({"params": params}, near, method="decode_indices")
    np.testing.assert_allclose(recon, decoded, atol=1e-4)


def test_the_gradient_passes_to_the_latents_as_without(stage):
    """Of the mean of what the decoder reads."""
    make, plain, params, x = stage
    task, key = make("share=1.0"), jax.random.key(1)

    def read(bias, perturb):
        moved = params | {"pre_quantizer": params["pre_quantizer"] | {"bias": bias}}
        quantized = plain.model.apply({"params": moved}, x, train=True, method="encode")
        return (task.perturbed(jnp.int32(0), moved, quantized, key) if perturb else quantized.quantized).mean()

    bias = params["pre_quantizer"]["bias"]
    np.testing.assert_allclose(*(jax.grad(read)(bias, perturb) for perturb in (False, True)), rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "step", "images", "codes"),
    [
        (["share=1.0"], 10_000, 1.0, 1.0),
        (["share=0.25"], 0, 0.25, 1.0),
        (["share=1.0", "anneal=(100,300)"], 50, 1.0, 1.0),
        (["share=1.0", "anneal=(100,300)"], 250, 1.0, 0.25),
        (["share=1.0", "anneal=(100,300)"], 300, 0.0, 0.0),
    ],
)
def test_shares_of_images_and_of_their_codes(stage, flags, step, images, codes):
    make, plain, params, _ = stage
    x = jax.random.uniform(jax.random.key(2), (200, 8, 8, 3), minval=-1.0)
    quantized = plain.model.apply({"params": params}, x, train=True, method="encode")
    read = make(*flags).perturbed(jnp.int32(step), params, quantized, jax.random.key(3))
    changed = np.asarray(jnp.any(read != quantized.quantized, axis=-1))
    touched = changed.any((1, 2))
    np.testing.assert_allclose(touched.mean(), images, atol=0.1)
    if images:
        np.testing.assert_allclose(changed[touched].mean(), codes, atol=0.06)


@pytest.mark.parametrize("flag", ["share=1.5", "neighbours=0", "anneal=(5,3)"])
def test_what_no_perturbation_has_is_refused(stage, flag):
    with pytest.raises(ValueError, match=r"config\.perturb` must have a share in 0 \.\. 1"):
        stage[0](flag)


def test_a_table_of_near_codes_is_made_in_parts_of_the_codebook(getkey):
    """Of 2,500 codes, which are more than one part and no whole number of parts."""
    codebook = jax.random.normal(getkey(), (2_500, 2))
    table = np.asarray(jax.jit(nearest_others, static_argnums=1)(codebook, 3))
    codes = np.asarray(codebook, np.float64)
    for code in (0, 1_023, 1_024, 2_048, 2_499):
        squares = np.square(codes - codes[code]).sum(-1)
        np.testing.assert_array_equal(np.sort(squares[table[code]]), np.sort(squares)[1:4])
