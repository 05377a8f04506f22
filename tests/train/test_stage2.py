"""One step of stage 2: what is predicted from what, what chance may change, and what a step leaves alone."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli, losses, ordering
from vqgan_jax import prior as priors
from vqgan_jax.conditions import Condition
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.train import stage2
from vqgan_jax.train.stage2 import Stage2

PAGE = str(Path(__file__).with_name("tiny_prior.py"))
SMALL = [  # a grid of 4 x 4 codes
    "--config.data.image_size=8",
    "--config.data.resize=(8,8)",
    "--config.transformer.width=16",
    "--config.transformer.num_heads=2",
    "--config.steps=1000",
    "--config.optimizer.learning_rate=1e-2",
    "--config.loss.label_smoothing=0.1",
]
K, T = 32, 16
ONE_BLOCK = {
    "channels": 32,
    "channel_multipliers": (1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "resolution": 8,
}
TOKENIZER = VQGAN(VectorQuantizer(K, 4, True), **ONE_BLOCK, latent_channels=32, dtype="float32")


@functools.cache
def task(variant: str = "gpt,plain", *flags: str) -> Stage2:
    classes = [] if variant == "unconditional" else ["--config.condition.num_classes=8"]
    return Stage2.from_config(cli.load_config(f"{PAGE}:{variant}", [*SMALL, *classes, *flags]), TOKENIZER)


quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # a third of the time


@functools.cache
def jitted(task: Stage2):
    return quick(task.train_step, donate_argnums=0)


@functools.cache
def fresh(task: Stage2):
    return quick(task.init)(jax.random.key(0))


def state(task: Stage2):
    """A copy, for a step that takes it."""
    return jax.tree.map(jnp.copy, fresh(task))


BLIND = task("gpt,plain", "--config.loss.keep=0.0", "--config.condition.drop=1.0")
NOISY = task("gpt", "--config.loss.keep=0.5", "--config.condition.drop=0.5")
KEY = jax.random.key(1)


def rows(labels, codes):
    """A batch as a token cache gives it."""
    labels = np.broadcast_to(np.asarray(labels, np.int32), len(codes))
    return {"tokens": np.concatenate([labels[:, None], np.asarray(codes, np.int32).reshape(len(codes), -1)], axis=1)}


@pytest.fixture(scope="module")
def codes():
    return jax.random.randint(jax.random.key(0), (8, 4, 4), 0, K)


@pytest.fixture(scope="module")
def evaluate():
    return quick(NOISY.evaluate)


# What a sequence costs


def test_a_fresh_prior_is_as_good_as_guessing(codes):
    for each in (task(), NOISY):
        _, metrics = jitted(each)(state(each), {}, rows(3, codes), KEY)
        assert float(metrics["loss"]) == pytest.approx(np.log(K), abs=0.02)


class Three(Condition):
    """A condition of three tokens."""

    kind = "three"
    length = property(lambda self: 3)
    num_values = property(lambda self: 4)


@pytest.mark.parametrize("extra", [0, 5])
def test_only_the_codes_are_predicted_each_from_all_before_it(codes, extra):
    """By hand: one pass over prefix and codes, each code's logits from the position in front of it."""
    network = dataclasses.replace(task().prior.network, max_len=T + 2, extra_vocab=extra, parent=None)
    prior = priors.CodePrior(network, Three(), (4, 4), "alternate")
    condition = jax.random.randint(jax.random.key(1), (8, 3), 0, 5)
    tokens = codes.reshape(8, T)[:, np.array([0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12])]
    inputs = jnp.concatenate([condition + (K if extra else 0), tokens[:, :-1]], axis=1)

    @quick
    def both(key):
        params = network.init(key, inputs)["params"]
        params = jax.tree.map(lambda x: 10 * x, params)  # so that it is far from guessing
        return priors.nll(prior, params, condition, codes), network.apply({"params": params}, inputs)

    nll, logits = both(jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(logits[:, 2:]))
    expected = -np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("order", ["alternate", "spiral_out", "subsample"])
