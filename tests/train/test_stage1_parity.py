"""The losses and ten whole optimiser steps against upstream's, from the same weights on the same images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GRADIENTS, VALUES, error, golden, layout, pairs, translate, tree, under

from vqgan_jax import config as configs
from vqgan_jax import losses
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.nn.pixels import to_uint8
from vqgan_jax.train.stage1 import FAKE, Stage1
from vqgan_jax.train.state import TrainState

EACH_STEP = 1e-3  # of each term at each step; upstream in float64 is 4e-5 away from itself in float32
MOVEMENT = 2e-2  # of the way that an array went in ten steps; there upstream is 7e-3 away from itself

CONFIG = {
    "stage": 1,
    "steps": 10,
    "batch_size": 2,
    "data": {"image_size": 32, "resize": (32, 32), "crop": "center", "flip": False},
    "model": {
        "channels": 32,
        "channel_multipliers": (3, 2, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (8,),
        "resolution": 32,
        "latent_channels": 16,
        "dtype": "float32",
    },
    # Upstream's beta stands on the codebook's term, where its published code has it.
    "quantizer": {"codebook_size": 32, "embed_dim": 8, "codebook_weight": 0.25, "commitment_weight": 1.0},
    "discriminator": {"channels": 16, "num_layers": 2},
    "loss": {
        "perceptual_weight": 0.1,
        "disc_start": 4,
        "disc_ramp": 0,
        "disc_train_start": 4,
        "shared_forward": False,
    },
    "optimizer": {
        "learning_rate": 4.5e-6,
        "disc_learning_rate": 4.5e-6,
        "clip_norm": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "ema_decay": 0.0,
    },
}
TASK: Any = Stage1.from_config(configs.read(CONFIG))


@pytest.fixture(scope="module")
def frozen():
    return {"lpips": load_lpips()}


@pytest.fixture(scope="module")
def start():
    """The recorded weights as a training state that has taken no step."""
    weights = translate(golden("weights"))

    def initial(images):
        state = TASK.init(jax.random.key(0), images)
        return state.params, state.stats["discriminator"]

    shapes, stat_shapes = jax.eval_shape(initial, jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.uint8))
    params = {name: tree(weights, name, shapes[name]) for name in ("generator", "discriminator")}
    stats = {"discriminator": tree(weights, "batch_stats", stat_shapes)}
    opt_state = {name: TASK.optimizers[name].init(params[name]) for name in params}
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, {}, stats)


def test_adversarial_losses():
    recorded = golden("losses")
    real, fake = jnp.asarray(recorded["logits_real"]), jnp.asarray(recorded["logits_fake"])
    assert error(losses.hinge_discriminator_loss(real, fake).mean(), recorded["hinge"]) < VALUES
    assert error(losses.vanilla_discriminator_loss(real, fake).mean(), recorded["vanilla"]) < VALUES
    assert error(losses.linear_generator_loss(fake).mean(), recorded["generator_loss"]) < VALUES


@jax.jit
def play(state, frozen, images):
    """The parts of `train_step` without its updates: upstream recorded both sides on one reconstruction."""

    task = dataclasses.replace(TASK, loss=dataclasses.replace(TASK.loss, shared_forward=True))
    keys, stats = jax.random.split(jax.random.key(0)), state.stats["discriminator"]
    _, (_, values), _ = task.gradients(state, frozen, stats, images, keys)

    def generate(params):
        recon, quantized = TASK.model.apply({"params": params}, images, train=True)
        return recon, quantized.loss

    def rec_loss(recon):
        return TASK.reconstruction_loss(frozen, images, recon, keys[1])

    def generator_loss(recon):
        logits, _, _ = TASK.discriminate(state.params["discriminator"], stats, recon, keys[0], FAKE)
        return losses.ADVERSARIAL[TASK.loss.adversarial].generator_loss(logits).mean(), logits

    def at_last_kernel(gradient):
        return pull((gradient, jnp.zeros(())))[0]["decoder"]["conv_out"]["kernel"]

    (recon, quant_loss), pull = jax.vjp(generate, state.params["generator"])
    (nll, _), gradient = jax.value_and_grad(rec_loss, has_aux=True)(recon)
    (_, logits), gen_gradient = jax.value_and_grad(generator_loss, has_aux=True)(recon)
    values |= {"nll_loss": nll, "quant_loss": quant_loss}
    gradients = {"nll/grad_recon": gradient, "nll/grad_kernel": at_last_kernel(gradient)}
    gradients |= {"g/grad_recon": gen_gradient, "g/grad_kernel": at_last_kernel(gen_gradient)}
    return values, gradients, {"recon": recon, "logits": logits[..., None]}


# Upstream's name of each term and ours. Its `rec_loss` includes LPIPS and equals `nll_loss`.
TERMS = {
    "total_loss": "total_loss",
    "quant_loss": "quant_loss",
    "nll_loss": "nll_loss",
    "l1_loss": "rec_loss",
    "p_loss": "perceptual_loss",
    "d_weight": "adaptive_weight",
    "disc_factor": "disc_gate",
    "g_loss": "generator_loss",
    "disc_loss": "discriminator_loss",
    "logits_real": "logits_real",
    "logits_fake": "logits_fake",
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [("before", 3), ("after", 4)])
def test_both_sides_of_the_game_around_its_start(start, frozen, case, step):
    recorded = golden("losses")
    state = start.replace(step=jnp.asarray(step))
    values, gradients, arrays = play(state, frozen, jnp.asarray(recorded["images"]))
    for name, array in arrays.items():
        assert error(array, recorded[name]) < VALUES, name
    for theirs, ours in TERMS.items():
        value = recorded["l1_loss" if theirs == "l1_loss" else f"{case}/{theirs}"]
        np.testing.assert_allclose(values[ours], value, rtol=VALUES, err_msg=theirs)
    if case == "after":  # before, the generator's loss has no gradient
        for name, gradient in gradients.items():
            assert error(gradient, layout(name.replace("grad_", ""), recorded[name])) < GRADIENTS, name


def test_the_adaptive_weight_of_the_recorded_gradients():
    recorded = golden("losses")
    weight = losses.adaptive_weight(*(jnp.asarray(recorded[f"{name}/grad_kernel"]) for name in ("nll", "g")))
    assert error(TASK.loss.disc_weight * weight, recorded["d_weight"]) < VALUES


@pytest.fixture(scope="module")
def ten_steps(start, frozen):
    """Upstream's arrays, our terms and codes by its names, and our last state."""
    recorded, state, history = golden("ten_steps"), start, []
    step = jax.jit(TASK.train_step)
    encode = jax.jit(lambda params, x: TASK.model.apply({"params": params}, x, method="encode"))
    for images in jnp.asarray(recorded["images"]):  # 8-bit levels: as uint8 they lose nothing
        first = encode(state.params["generator"], images)
        state, terms = step(state, frozen, {"image": to_uint8(images)}, jax.random.key(0))
        second = encode(state.params["generator"], images)
        terms["nll_loss"] = terms["rec_loss"] + 0.1 * terms["perceptual_loss"]
        terms["quant_loss"] = 0.25 * terms["codebook_loss"] + terms["commitment_loss"]
        codes = dict(
            indices=first.indices, indices_second=second.indices, latents=first.latents, hits=terms["code_hits"]
        )
        history.append({theirs: terms[ours] for theirs, ours in TERMS.items()} | codes)
    return recorded, {name: np.stack([terms[name] for terms in history]) for name in history[0]}, state


