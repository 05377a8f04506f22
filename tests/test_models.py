"""Models are trees of parameters; the checkpoint that they come from is the caller's choice and no part of them."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import untrained
from etils import epath

import vqgan_jax as vq
from vqgan_jax import api, cli, models
from vqgan_jax.evaluate import drawing, of_prior
from vqgan_jax.evaluate.protocol import Request
from vqgan_jax.train import checkpoint, stage_of, stored
from vqgan_jax.train.checkpoint import Checkpoints

PAGES = Path(__file__).parent / "train"


def save(workdir: Path, config, abstract, figures: dict[int, dict[str, float] | None]) -> Path:
    """A run with a checkpoint of other random parameters at each step, and what was held out there."""
    with Checkpoints(epath.Path(workdir), keep=9, best=stage_of(config).best) as checkpoints:
        for step, held_out in figures.items():
            state = untrained.randomised(abstract, 0.1 + 0.01 * step)
            checkpoints.save(step, state, {"next_index": step}, stored.to_json(config), held_out)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of the steps 2, 4, 6 and 8, of which 4 is the best; and a prior, trained with step 6, of 1 and 3."""
    folder = tmp_path_factory.mktemp("models")
    config = cli.load_config(str(PAGES / "tiny.py"))
    figures = {2: {"lpips": 0.5, "psnr": 9.0}, 4: {"lpips": 0.2}, 6: None, 8: {"lpips": 0.3, "psnr": 1.0}}
    save(folder / "tokenizer", config, models.state_shapes(config), figures)
    mark = models.fingerprint(vq.load_tokenizer(folder / "tokenizer", step=6))
    flags = {"workdir": folder / "tokenizer", "fingerprint": mark}
    config = cli.load_config(
        str(PAGES / "tiny_prior.py"), [f"--config.tokenizer.{key}={value}" for key, value in flags.items()]
    )
    save(folder / "prior", config, models.state_shapes(config), {1: {"nll": 2.0}, 3: {"nll": math.nan}})
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """Two checkpoints of one tokenizer."""
    return [vq.load_tokenizer(folder / "tokenizer", step=step) for step in (2, 4)]


@pytest.fixture(scope="module")
def priors(folder):
    """Two checkpoints of one prior."""
    return [vq.load_prior(folder / "prior", step=step) for step in (1, 3)]


# Trees


def test_two_checkpoints_of_a_run_are_one_structure(pair, priors):
    for a, b in (pair, priors):
        mean = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
        assert jax.tree.structure(mean) == jax.tree.structure(a) == jax.tree.structure(b)
        ours, of_a, of_b = (np.asarray(jax.tree.leaves(tree.params)[0]) for tree in (mean, a, b))
        np.testing.assert_allclose(ours, (of_a + of_b) / 2)
        assert (of_a != of_b).any()


def test_another_step_compiles_nothing(pair, priors, caplog):
    """Neither the public functions nor those of an evaluation."""
    images = np.zeros((8, 16, 16, 3), np.uint8)
    labels = np.arange(8, dtype=np.int32)
    track = lambda name, total: lambda done: None
    request = Request(metrics=(), seed=0, batch_size=8, inception=None, track=track, limit=8)

    def everything(tokenizer: vq.Tokenizer, prior: vq.Prior) -> None:
        vq.decode(tokenizer, vq.encode(tokenizer, images))
        vq.log_likelihood(prior, images, labels=labels)
        drawing.draw(prior, labels, labels, seed=0, batch_size=8, options={"top_k": 4})
        of_prior.likelihoods(prior, request)

    caches = (api._encode, api._decode, api._sample, api._log_likelihood, of_prior.measured, drawing.keys)
    everything(pair[0], priors[0])
    before = [function._cache_size() for function in caches]
    assert all(before)
    with jax.log_compiles():
        everything(pair[1], priors[1])
    assert not [line for line in caplog.messages if line.startswith(("Compiling", "Finished XLA compilation"))]
    assert [function._cache_size() for function in caches] == before