def test_an_order_is_a_raster_of_permuted_codes(codes, order):
    raster, other = (task("gpt,plain", f"--config.transformer.order={name}").prior for name in ("raster", order))
    permuted = codes.reshape(8, T)[:, ordering.order(order, 4, 4)].reshape(8, 4, 4)
    params, condition = fresh(task()).params["transformer"], jnp.arange(8)[:, None]
    measure = quick(
        lambda params: tuple(priors.nll(p, params, condition, c) for p, c in ((other, codes), (raster, permuted)))
    )
    ours, theirs = measure(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_rotary_positions_go_with_the_order():
    """Row and column of each input: the prefix is in the corner, the spiral begins below it, its end is no input."""
    config = cli.load_config(PAGE, [*SMALL, "--config.data.image_size=4", "--config.data.resize=(4,4)"])
    assert config.make_network().coordinates == ((0, 0), (1, 0), (0, 0), (0, 1))


# Images or a token cache


@pytest.mark.slow
def test_images_cost_what_their_codes_cost(evaluate):
    """And they are the codes of the frozen tokenizer, whose parameters come from outside."""
    images = np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32)}
    tokenizer = quick(TOKENIZER.init)(jax.random.key(5), jnp.zeros((1, 8, 8, 3)))["params"]
    params, everything = fresh(NOISY).params["transformer"], np.ones(8, bool)

    @quick
    def from_images(params, frozen, batch):
        indices = TOKENIZER.apply({"params": frozen["tokenizer"]}, batch["image"] / 127.5 - 1, method="encode").indices
        return (
            indices,
            stage2.codes(NOISY.prior, NOISY.tokenizer, frozen, batch),
            NOISY.evaluate(params, frozen, batch, jnp.asarray(everything)),
        )

    indices, (condition, ours), sums = from_images(params, {"tokenizer": tokenizer}, batch)
    assert len(np.unique(indices)) > 3
    np.testing.assert_array_equal(ours, indices)
    np.testing.assert_array_equal(condition[:, 0], batch["label"])
    expected = evaluate(params, {}, rows(batch["label"], indices), everything)
    np.testing.assert_allclose(sums["nll"], expected["nll"], rtol=1e-6)


def test_an_unconditional_prior_needs_no_label():
    batch = {"image": jnp.zeros((2, 8, 8, 3), jnp.uint8)}
    np.testing.assert_array_equal(task("unconditional").prior.condition.encode({}, batch), [[0], [0]])


# Chance


def test_codes_are_kept_as_often_as_asked():
    tokens = jnp.full((200, 50), 7)
    draw = lambda keep: np.asarray(stage2.corrupted(tokens, keep, 10, KEY))
    np.testing.assert_array_equal(draw(1.0), tokens)
    changed = draw(0.6)
    assert np.mean(changed == 7) == pytest.approx(0.6 + 0.4 / 10, abs=0.02)
    others = np.bincount(changed[changed != 7], minlength=10)
    np.testing.assert_allclose(others[[0, 1, 2, 3, 4, 5, 6, 8, 9]], 10_000 * 0.04, rtol=0.25)  # 5 deviations
    np.testing.assert_array_equal(draw(0.0), stage2.corrupted(jnp.zeros_like(tokens), 0.0, 10, KEY))


def test_conditions_are_dropped_whole_and_as_often_as_asked():
    condition, null = jnp.arange(3_000).reshape(1_000, 3), jnp.full((1_000, 3), -1)
    draw = lambda rate: np.asarray(stage2.dropped(condition, null, rate, KEY))
    np.testing.assert_array_equal(draw(0.0), condition)
    np.testing.assert_array_equal(draw(1.0), null)
    gone = draw(0.3) == -1
    np.testing.assert_array_equal(gone.all(axis=1), gone.any(axis=1))
    assert np.mean(gone) == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(draw(0.3)[~gone.all(axis=1)], condition[~gone.all(axis=1)])


def test_the_null_token_is_behind_the_classes():
    prior = NOISY.prior
    np.testing.assert_array_equal(prior.null(jnp.zeros((2, 1), jnp.int32)), [[8], [8]])
    assert prior.condition.vocab_size == 9
    shared, own = (task(v, "--config.condition.drop=0.5").prior for v in ("gpt", "base"))
    assert (shared.prefix(jnp.array([[8]])).item(), own.prefix(jnp.array([[8]])).item()) == (8, K + 8)
    assert own.network.vocab_size + own.network.extra_vocab == K + 9


def test_the_step_of_a_blind_prior_sees_neither_class_nor_codes(codes):
    """With every code replaced and every class dropped, only targets count; with none it sees both."""
    changed = codes.at[:, 0, 0].set((codes[:, 0, 0] + 1) % K)
    loss = lambda each, *batch: float(jitted(each)(state(each), {}, rows(*batch), KEY)[1]["loss"])
    assert loss(BLIND, 3, codes) == loss(BLIND, 4, codes)
    assert loss(task(), 3, codes) != loss(task(), 4, codes)
    assert loss(BLIND, 3, changed) != loss(BLIND, 3, codes)  # targets are never replaced


