"""The main job: a minute of it, interrupted, gone on, and its report."""

import json
import re

import numpy as np
import pytest

from vqgan_jax import __main__, cli
from vqgan_jax.cli import quickstart
from vqgan_jax.evaluate import likeness


def test_minutes_scale_both_stages_and_nothing_else():
    short, long = (quickstart.make_plan("runs/q", minutes) for minutes in (5, 20))
    assert long.tokenizer.steps == 4 * short.tokenizer.steps
    assert long.prior.steps == 4 * short.prior.steps
    assert long.tokenizer.loss.disc_start == long.tokenizer.steps // 2
    assert short.tokenizer.model == long.tokenizer.model
    assert short.prior.transformer == long.prior.transformer


def test_the_shortest_one_has_figures_to_plot():
    plan = quickstart.make_plan("runs/q", 0.01)
    for config in (plan.tokenizer, plan.prior):
        assert config.log.metrics_every <= config.log.eval_every <= config.steps / 5
    usual = quickstart.make_plan("runs/q", 10)
    assert (usual.tokenizer.log.metrics_every, usual.prior.log.metrics_every) == (20, 20), "as the pages say"


def test_the_prior_learns_the_tokenizer_s_codes():
    plan = quickstart.make_plan("runs/q", 10)
    assert plan.prior.tokenizer.codebook_size == plan.tokenizer.quantizer.codebook_size
    assert plan.prior.data.image_size == plan.tokenizer.data.image_size
    assert plan.prior.data.source == "tokens:runs/q/tokens"
    assert plan.images.data.source == "photos"


def test_the_commands_by_hand_name_every_part():
    commands = quickstart.make_plan("runs/q", 10).commands
    assert [command.split()[1] for command in commands] == ["train", "tokenize", "train", "reconstruct", "sample"]
    assert all("runs/q/" in command for command in commands)


def test_minutes_must_be_positive(capsys):
    assert __main__.main(["quickstart", "--minutes=0"]) == 1
    assert "`--minutes` must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_embeddings_measure_lpips():
    """Squared distances of the embeddings are LPIPS, with made-up weights of the right shapes."""
    import jax
    import jax.numpy as jnp

    from vqgan_jax.nn.perceptual import LPIPS
    from vqgan_jax.nn.pixels import to_float

    images = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8)
    params = jax.jit(LPIPS().init)(jax.random.key(0), *jnp.zeros((2, 1, 16, 16, 3)))["params"]
    x, y = jax.jit(jax.vmap(likeness.embed, (None, 0)))(params, images)
    distance = jax.jit(lambda params, images: LPIPS().apply({"params": params}, *map(to_float, images)))
    expected = distance(params, jnp.asarray(images))
    np.testing.assert_allclose(jnp.sum(jnp.square(x - y), 1), expected, rtol=1e-4)
    labels = likeness.nearest_labels(
        params, images[0], np.concatenate(images[::-1]), np.array([5, 6, 7, 8]), batch_size=4
    )
    np.testing.assert_array_equal(labels, [7, 8])


@pytest.mark.slow
def test_a_short_quickstart_ends_in_a_report_and_then_has_nothing_to_do(tmp_path, capsys, monkeypatch):
    """Of crops of half the side: VGG16, which sees every one of them, takes most of the time."""
    half, load = ["--config.data.image_size=32", "--config.data.resize=(32,128)"], cli.load_config
    monkeypatch.setattr(cli, "load_config", lambda name, overrides: load(name, [*overrides, *half]))
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["quickstart", "--workdir=q", "--minutes=0.1"]) == 0
    page = (tmp_path / "q" / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png', page)) > 11 * (2 + 8 + 5)
    assert "://" not in page, "nothing may be asked of the network"
    assert "without values" not in page, "every plot has its lines"
    assert re.search(r"From step\s+\d+ on the decoder", page), "a step is a whole number"
    seconds = json.loads((tmp_path / "q" / "quickstart.json").read_text())["seconds"]
    assert set(seconds) == {"tokenizer", "token cache", "prior", "pictures"}
    steps = (tmp_path / "q" / "prior" / "metrics.jsonl").read_text()
    assert __main__.main(["quickstart", "--workdir=q", "--minutes=0.1"]) == 0
    assert (tmp_path / "q" / "prior" / "metrics.jsonl").read_text() == steps, "no step may come twice"
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_every_device_gets_rows():
    plan = quickstart.make_plan("runs/q", 10)
    assert (plan.tokenizer.batch_size, plan.prior.batch_size) == (8, 16), "4 and 16 on one device; here are eight"
