"""SimVQ, LFQ, BSQ and the rotation: against vector-quantize-pytorch's arrays, by brute force, and in training."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import under

from vqgan_jax import losses
from vqgan_jax.config import Optimizer
from vqgan_jax.nn.codebooks import ESTIMATORS, rotation, unit
from vqgan_jax.nn.quantizer import FSQ, LFQ, QUANTIZERS, SimVQ, VectorQuantizer
from vqgan_jax.train.state import TrainState, make_optimizer, moving_average

close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def reference(name):
    """The arrays of a case of golden/make_codes.py."""
    with np.load(Path(__file__).parents[1] / "golden" / "codes.npz") as arrays:
        return under(name, dict(arrays))


def compare(name, quantizer, params, *, weight=1.0, indices=lambda them: them):
    """Values, indices and gradients of a whole case; `weight` is ours of what the library's loss is."""
    theirs = reference(name)
    latents, cotangent = jnp.asarray(theirs["latents"]), jnp.asarray(theirs["cotangent"])
    apply = lambda params, latents: quantizer.apply({"params": params}, latents)
    out = apply(params, latents)
    close(out.quantized, theirs["quantized"])
    np.testing.assert_array_equal(out.indices, indices(theirs["indices"]))
    close(weight * out.loss, theirs["loss"])
    by_quantized = jax.grad(lambda z: jnp.sum(apply(params, z).quantized * cotangent))(latents)
    close(by_quantized, theirs["by_quantized"])
    if "by_loss" in theirs:
        close(jax.grad(lambda z: weight * apply(params, z).loss)(latents), theirs["by_loss"])
    return theirs, jax.grad(lambda p: weight * apply(p, latents).loss)(params)


# Against vector-quantize-pytorch


def test_fsq_equals_the_library():
    compare("fsq", FSQ((8, 5, 4)), {})


@pytest.mark.parametrize("unit_length", [False, True])
def test_bits_equal_the_library_whose_first_channel_is_the_highest_bit(unit_length):
    """Its inverse temperature of 0.5 is our temperature of 2."""
    backwards = lambda theirs: np.array([int(f"{i:06b}"[::-1], 2) for i in theirs.reshape(-1)]).reshape(theirs.shape)
    name, quantizer = ("bsq", "lfq")[not unit_length], LFQ(6, unit_length, temperature=2.0)
    compare(name, quantizer, {}, indices=backwards)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_simvq_equals_the_library(estimator):
    name = {"straight_through": "simvq", "rotation": "simvq_rotation"}[estimator]
    arrays = reference(name)
    params = {"frozen": jnp.asarray(arrays["frozen"]), "projection": jnp.asarray(arrays["matrix"].T)}
    theirs, by_params = compare(name, SimVQ(16, 5, estimator=estimator), params)
    close(by_params["projection"], theirs["matrix_by_loss"].T)
    assert not by_params["frozen"].any()


def test_the_rotation_equals_the_library():
    theirs = reference("rotation")
    latents, codes, cotangent = (jnp.asarray(theirs[name]) for name in ("latents", "codes", "cotangent"))
    close(rotation(latents, codes), theirs["quantized"])
    close(jax.grad(lambda z: jnp.sum(rotation(z, codes) * cotangent))(latents), theirs["by_quantized"])


# The rotation


def test_the_rotation_keeps_the_angle_of_the_gradient_and_scales_its_length(getkey):
    latents, codes, cotangent = (jax.random.normal(getkey(), (50, 6)) for _ in range(3))
    value, pull = jax.vjp(lambda z: rotation(z, codes), latents)
    np.testing.assert_allclose(value, codes, atol=1e-5)
    gradient, lengths = pull(cotangent)[0], lambda x: np.linalg.norm(x, axis=-1)
    cosine = lambda x, y: np.sum(np.asarray(x) * np.asarray(y), -1) / lengths(x) / lengths(y)
    np.testing.assert_allclose(cosine(gradient, latents), cosine(cotangent, codes), atol=1e-5)
    np.testing.assert_allclose(lengths(gradient), lengths(cotangent) * lengths(codes) / lengths(latents), rtol=1e-4)


def test_the_rotation_is_finite_where_a_latent_is_zero_or_opposite_to_its_code():
    latents, codes = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda z: rotation(z, codes).sum())(latents)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("unit_length", [False, True])
