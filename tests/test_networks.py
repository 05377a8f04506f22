"""All kinds of networks behind one prior: likelihoods, samples, windows and runs by the same code."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax import cli, models, sampling
from vqgan_jax import prior as priors
from vqgan_jax.__main__ import main
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.train import stored
from vqgan_jax.train.stage2 import Stage2

PAGE = str(Path(__file__).parent / "train" / "tiny_prior.py")
KINDS = {  # variants of the page
    "transformer": "raster",
    "modulated transformer": "raster,rar",
    "pixelsnail": "pixelsnail",
}
SETTINGS = sampling.Settings(temperature=0.8, top_k=5)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # a third of the time
nll, sample, logits_of = (quick(f, static_argnums=0) for f in (priors.nll, priors.sample, priors.logits))
next_tokens = quick(sampling.next_tokens, static_argnums=2)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def made(kind: str, **fields) -> vq.Prior:
    return untrained.prior(KINDS[kind], **fields)


def keys(count: int):
    return jax.random.split(jax.random.key(1), count)


def test_the_probabilities_of_all_grids_of_a_class_sum_to_one(kind):
    prior = made(kind, codebook_size=3, side=2, classes=2)
    grids = jnp.array(list(itertools.product(range(3), repeat=4)), jnp.int32).reshape(-1, 2, 2)
    for label in range(3):  # the last one is the null token
        condition = jnp.full((len(grids), 1), label)
        likelihood = np.exp(-np.asarray(nll(prior.module, prior.params, condition, grids), np.float64).sum(1))
        assert likelihood.sum() == pytest.approx(1.0, abs=1e-5)
        assert likelihood.max() > 2 / len(grids)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_every_code_is_drawn_from_the_logits_of_the_likelihood(kind, guidance):
    """The teacher-forced logits of what was drawn, and the key of each position, give what was drawn."""
    prior, settings = made(kind), dataclasses.replace(SETTINGS, guidance=guidance)
    condition = jnp.arange(4)[:, None]
    prompt = jax.random.randint(jax.random.key(2), (4, 4, 4), 0, 16)
    known = priors.leading(prior.module, jnp.array([0, 3, 7, 15]), 4)
    drawn = sample(prior.module, prior.params, condition, keys(4), settings, prompt, known)
    np.testing.assert_array_equal(np.where(known, drawn, 0), np.where(known, prompt, 0))
    tokens = drawn.reshape(4, 16)
    logits = logits_of(prior.module, prior.params, condition, tokens)
    if guidance is not None:
        null = prior.module.null(condition)
        logits = jnp.concatenate([logits, logits_of(prior.module, prior.params, null, tokens)])
    for k in range(16):
        again = next_tokens(logits[:, k], jnp.asarray(k), 16, keys(4), settings)
        given = known.reshape(4, 16)[:, k]
        np.testing.assert_array_equal(jnp.where(given, tokens[:, k], again), tokens[:, k])


@pytest.mark.slow
def test_a_window_as_large_as_the_grid_draws_the_same_and_a_larger_grid_every_code(kind):
    prior, condition = made(kind), jnp.arange(2)[:, None]
    draw = quick(priors.sample_larger, static_argnames=("prior", "prefix_at", "grid"))
    larger = lambda grid: draw(prior.module, prior.params, lambda row, column: condition, grid, keys(2), SETTINGS)
    nothing = jnp.zeros((2, 4, 4), jnp.int32)
    own = sample(prior.module, prior.params, condition, keys(2), SETTINGS, nothing, nothing > 0)
    np.testing.assert_array_equal(larger((4, 4)), own)
    wide = larger((4, 7))
    for column in (3, 6):  # of the last row: from the window that ends there, by hand
        start = min(max(column - 2, 0), 3)
        window = wide[:, :, start : start + 4]
        logits = logits_of(prior.module, prior.params, condition, window.reshape(2, 16))[:, 12 + column - start]
        number = jnp.asarray(3 * 7 + column)
        np.testing.assert_array_equal(next_tokens(logits, number, 28, keys(2), SETTINGS), wide[:, 3, column])


@pytest.mark.parametrize("page", ["stage2_cifar10", "stage2_imagenet"])
def test_the_pages_compare_networks_of_one_size(page):
    """As many parameters, within two of a hundred, and as many layers of attention."""
    configs = [cli.load_config(f"{page}:{variant}") for variant in ("", "pixelsnail")]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(models.state_shapes(config).params)) for config in configs]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)
    assert configs[0].transformer.depth == configs[1].transformer.depth
    same = [dataclasses.replace(config, transformer=configs[0].transformer) for config in configs]
    assert same[0] == same[1]


@pytest.mark.slow
def test_what_can_be_learned_is_learned(kind):
    """Of each class one grid, by heart."""
    flags = ["data.image_size=8", "data.resize=(8,8)", "steps=1000", "optimizer.learning_rate=1e-2"]
    flags += ["loss.random_order=(0.0,0.0)"]
    config = cli.load_config(f"{PAGE}:plain,{KINDS[kind]}", [f"--config.{flag}" for flag in flags])
    stage = Stage2.from_config(config, VQGAN())
    grids = jax.random.randint(jax.random.key(0), (8, 16), 0, 32)
    batch = {"tokens": jnp.concatenate([jnp.arange(8)[:, None], grids], axis=1)}
    step, state = quick(stage.train_step), quick(stage.init)(jax.random.key(0))
    losses = []
    for _ in range(60):
        state, metrics = step(state, {}, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(32), abs=0.2)
    assert losses[-1] < 1.0


@pytest.mark.slow
def test_a_run_is_stored_loaded_and_gone_on_with(kind, tmp_path):
    """Two steps and two more are four at once; the config of the run is that of the page."""
    tokenizer = untrained.save_tokenizer(tmp_path / "tokenizer")
    page = f"--config={PAGE}:{KINDS[kind]}"
    common = ["train", page, f"--config.tokenizer.workdir={tokenizer}", "--config.log.checkpoint_every=2"]
    common += ["--config.optimizer.schedule=constant"]  # any other one knows the last step
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        assert main([*common, f"--workdir={tmp_path / name}", f"--config.steps={steps}"]) == 0
    whole, parts = (vq.load_prior(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert stored.from_json(stored.to_json(whole.config)) == whole.config == models.config_of(tmp_path / "parts")
    assert type(whole.config.transformer) is type(cli.load_config(page.removeprefix("--config=")).transformer)
