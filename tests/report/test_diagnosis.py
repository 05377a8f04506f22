"""Each rule fires on curves with its fault and on no others. Trainings with the faults are in `test_faulty_runs.py`.

`golden/curves` holds the curves of runs that are well. The faults here are planted in them, in the form that a run
writes.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from vqgan_jax import cli
from vqgan_jax.report import diagnosis
from vqgan_jax.report.diagnosis import RULES, History, diagnose
from vqgan_jax.report.run import BOTH, PLOTS, read

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "tests" / "golden" / "curves"
WELL = sorted(folder.name for folder in RUNS.iterdir())


def history(name):
    return read(str(RUNS / name)).history


def edited(name, **edits):
    """A run that is well with other values: functions of (place among all steps in 0 .. 1, row) by name."""
    run = history(name)
    rows = {step: dict(row) for step, row in run.rows.items()}
    for step, row in rows.items():
        for metric, edit in edits.items():
            value = edit(step / run.config.steps, run.rows[step])
            for key in (f"train/{metric}", f"eval/{metric}"):
                row |= {key: value} if key in row or metric == "skipped" else {}
    return dataclasses.replace(run, rows=rows)


# Runs that are well


@pytest.mark.parametrize("name", WELL)
def test_every_rule_is_silent_on_a_run_that_is_well_at_every_time_of_it(name):
    run = history(name)
    for last in run.rows:
        rows = {step: row for step, row in run.rows.items() if step <= last}
        assert not diagnose(dataclasses.replace(run, rows=rows)), f"at step {last}"


def test_every_rule_is_silent_on_the_committed_study():
    """Its records have held-out curves only."""
    runs = json.loads((ROOT / "experiments" / "results" / "losses.json").read_text())["runs"]
    for run in runs:
        changes = [f"--config.{key}={value}" for key, value in (run["changes"] | {"steps": run["steps"]}).items()]
        config = cli.load_config("stage1_cifar10", changes)
        curves = {name: points * 2 for name, points in run["curve"].items()}  # four points alone would say nothing
        lines = [{"step": step + 1000 * (i > 3), f"eval/{name}": value}
                 for name, points in curves.items() for i, (step, value) in enumerate(points)]  # fmt: skip
        assert not diagnose(History.of(config, lines)), (run["run"], run["seed"])
    assert len(runs) == 15


# Faults


TOKENIZER, PRIOR = "quickstart_tokenizer", "quickstart_prior"
late = lambda value, name: lambda time, row: value if time > 0.5 else row.get(f"train/{name}", row.get(f"eval/{name}"))
FAULTS = {
    "dead codes": edited(TOKENIZER, codebook_usage=lambda *_: 0.07, perplexity=lambda *_: 21.0),
    "adversary too strong": edited(TOKENIZER, discriminator_loss=late(0.001, "discriminator_loss")),
    "adversary asleep": edited(TOKENIZER, logits_real=lambda *_: 0.06, logits_fake=lambda *_: 0.02),
    "adaptive weight at its bound": edited(TOKENIZER, adaptive_weight=late(900.0, "adaptive_weight")),
    "divergence after disc_start": edited(
        TOKENIZER, rec_loss=late(0.5, "rec_loss"), perceptual_loss=late(0.7, "perceptual_loss")
    ),
    "steps that are not finite": edited(TOKENIZER, skipped=lambda time, _: float(0.3 < time < 0.36)),
    "starved input": edited(PRIOR, input_wait=lambda *_: 0.42),
    "over-fitting": edited(PRIOR, nll=lambda time, _: 4.0 + (time - 0.5) ** 2),
    "learning rate too low": edited(PRIOR, loss=lambda *_: 6.23, param_norm=lambda *_: 53.8),
    "learning rate too high": edited(PRIOR, loss=late(7.9, "loss")),
}


def test_there_is_a_fault_for_every_rule():
    assert list(FAULTS) == list(RULES)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_no_other(name):
    assert list(diagnose(FAULTS[name])) == [name]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("dead codes", ["7% of 512", "21"]),
        ("adversary too strong", ["0.001", "costs 1", "700"]),
        ("adaptive weight at its bound", ["900", "2,000"]),
        ("divergence after disc_start", ["1.2", "0.5"]),
        ("steps that are not finite", ["2 steps", "step 220"]),
        ("starved input", ["42%", "300"]),
        ("over-fitting", ["4.010", "4.250", "step 300"]),
        ("learning rate too low", ["6.23", "0.002", "batch of 16"]),
        ("learning rate too high", ["7.9", "0.002"]),
    ],
)
def test_a_finding_tells_what_it_saw(name, figures):
    reading = diagnose(FAULTS[name])[name].reading
    assert all(figure in reading for figure in figures), reading


@pytest.mark.parametrize("name", FAULTS)
def test_the_advised_command_is_one_that_can_be_typed(name):
    """Its keys exist and its values are of their types; another run begins in another folder."""
    finding, run = diagnose(FAULTS[name])[name], TOKENIZER if "train/rec_loss" in FAULTS[name] else PRIOR
    words = diagnosis.command("runs/mine", name, finding).split()
    assert words[:3] == ["vqgan", "train", "--config=runs/mine/config.json"]
    assert (words[3] == "--workdir=runs/mine") == RULES[name].goes_on
    config = cli.load_config(str(RUNS / run / "config.json"), words[4:])
    assert config != history(run).config
    assert set(finding.changes) <= set(RULES[name].keys)


def test_a_run_that_stopped_for_what_is_not_finite_says_where():
    run = history(PRIOR)
    rows = {step: row for step, row in run.rows.items() if step < 140} | {133: {"train/not_finite": 1.0}}
    assert "stopped at step 133" in diagnose(dataclasses.replace(run, rows=rows))["steps that are not finite"].reading


def test_parameters_that_leap_are_too_fast():
    leaping = edited(PRIOR, param_norm=lambda time, _: 54.0 if time < 0.5 else 5400.0)
    assert "54 to 5400" in diagnose(leaping)["learning rate too high"].reading


def test_a_loss_that_begins_far_above_a_guess_is_of_too_fast_steps():
    """Cosine and clipping may bring such a run back, with all of its codes dead."""
    away = edited(PRIOR, loss=lambda time, _: 600.0 * (1 - time) + 4)
    assert "the loss is 564 at first, where a guess costs 6.24" in diagnose(away)["learning rate too high"].reading


def test_a_rate_that_moves_parameters_and_teaches_nothing_is_not_too_low():
    moving = edited(PRIOR, loss=lambda *_: 6.23, param_norm=lambda time, _: 54.0 + 8 * time)
    assert list(diagnose(moving)) == ["learning rate too high"]


def test_a_run_that_began_with_trained_parameters_need_not_learn_much():
    run = edited(TOKENIZER, rec_loss=lambda *_: 0.1, perceptual_loss=lambda *_: 0.2, param_norm=lambda *_: 52.0)
    assert list(diagnose(run)) == ["learning rate too low"]
    late_ones = {step: row for step, row in run.rows.items() if step > 60}
    assert not diagnose(dataclasses.replace(run, rows=late_ones)), "converted weights go on from their own step"
    start = dataclasses.replace(run.config.start, workdir="runs/first")
    assert not diagnose(dataclasses.replace(run, config=dataclasses.replace(run.config, start=start)))


def test_a_run_without_lines_has_no_fault():
    for name in (TOKENIZER, PRIOR):
        assert not diagnose(History.of(history(name).config, []))


# What a history makes of lines


def test_of_a_step_that_came_twice_the_last_line_counts_and_what_is_not_finite_is_left_out():
    config = history(PRIOR).config
    lines = [
        {"step": 20, "time": 1.0, "train/loss": 5.0},
        {"step": 10, "train/loss": 6.0},
        {"step": 20, "eval/nll": 5.5},
        {"step": 20, "train/loss": 4.0},
        {"step": 30, "train/loss": float("nan"), "train/accuracy": "much"},
    ]
    run = History.of(config, lines)
    np.testing.assert_array_equal(run.curves("train/loss"), [[10, 20], [6.0, 4.0]])
    np.testing.assert_array_equal(run.curves("eval/nll"), [[20], [5.5]])
    assert [len(curve) for curve in run.curves("train/loss", "train/accuracy")] == [0, 0, 0]
    assert "train/loss" in run
    assert "time" not in run


# What people read


def test_a_rule_names_a_plot_of_the_page():
    titles = set().union(*PLOTS.values(), BOTH)
    assert {rule.plot for rule in RULES.values()} <= titles


def test_the_document_has_the_table_of_rules():
    document = (ROOT / "docs" / "diagnosis.md").read_text()
    lines = [line.strip("|").split(" | ") for line in document.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in cells) for cells in lines]
    for name, rule in RULES.items():
        other = "RUN" if rule.goes_on else "RUN_again"
        keys = ", ".join(f"`{key}`" for key in rule.keys)
        typed = f"`vqgan train --config=RUN/config.json --workdir={other} --config.{rule.keys[0]}=...`"
        assert (name, rule.symptom, rule.reads, rule.plot, keys, typed) in rows, name
    assert len([row for row in rows if row[0] in RULES]) == len(RULES)
    for name in re.findall(r"^([A-Z]+) = ", (ROOT / "vqgan_jax/report/diagnosis.py").read_text(), re.MULTILINE):
        assert f"`{name}`" in document or name in ("LOWERED", "GUESS"), f"the threshold {name} is in the page"