def test_the_estimator_changes_the_gradient_of_the_latents_alone(getkey, unit_length):
    codebook, latents = jax.random.normal(getkey(), (16, 4)), jax.random.normal(getkey(), (30, 4))

    def run(estimator):
        quantizer = VectorQuantizer(16, 4, unit_length=unit_length, estimator=estimator)

        def loss(codebook, latents):
            out = quantizer.apply({"params": {"codebook": codebook}}, latents)
            return jnp.sin(out.quantized).sum() + out.loss, out.indices

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(codebook, latents)

    ((one, indices), (by_codes, by_latents)), ((two, same), (by_codes_too, others)) = map(run, ESTIMATORS)
    np.testing.assert_array_equal(indices, same)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_array_equal(by_codes, by_codes_too)
    assert np.abs(by_latents - others).max() > 0.1


@pytest.mark.parametrize("quantizer", [VectorQuantizer(4, 2, estimator="turn"), SimVQ(4, 2, estimator="turn")])
def test_an_unknown_estimator_is_refused(quantizer):
    with pytest.raises(ValueError, match="must be one of straight_through, rotation; got 'turn'"):
        quantizer.check()


# Bits


def test_entropies_of_bits_equal_those_over_all_codes(getkey):
    """In float64, of one bit and of an odd number; among them bits that are as good as sure."""
    for bits, scale in ((1, 1.0), (5, 3.0), (6, 40.0)):
        logits = scale * jax.random.normal(getkey(), (40, bits))
        codes = np.array(list(itertools.product((-0.5, 0.5), repeat=bits)))
        scores = np.asarray(logits, np.float64) @ codes.T
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        entropy = lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
        np.testing.assert_allclose(losses.bit_entropies(logits), [entropy(p).mean(), entropy(p.mean(0))], rtol=1e-5)


def test_entropies_of_planted_histograms():
    """Sure bits: the mean has the entropy of the histogram, each latent none. Bits of chance: both have all of it."""
    sure = 100.0 * jnp.array([[1, 1, -1, -1], [1, 1, -1, -1], [1, -1, 1, 1], [-1, -1, -1, -1]], jnp.float32)
    each, mean = losses.bit_entropies(sure)
    np.testing.assert_allclose([each, mean], [0.0, 1.5 * np.log(2)], atol=1e-6)
    np.testing.assert_allclose(losses.bit_entropies(jnp.zeros((3, 9))), 9 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_entropies_have_finite_gradients(getkey, scale):
    logits = scale * jax.random.normal(getkey(), (20, 11))
    assert np.isfinite(jax.grad(lambda x: jnp.stack(losses.bit_entropies(x)).sum())(logits)).all()


def test_the_entropy_of_the_mean_is_of_the_batch_of_all_devices(getkey):
    logits = jax.random.normal(getkey(), (64, 10))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(logits, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    function = jax.jit(losses.bit_entropies)
    np.testing.assert_allclose(function(spread), function(logits), rtol=1e-6)
    text = function.lower(spread).compile().as_text()
    assert "all-reduce" in text
    assert "f32[64,1024]" not in text, "nothing is as large as the latents times the codes"


@pytest.mark.parametrize("unit_length", [False, True])
def test_every_index_of_bits_is_looked_up_as_the_decoder_saw_it(unit_length):
    quantizer = LFQ(5, unit_length)
    codes = quantizer.apply({}, jnp.arange(32), method="lookup")
    out = quantizer.apply({}, 3.0 * codes)
    np.testing.assert_array_equal(out.indices, np.arange(32))
    np.testing.assert_allclose(out.quantized, codes, atol=1e-6)
    assert np.allclose(np.linalg.norm(codes, axis=-1), 1.0 if unit_length else 5**0.5)
    np.testing.assert_array_equal(np.sign(codes[1]), [1, -1, -1, -1, -1])  # the first channel is the lowest bit


def test_bits_of_bfloat16_latents_count_in_int32(getkey):
    out = LFQ(18).apply({}, jax.random.normal(getkey(), (500, 18)).astype(jnp.bfloat16))
    assert out.indices.dtype == jnp.int32
    assert len(np.unique(out.indices)) > 490
    np.testing.assert_allclose(LFQ(18).apply({}, out.indices, method="lookup"), out.codes)


@pytest.mark.parametrize("fields", [{"bits": 0}, {"bits": 31}, {"temperature": 0.0}])
def test_bits_that_no_index_has_are_refused(fields):
    with pytest.raises(ValueError, match=r"bits` must be in 1 \.\. 30"):
        LFQ(**fields).check()


# In training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("vq", {"codebook_size": 64, "embed_dim": 6, "estimator": "rotation", "unit_length": True}),
        ("simvq", {"codebook_size": 64, "embed_dim": 6}),
        ("lfq", {"bits": 6}),
        ("lfq", {"bits": 6, "unit_length": True, "temperature": 0.1}),
    ],
)
def test_training_lets_no_code_die_and_follows_the_latents(getkey, kind, fields):
    """Latents start in a corner, where few codes are; a linear map learns to be understood through the codes."""
    quantizer, points = QUANTIZERS[kind](**fields), jax.random.normal(getkey(), (512, 6))
    params = {"quantizer": quantizer.init(getkey(), points).get("params", {})}
    params |= {"into": 0.3 * jnp.eye(6), "bias": jnp.full(6, 0.2), "out": jnp.eye(6)}
    optimizer = make_optimizer(Optimizer(warmup_steps=0), 1e-2, 400)

    def loss(params):
        latents = points @ params["into"] + params["bias"][None]
        out = quantizer.apply({"params": params["quantizer"]}, latents)
        error = jnp.square(out.quantized @ params["out"] - points).mean()
        return error + out.loss, (error, out.indices)

    @jax.jit
    def step(params, state):
        grads, (error, indices) = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, error, indices

    state, used, errors = optimizer.init(params), [], []
    for _ in range(400):
        params, state, error, indices = step(params, state)
        used, errors = [*used, len(np.unique(indices))], [*errors, float(error)]
    assert used[-1] > 60
    assert errors[-1] < 0.6 * errors[0]


