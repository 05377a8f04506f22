"""Figures in a run are those of `vqgan evaluate` on what the run saved."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import pytest
import sets
import untrained
from etils import epath
from rich.console import Console

import vqgan_jax as vq
from vqgan_jax import config as configs
from vqgan_jax import models
from vqgan_jax.evaluate import of_prior, of_tokenizer, of_training
from vqgan_jax.train import loop

pytestmark = pytest.mark.slow
PAGES = Path(__file__).parents[1] / "train"


def trained(page: str, folder: Path, **changes):
    """Config and the evaluations of a run of six steps, with those of the folder `evaluations`."""
    config = runpy.run_path(str(PAGES / page))["get_config"]()
    config.update_from_flattened_dict({"steps": 6, "log.eval_metrics": ("fd_vgg",)} | changes)
    parsed = configs.read(config.to_dict())
    loop.train(parsed, epath.Path(folder), Console(quiet=True), evaluator=of_training.evaluator)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (found,) = json.loads((folder / "evaluations" / "0000006.json").read_text())["results"]
    (told,) = [line["eval/fd_vgg16"] for line in lines if "eval/fd_vgg16" in line]
    assert (found["metric"], found["value"], found["step"]) == ("fd_vgg16", told, 6)
    return parsed, found


def asked(config):
    return dataclasses.replace(sets.request("fd_vgg", batch_size=8), limit=config.log.eval_examples)


def test_of_a_tokenizer(tmp_path):
    config, found = trained("tiny.py", tmp_path)
    report = of_tokenizer.evaluate(vq.load_tokenizer(tmp_path), config, asked(config), workdir=str(tmp_path))
    (expected,) = report.results
    assert found["value"] == pytest.approx(expected.value, rel=1e-6)
    assert found["reference_count"] == 16
    assert found["reference_fingerprint"] == expected.reference_fingerprint
    assert found["subject_fingerprint"] == expected.subject_fingerprint


def test_of_a_prior(tmp_path):
    tokenizer = str(untrained.save_tokenizer(tmp_path / "tokenizer"))
    config, found = trained("tiny_prior.py", tmp_path / "run", **{"tokenizer.workdir": tokenizer})
    prior = vq.load_prior(tmp_path / "run")
    options = [vars(config.sampling.settings)]
    drawn = of_prior.DrawRequest(samples=16, settings=options)
    (expected,) = of_prior.evaluate(prior, asked(config), drawn, workdir=str(tmp_path / "run")).results
    assert found["value"] == pytest.approx(expected.value, rel=1e-6)
    assert found["subject_fingerprint"] == expected.subject_fingerprint
    assert found["sampling"]["guidance"] == 2.0


def test_the_second_evaluation_of_a_run_compiles_nothing(tmp_path, caplog):
    """Of a tokenizer, and of a prior with its likelihood and samples."""
    tokenizer = str(untrained.save_tokenizer(tmp_path / "tokenizer"))
    pages = {"tiny.py": ("fd_vgg", {}), "tiny_prior.py": ("nll", {"tokenizer.workdir": tokenizer})}
    for page, (metric, changes) in pages.items():
        config = runpy.run_path(str(PAGES / page))["get_config"]()
        config.update_from_flattened_dict({"log.eval_metrics": ("fd_vgg", metric)} | changes)
        parsed = configs.read(config.to_dict())
        results_of = of_training.results(parsed, workdir=str(tmp_path))
        first = results_of(untrained.randomised(models.state_shapes(parsed), 0.1), 1)
        with jax.log_compiles():
            second = results_of(untrained.randomised(models.state_shapes(parsed), 0.2), 2)
        assert not [line for line in caplog.messages if line.startswith(("Compiling", "Finished XLA compilation"))]
        assert [result.step for result in (*first, *second)] == [1] * len(first) + [2] * len(second)
        assert all(one.value != two.value for one, two in zip(first, second, strict=True))


def test_a_metric_that_cannot_be_is_refused_before_the_first_step():
    config = runpy.run_path(str(PAGES / "tiny.py"))["get_config"]("depth")
    config.log.eval_metrics = ("fd_vgg",)
    with pytest.raises(ValueError, match="RGB pictures of 8 bits; this one reads 'depth'"):
        of_training.results(configs.read(config.to_dict()), workdir="here")
    config.log.eval_metrics = ("nll",)
    with pytest.raises(ValueError, match="'nll' is for a prior"):
        of_training.results(configs.read(config.to_dict()), workdir="here")