@pytest.mark.slow
def test_what_can_be_copied_is_learned_unless_codes_are_replaced():
    """Each row repeats one code, so that all but the first can be known."""
    rng, accuracy = np.random.default_rng(0), {}
    for name, each in (("seeing", task()), ("blind", BLIND)):
        now = state(each)
        for _ in range(300):
            batch = rows(3, np.broadcast_to(rng.integers(0, K, (8, 1)), (8, T)))
            now, metrics = jitted(each)(now, {}, batch, KEY)
        accuracy[name] = float(metrics["accuracy"])
    assert accuracy["seeing"] > 0.8
    assert accuracy["blind"] < 0.2


def test_chance_is_of_the_key_and_the_step(codes):
    loss = lambda step, key: float(
        jitted(NOISY)(state(NOISY).replace(step=jnp.asarray(step, jnp.int32)), {}, rows(3, codes), key)[1]["loss"]
    )
    assert loss(0, KEY) == loss(0, KEY)
    assert loss(0, jax.random.key(2)) != loss(0, KEY)
    assert loss(1, KEY) != loss(0, KEY)


# Random orders

TARGETS = "--config.transformer.positions=learned_target"
ANNEALED = task("gpt,plain", TARGETS, "--config.loss.random_order=(10,20)")


def test_orders_are_random_in_a_share_that_falls():
    """Every row is an order; the random ones have each token in each place alike."""
    draw = jax.jit(lambda step: stage2.orders((10.0, 20.0), step, (2_000, 8), KEY))
    for step, share in ((0, 1.0), (10, 1.0), (15, 0.5), (18, 0.2), (20, 0.0), (99, 0.0)):
        found = np.asarray(draw(jnp.asarray(step)))
        np.testing.assert_array_equal(np.sort(found, axis=1), np.broadcast_to(np.arange(8), found.shape))
        assert np.mean((found != np.arange(8)).any(axis=1)) == pytest.approx(share, abs=0.04 * (0 < share < 1) + 1e-3)
    counts = (np.asarray(draw(jnp.asarray(0)))[..., None] == np.arange(8)).sum(0)
    np.testing.assert_allclose(counts, 250, atol=5 * 250**0.5)
    at_once = lambda step: np.asarray(stage2.orders((10.0, 10.0), jnp.asarray(step), (2, 8), KEY))
    assert (at_once(9) != np.arange(8)).any()
    np.testing.assert_array_equal(at_once(10)[0], np.arange(8))


def test_times_of_random_orders_below_1_are_shares_of_the_run():
    flags = [f"--config.loss.random_order={times}" for times in ("(0.5,0.75)", "(0,0.25)", "(7,0.9)")]
    found = [task("gpt,plain", TARGETS, flag).loss.random_order for flag in flags]
    assert found == [(500, 750), (0, 250), (7, 900)]


@pytest.mark.parametrize(("times", "steps"), [("(0.5,1.0)", "5 and 1"), ("(0.9,7)", "9 and 7"), ("(9,8)", "9 and 8")])
def test_random_orders_end_after_they_begin_in_steps(times, steps):
    """A share beside a step is compared in steps, so that no run is raster from its first step on by mistake."""
    with pytest.raises(ValueError, match=f"must be two times in order; .* are steps {steps} of 10"):
        cli.load_config(f"{PAGE}:gpt,plain", [TARGETS, f"--config.loss.random_order={times}"])


@pytest.mark.slow
def test_the_loss_of_random_orders_is_that_of_permuted_codes_and_tables(codes):
    """One sequence after the other: a plain pass over codes and tables whose rows have changed their places."""
    now = state(ANNEALED)
    noise = lambda path, x: 10 * x + 0.3 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
    params = jax.tree_util.tree_map_with_path(noise, now.params["transformer"])
    _, metrics = jitted(ANNEALED)(
        now.replace(params={"transformer": jax.tree.map(jnp.copy, params)}), {}, rows(3, codes), KEY
    )

    keys = jax.random.split(jax.random.fold_in(KEY, 0), 4)
    order, prior = stage2.orders((10.0, 20.0), jnp.asarray(0), (8, T), keys[3]), ANNEALED.prior
    condition, tokens = jnp.full((1, 1), 3), codes.reshape(8, T)[:, prior.forward]

    @quick
    def cost(order, tokens):
        at = jnp.concatenate([jnp.zeros(1, int), 1 + order])  # the condition stays in front
        moved = {name: params[name][at] for name in ("positions", "targets")}
        logits = priors.logits(prior, params | moved, condition, tokens[order][None])
        return losses.cross_entropy(logits, tokens[order][None], 0.1).mean()

    costs = [float(cost(*one)) for one in zip(order, tokens, strict=True)]
    assert float(metrics["loss"]) == pytest.approx(np.mean(costs), rel=1e-5)
    assert np.std(costs) > 0.01
    own = [float(cost(jnp.arange(T), row)) for row in tokens]
    assert np.mean(own) != pytest.approx(np.mean(costs), rel=1e-3)