def test_one_latent_moves_every_code_of_simvq_and_one_of_a_plain_codebook(getkey):
    latents = jax.random.normal(getkey(), (1, 6))

    def moved(quantizer):
        params = quantizer.init(getkey(), latents)["params"]
        grads = jax.grad(lambda params: quantizer.apply({"params": params}, latents).loss)(params)
        look = lambda params: quantizer.apply({"params": params}, jnp.arange(64), method="lookup")
        after = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, params, grads)
        return np.any(np.asarray(look(params) != look(after)), axis=-1).sum()

    assert moved(SimVQ(64, 6)) == 64
    assert moved(VectorQuantizer(64, 6)) == 1


def test_simvqs_frozen_codes_do_not_move_by_a_bit_and_nor_do_their_averages(getkey):
    quantizer, latents = SimVQ(32, 4), jax.random.normal(getkey(), (100, 4))
    params = quantizer.init(getkey(), latents)["params"]
    optimizer = make_optimizer(Optimizer(warmup_steps=0, weight_decay=0.1, clip_norm=1.0), 1e-2, 100)
    state = TrainState(
        jnp.zeros((), jnp.int32), {"codes": params}, {"codes": optimizer.init(params)}, {"codes": params}, {}
    )

    @jax.jit
    def step(state):
        old = state.params["codes"]
        grads = jax.grad(lambda params: quantizer.apply({"params": params}, latents).loss)(old)
        updates, opt_state = optimizer.update(grads, state.opt_state["codes"], old)
        new = {"codes": jax.tree.map(jnp.add, old, updates)}
        return TrainState(state.step + 1, new, {"codes": opt_state}, moving_average(state, new, 0.999), {})

    for _ in range(20):
        state = step(state)
    for moved in (state.params["codes"], state.ema["codes"]):
        np.testing.assert_array_equal(moved["frozen"], params["frozen"])
        assert np.abs(moved["projection"] - params["projection"]).max() > 1e-3


def test_codes_of_simvq_start_as_long_as_its_random_ones(getkey):
    quantizer, latents = SimVQ(512, 8), jnp.zeros((1, 8))
    params = quantizer.init(getkey(), latents)
    codes = quantizer.apply(params, jnp.arange(512), method="lookup")
    np.testing.assert_allclose(jnp.linalg.norm(unit(codes), axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(codes), 8**-0.5, rtol=0.05)
