"""Every verb that loads a run takes the checkpoint that `--step` names."""

import json
from pathlib import Path

import numpy as np
import pytest
import untrained
from etils import epath
from PIL import Image
from verbs import refused, succeeds, told

import vqgan_jax as vq
from vqgan_jax import cli, models
from vqgan_jax.__main__ import main
from vqgan_jax.data import open_tokens
from vqgan_jax.train import stored
from vqgan_jax.train.checkpoint import Checkpoints

PAGES = Path(__file__).parents[1] / "train"


@pytest.mark.parametrize("verb", ["reconstruct", "sample", "evaluate", "tokenize", "export"])
def test_it_is_a_flag_of_the_verb(capsys, verb):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert "--step N" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of the steps 1, the best, and 2."""
    folder = tmp_path_factory.mktemp("steps") / "tokenizer"
    config = cli.load_config(str(PAGES / "tiny.py"))
    with Checkpoints(epath.Path(folder), keep=2) as checkpoints:
        for step in (1, 2):
            state = untrained.randomised(models.state_shapes(config), 0.1 * step)
            checkpoints.save(step, state, {"next_index": step}, stored.to_json(config), {"lpips": 0.1 * step})
    return folder


@pytest.mark.slow
def test_verbs_load_it(capsys, tokenizer, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / split / "0.png")
    images = str(tmp_path / "images")
    argv = "reconstruct", f"--workdir={tokenizer}", f"--input={images}"
    assert "step 1 of" in told(capsys, *argv, f"--output={tmp_path / 'r'}", "--step=best")
    flags = f"--workdir={tokenizer}", "--to=safetensors", f"--output={tmp_path / 'one.safetensors'}"
    succeeds("export", *flags, "--step=1")
    succeeds("convert", f"--input={tmp_path / 'one.safetensors'}", f"--output={tmp_path / 'converted'}")
    converted = vq.load_tokenizer(tmp_path / "converted", step=1)
    assert models.fingerprint(converted) == models.fingerprint(vq.load_tokenizer(tokenizer, step="best"))
    flags = f"--workdir={tokenizer}", "--metrics=psnr", f"--config.data.source=folder:{images}"
    succeeds("evaluate", *flags, f"--output={tmp_path / 'e'}", "--step=1")
    (row,) = json.loads((tmp_path / "e" / "evaluation.json").read_text())["results"]
    assert row["step"] == 1
    capsys.readouterr()
    message = refused(capsys, *argv, f"--output={tmp_path}", "--step=3")
    assert "got 3." in message
    assert "has step 1, 2." in message


@pytest.mark.slow
def test_a_cache_of_the_best_tokenizer_trains_a_prior_that_finds_it_again(capsys, tokenizer, tmp_path):
    page, cache, run = f"--config={PAGES / 'tiny_prior.py'}", tmp_path / "cache", tmp_path / "prior"
    succeeds("tokenize", page, f"--config.tokenizer.workdir={tokenizer}", f"--workdir={cache}", "--step=best")
    best = models.fingerprint(vq.load_tokenizer(tokenizer, step="best"))
    assert open_tokens(cache, split="train").plan.fingerprint == best
    flags = [f"--config.tokenizer.workdir={tokenizer}", f"--config.data.source=tokens:{cache}", "--config.steps=2"]
    succeeds("train", page, *flags, f"--config.tokenizer.fingerprint={best}", f"--workdir={run}")
    prior = vq.load_prior(run)
    assert (prior.step, prior.tokenizer.step) == (2, 1)
    succeeds("sample", f"--workdir={run}", f"--output={tmp_path / 's'}", "--labels=1", "--count=2", "--step=2")
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (2, 16, 16, 3)