def test_behind_the_last_random_order_a_step_is_the_plain_one(codes):
    plain, at_the_end = task("gpt,plain", TARGETS), lambda: state(ANNEALED).replace(step=jnp.asarray(20, jnp.int32))
    (one, metrics), (other, expected) = (
        jitted(each)(at_the_end(), {}, rows(3, codes), KEY) for each in (ANNEALED, plain)
    )
    assert metrics["loss"] == expected["loss"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, other.params)


def test_a_key_for_orders_changes_no_other_chance():
    four, three = (jax.random.key_data(jax.random.split(KEY, count)) for count in (4, 3))
    np.testing.assert_array_equal(four[:3], three)


@pytest.mark.parametrize("variant", ["base", "gpt", "pixelsnail,raster"])
def test_random_orders_need_tokens_that_know_their_targets(variant):
    with pytest.raises(ValueError, match=r"needs transformer.positions 'learned_target'.* got \(0.5, 0.75\)"):
        cli.load_config(f"{PAGE}:{variant}", ["--config.loss.random_order=(0.5,0.75)"])


# Evaluation


def test_an_evaluation_has_no_chance_in_it(codes, evaluate):
    """Sums of the plain likelihood, though the task drops and replaces while it trains."""
    params = fresh(NOISY).params["transformer"]
    sums = evaluate(params, {}, rows(3, codes), np.ones(8, bool))
    nll = quick(functools.partial(priors.nll, NOISY.prior))(params, jnp.full((8, 1), 3), codes)
    np.testing.assert_allclose(sums["nll"], nll.mean(1).sum(), rtol=1e-6)
    assert sums["count"] == 8


def test_what_the_mask_leaves_out_does_not_count(codes, evaluate):
    params, mask = fresh(NOISY).params["transformer"], np.arange(8) % 3 > 0
    padded = np.where(mask[:, None, None], codes, 0)
    sums = evaluate(params, {}, rows(3, codes), mask)
    assert sums == evaluate(params, {}, rows(3, padded), mask)
    assert sums["count"] == mask.sum() == 5
    rest = evaluate(params, {}, rows(3, codes), ~mask)
    whole = evaluate(params, {}, rows(3, codes), np.ones(8, bool))
    np.testing.assert_allclose(sums["nll"] + rest["nll"], whole["nll"], rtol=1e-6)


# The state


def test_steps_share_one_compilation_and_donate_their_state(codes):
    step, now = jitted(task()), state(task())
    for i in range(3):
        old = jax.tree.leaves(now)
        now, _ = step(now, {}, rows(i, codes), KEY)
        assert all(leaf.is_deleted() for leaf in old)
    assert step._cache_size() == 1
    assert int(now.step) == 3


def test_the_average_forgets_its_start_first(codes):
    """Decays 1/10, then 2/11, as long as these are less than the config's 0.99."""
    step, now = jitted(task()), state(task())
    expected = fresh(task()).params
    for decay in (1 / 10, 2 / 11, 3 / 12):
        now, _ = step(now, {}, rows(3, codes), KEY)
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, now.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), now.ema, expected)


def test_no_average_is_kept_where_it_is_off():
    off = task("gpt,plain", "--config.optimizer.ema_decay=0.0")
    assert jax.eval_shape(off.init, KEY).ema == {}
    assert jax.tree.structure(fresh(task()).ema) == jax.tree.structure(fresh(task()).params)


def test_label_smoothing_is_of_training_only(codes):
    """What is trained on costs what `losses.cross_entropy` says; what is measured is plain likelihood."""
    prior, params = task().prior, fresh(task()).params["transformer"]
    tokens, condition = codes.reshape(8, T)[:, prior.forward], jnp.full((8, 1), 3)
    logits, nll = quick(lambda p: (priors.logits(prior, p, condition, tokens), priors.nll(prior, p, condition, codes)))(
        jax.tree.map(lambda x: 10 * x, params)
    )
    np.testing.assert_allclose(nll, losses.cross_entropy(logits, tokens), rtol=1e-5)
    far = state(task())
    far = far.replace(params=jax.tree.map(lambda x: 10 * x, far.params))
    _, metrics = jitted(task())(far, {}, rows(3, codes), KEY)
    np.testing.assert_allclose(metrics["loss"], losses.cross_entropy(logits, tokens, 0.1).mean(), rtol=1e-5)
    assert metrics["loss"] != pytest.approx(float(nll.mean()), rel=1e-3)
