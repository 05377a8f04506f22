"""What TPUs multiply, read in the programs that are lowered for them; needs no compiler for TPUs but the slow test."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from plan_cases import PAGES, TOKENIZER, mesh_of

from vqgan_jax import cli, models
from vqgan_jax import prior as priors
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate import features, likeness
from vqgan_jax.nn.inception import Inception
from vqgan_jax.plan import lowering, topology
from vqgan_jax.train import sharding
from vqgan_jax.train.stage1 import Stage1

HIGHEST = ("HIGHEST", "HIGHEST", "f32", "f32", "f32")
PRODUCT = re.compile(r"stablehlo\.(?:convolution|dot_general)\W.*")


def products(function, *arguments) -> Counter:
    """How many products of which precision and dtypes (both sides, result) the program for a TPU has."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    found = Counter()
    for line in PRODUCT.findall(text):
        precision = re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)
        found[(*precision, *re.findall(r"x([a-z]+\d+)>", line))] += 1
    return found


def planned(page: str, dtype: str, what: str) -> Counter:
    stage = "transformer" if page.startswith(PAGES["prior"]) else "model"
    config = cli.load_config(page, [f"--config.{stage}.dtype={dtype}"])
    function, arguments = lowering.call(config, mesh_of(1), what)
    return products(function, *arguments)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        pytest.param(
            PAGES["tokenizer"], "step", marks=pytest.mark.slow
        ),  # with LPIPS and the discriminator, and all gradients
        (PAGES["tokenizer"], "encode"),
        (PAGES["tokenizer"], "decode"),
        (PAGES["prior"], "step"),  # with dropout of attention weights
        (PAGES["prior"] + ":gpt", "step"),
        (PAGES["prior"] + ":plain", "step"),
        (PAGES["prior"], "sample"),
    ],
)
def test_a_model_of_float32_multiplies_in_float32(page, what):
    found = planned(page, "float32", what)
    assert found.keys() == {HIGHEST}
    assert found[HIGHEST] > 4


def test_the_likelihood_of_a_float32_prior_multiplies_in_float32():
    config = cli.load_config(PAGES["prior"])
    prior, params = priors.from_config(config), models.state_shapes(config).params["transformer"]
    indices = jnp.zeros((2, *prior.grid), jnp.int32)
    nll = lambda params: priors.nll(prior, params, jnp.zeros((2, prior.condition.length), jnp.int32), indices)
    assert products(nll, params).keys() == {HIGHEST}


@pytest.mark.parametrize(("page", "what"), [(PAGES["prior"], "step"), (PAGES["prior"], "sample")])
def test_a_prior_of_bfloat16_multiplies_as_fast_as_it_can(page, what):
    assert {row[:2] for row in planned(page, "bfloat16", what)} == {("DEFAULT", "DEFAULT")}


@pytest.mark.slow
def test_of_a_bfloat16_tokenizer_only_what_chooses_codes_and_compares_is_float32():
    """The 1x1 in front of the codes with its two gradients, the search, and the sums of LPIPS and its gradients."""
    found = planned(PAGES["tokenizer"], "bfloat16", "step")
    dear = {row: count for row, count in found.items() if row[0] != "DEFAULT"}
    assert dear.keys() == {HIGHEST, ("HIGH", "HIGH", "f32", "f32", "f32")}
    assert sum(dear.values()) < 0.1 * sum(found.values())
    assert not [row for row in found if row[0] == "DEFAULT" and row[2:4] == ("f32", "f32")]


# Metrics


@pytest.mark.parametrize("metric", [likeness.embed, features.vgg_features])
def test_features_of_vgg16_multiply_in_float32(metric):
    params = jax.eval_shape(load_lpips)
    assert products(metric, params, jnp.zeros((1, 32, 32, 3), jnp.uint8)).keys() == {HIGHEST}


def test_lpips_multiplies_in_float32():
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    assert products(likeness.lpips_vgg, jax.eval_shape(load_lpips), images, images).keys() == {HIGHEST}


@pytest.mark.slow
def test_inception_multiplies_in_float32():
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    assert products(features.inception_features, params, jnp.zeros((1, 64, 64, 3), jnp.uint8)).keys() == {HIGHEST}


@pytest.mark.slow
def test_held_out_lpips_of_a_bfloat16_tokenizer_multiplies_in_float32():
    """Of two batches of images: what is of bfloat16 are the encoder and the decoder."""
    config = cli.load_config(PAGES["tokenizer"], ["--config.model.dtype=bfloat16"])
    task, params = Stage1.from_config(config), models.state_shapes(config).params["generator"]
    images, mask = jnp.zeros((2, 16, 16, 3), jnp.uint8), jnp.ones(2, bool)
    step = lambda params, lpips: task.evaluate(params, {"lpips": lpips}, {"image": images}, mask)
    whole = products(step, params, jax.eval_shape(load_lpips))
    model = products(lambda params: task.reconstruct(params, images), params)
    assert (whole - model).keys() == {HIGHEST}


# What the compiler makes of it


@pytest.mark.slow
def test_in_the_compiled_program_of_a_float32_tokenizer_every_product_is_exact():
    pytest.importorskip("libtpu", reason="the TPU's compiler is not installed: pip install 'vqgan_jax[test]'")
    config, target = cli.load_config(TOKENIZER), topology.describe("v5p:2x2x1")
    mesh = sharding.make_mesh(4, 1, 1, devices=target.devices)
    function, arguments = lowering.call(config, mesh, "step")
    text = function.lower(*arguments).compile().as_text()
    lines = re.findall(r"^.* (?:convolution|dot)\(.*$", text, re.MULTILINE)
    assert len(lines) > 20
    # Without it the compiler rounds to bfloat16 before a product of float32.
    assert not [line for line in lines if "operand_precision={highest,highest}" not in line]
    assert not re.findall(r"= bf16\[[^=]* convert\(.*", text)