@pytest.mark.parametrize("term", TERMS)
def test_ten_steps_every_term_at_every_step(ten_steps, term):
    recorded, ours, _ = ten_steps
    np.testing.assert_allclose(ours[term], recorded[term], rtol=EACH_STEP)


def test_ten_steps_every_code_at_every_step(ten_steps):
    """Before each update of the autoencoder and after it."""
    recorded, ours, _ = ten_steps
    np.testing.assert_array_equal(ours["indices"], recorded["indices"])
    np.testing.assert_array_equal(ours["indices_second"], recorded["indices_second"])
    hits = [np.bincount(indices.ravel(), minlength=32) for indices in recorded["indices"]]
    np.testing.assert_array_equal(ours["hits"], hits)
    assert error(ours["latents"], recorded["latents"]) < EACH_STEP


def test_ten_steps_every_weight_went_the_same_way(ten_steps, start):
    """The way gone is compared, not the weight, in which ten steps of 4.5e-6 hardly show."""
    recorded, _, state = ten_steps
    final, begun = under("final", recorded), golden("weights")
    ways = {name: final[name] - begun[name] for name in final}
    for network in ("generator", "discriminator"):
        way = jax.tree.map(jnp.subtract, state.params[network], start.params[network])
        for ours, theirs in pairs(way, ways, network):
            assert error(ours, theirs) < MOVEMENT
    for ours, theirs in pairs(state.stats["discriminator"], final, "batch_stats"):
        assert error(ours, theirs) < VALUES