def test_what_is_known_of_the_run_is_beside_the_tree(pair, priors):
    tokenizer, prior = pair[0], priors[1]
    assert (tokenizer.step, tokenizer.weights, tokenizer.config.quantizer.codebook_size) == (2, "ema", 32)
    assert (prior.step, prior.weights, prior.config.condition.kind) == (3, "ema", "class")
    assert prior.image_size == prior.config.data.image_size
    moved = jax.device_put(prior, jax.devices()[1])
    assert moved.module == prior.module
    for name in ("config", "step", "weights"):
        assert not hasattr(moved, name)
        with pytest.raises(AttributeError, match="this one has `run` None"):
            getattr(moved.tokenizer, name)
    again = dataclasses.replace(moved, run=prior.run)
    assert (again.step, again.config) == (prior.step, prior.config)


def test_a_model_that_jax_returns_draws_as_the_loaded_one(priors):
    """Guidance, sizes and messages need nothing of the config."""
    labels, key = np.arange(4, dtype=np.int32), jax.random.key(0)
    moved = jax.tree.map(lambda leaf: leaf, priors[0])
    draw = lambda prior: vq.sample_indices(prior, key, labels=labels, guidance=2.0)
    np.testing.assert_array_equal(draw(moved), draw(priors[0]))
    with pytest.raises(ValueError, match=r"`condition` is for a prior over maps or objects or captions; .* is 'class'"):
        vq.sample(moved, key, condition=labels, labels=labels)
    with pytest.raises(ValueError, match="trained on images of 16 pixels"):
        vq.log_likelihood(moved, np.zeros((4, 2, 2), np.int32), labels=labels)


# Steps


@pytest.mark.parametrize(("step", "expected"), [("newest", 8), ("best", 4), (2, 2), (6, 6)])
def test_a_step_is_a_number_the_newest_or_the_best(folder, pair, step, expected):
    loaded = vq.load_tokenizer(folder / "tokenizer", step=step)
    assert loaded.step == expected
    codebook, second = (np.asarray(tokenizer.params["quantizer"]["codebook"]) for tokenizer in (loaded, pair[0]))
    np.testing.assert_allclose(codebook / second, (10 + expected) / 12, rtol=1e-5)


def test_a_prior_is_best_by_its_likelihood(folder):
    """What is not finite is no figure."""
    assert vq.load_prior(folder / "prior").step == 3
    assert vq.load_prior(folder / "prior", step="best").step == 1


@pytest.mark.parametrize("step", [3, "last"])
def test_a_step_that_is_not_there_is_refused_with_those_that_are(folder, step):
    for load in (vq.load_tokenizer, models.config_of):
        with pytest.raises(ValueError, match=rf"got {step!r}\. .*tokenizer/checkpoints has step 2, 4, 6, 8\."):
            load(folder / "tokenizer", step=step)


def test_without_a_held_out_figure_nothing_is_best(tmp_path, folder):
    config = vq.load_tokenizer(folder / "tokenizer").config
    save(tmp_path, config, models.state_shapes(config), {7: None})
    with pytest.raises(ValueError, match=r"lowest held-out lpips; none of these has one: .* has step 7\."):
        vq.load_tokenizer(tmp_path, step="best")
    assert vq.load_tokenizer(tmp_path, step=7).step == 7


def test_a_chosen_checkpoint_that_is_broken_is_not_replaced_by_another(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "WAITS", (0.0, 0.0, 0.0))
    config = vq.load_tokenizer(folder / "tokenizer").config
    save(tmp_path, config, models.state_shapes(config), {7: None, 9: None})
    for path in (tmp_path / "checkpoints" / "9" / "config").iterdir():
        path.write_text("{")
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint of step 9"):
        vq.load_tokenizer(tmp_path, step=9)
    assert vq.load_tokenizer(tmp_path).step == 7


def test_a_prior_finds_the_tokenizer_that_it_was_trained_with(folder, priors, tmp_path):
    """Which trained on meanwhile; where that checkpoint is gone, the newest is refused."""
    assert priors[0].tokenizer.step == 6
    config = priors[0].config
    gone = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, fingerprint="0" * 16))
    with pytest.raises(ValueError, match="must have fingerprint 0000000000000000"):
        models.load_frozen(gone)
    assert models.load_frozen(dataclasses.replace(gone, tokenizer=config.tokenizer), step=6)[0].step == 6
    with pytest.raises(ValueError, match=f"must have fingerprint {config.tokenizer.fingerprint}"):
        models.load_frozen(config, step="best")
