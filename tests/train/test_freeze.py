"""A decoder that is trained alone: encoder and codes stay as they are, so priors of those codes stay valid."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from verbs import refused, succeeds

import vqgan_jax as vq
from vqgan_jax import cli, models
from vqgan_jax.train.stage1 import Stage1

pytestmark = pytest.mark.slow  # whole steps of both networks, compiled anew for each case

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.py")
FREEZE = ("start.workdir=there", "start.freeze=True")
AVERAGED = ("quantizer.ema=True", "quantizer.codebook_weight=0.0", "quantizer.unit_length=False")


def make(*changes: str) -> Stage1:
    """A tiny stage with weight decay."""
    everywhere = ("loss.disc_start=0", "loss.disc_ramp=0", "optimizer.weight_decay=0.1")
    return Stage1.from_config(cli.load_config(TINY, [f"--config.{text}" for text in (*everywhere, *changes)]))


def steps(stage: Stage1, generator=None, count: int = 2):
    """The state after the first steps, and before them."""
    images = jax.random.randint(jax.random.key(0), (1, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    first = state = jax.jit(stage.init)(jax.random.key(1), images, generator)
    step = jax.jit(stage.train_step)
    for _ in range(count):
        state, _ = step(state, {}, {"image": images[0]}, jax.random.key(2))
    return first, state


def test_no_bit_of_encoder_and_codes_moves():
    """With averaged codes that are revived, dropout, perturbed codes and an adversary."""
    first, last = steps(make(*FREEZE, *AVERAGED, "model.dropout=0.5", "perturb.share=0.5"))
    for before, after in ((first.params, last.params), (first.ema, last.ema)):
        for part in before["generator"]:
            same = jax.tree.map(lambda a, b: bool((a == b).all()), before["generator"][part], after["generator"][part])
            learns = part in ("post_quantizer", "decoder")
            assert all(jax.tree.leaves(same)) != learns, part
    stats = [jax.tree.leaves(state.stats.get("codebook")) for state in (first, last)]
    jax.tree.map(np.testing.assert_array_equal, *stats)
    moments = jax.tree_util.tree_leaves_with_path(last.opt_state["generator"])
    assert not any("encoder" in jax.tree_util.keystr(path) for path, _ in moments)  # nor are there any for it


def test_the_decoder_moves_as_it_does_in_a_whole_step():
    """Without clipping, which sees the gradients of all parts together."""
    same = ("optimizer.clip_norm=0.0", "quantizer.revive_below=0.0", "loss.disc_weight=0.0")
    frozen, whole = (steps(make(*same, *more), count=1)[1] for more in (FREEZE, ()))
    for part in ("post_quantizer", "decoder"):
        pair = (state.params["generator"][part] for state in (frozen, whole))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *pair)


def test_a_run_begins_with_the_parameters_it_is_given():
    stage = make()
    images = jnp.zeros((1, 8, 16, 16, 3), jnp.uint8)
    generator = untrained.randomised(jax.eval_shape(stage.init, jax.random.key(0), images).params["generator"], 0.1)
    state, _ = steps(stage, generator, count=0)
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], generator)
    jax.tree.map(np.testing.assert_array_equal, state.ema["generator"], generator)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a tokenizer, of a prior over its codes, and of a decoder that was trained alone for three steps."""
    folder = tmp_path_factory.mktemp("freeze")
    untrained.save_tokenizer(folder / "first")
    untrained.save_tokenizer(folder / "other", 0.2)
    flags = [f"--config.{text}" for text in ("steps=3", "loss.perceptual_weight=0.0", f"start.workdir={folder}/first")]
    tune = ["train", f"--config={TINY}", f"--workdir={folder}/tuned", *flags, "--config.start.freeze=True"]
    succeeds(*tune)
    return folder, tune


def test_a_prior_takes_the_tuned_decoder_for_its_codes(runs):
    folder, _ = runs
    first, tuned, other = (vq.load_tokenizer(folder / name) for name in ("first", "tuned", "other"))
    assert models.fingerprint(tuned) == models.fingerprint(first) != models.fingerprint(other)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    codes = vq.encode(first, images)
    np.testing.assert_array_equal(vq.encode(tuned, images), codes)
    assert (np.asarray(vq.decode(tuned, codes)) != np.asarray(vq.decode(first, codes))).any()
    config = cli.load_config(
        str(HERE / "tiny_prior.py"), [f"--config.tokenizer.fingerprint={models.fingerprint(first)}"]
    )
    for tokenizer in (folder / "first", tuned):
        models.load_frozen(config, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="must have fingerprint"):
        models.load_frozen(config, tokenizer=folder / "other")


def test_what_the_run_began_with_stays(runs, capsys):
    folder, tune = runs
    other = [argument.replace(f"{folder}/first", f"{folder}/other") for argument in tune]
    assert "start.fingerprint" in refused(capsys, *other, "--config.steps=4")
    assert "start.freeze" in refused(capsys, *tune[:-1], "--config.steps=4")
    succeeds(*tune, "--config.steps=4")
    assert vq.load_tokenizer(folder / "tuned").step == 4


def test_another_model_than_the_first_is_refused(runs, capsys):
    tune = [argument.replace("/tuned", "/wide") for argument in runs[1]]
    message = refused(capsys, *tune, "--config.quantizer.embed_dim=4")
    assert "`post_quantizer/kernel` is (1, 1, 8, 64) float32, in this run (1, 1, 4, 64) float32" in message
    assert "start.workdir is empty" in refused(capsys, *tune, "--config.start.workdir=")


def test_a_semantic_loss_of_codes_that_stay_is_refused():
    with pytest.raises(ValueError, match=r"draws codes that `config\.start\.freeze` keeps"):
        cli.load_config(TINY, [f"--config.{flag}" for flag in (*FREEZE, "loss.semantic_weight=0.1")])
