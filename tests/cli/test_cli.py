import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vqgan_jax import cli
from vqgan_jax.__main__ import compiled_folder, main
from vqgan_jax.cli import train
from vqgan_jax.train import stored

ROOT = Path(__file__).parents[2]
PAGE = f"--config={ROOT / 'experiments' / 'stage1_photos.py'}"
TINY = [
    "--config.model.channels=32", "--config.model.channel_multipliers=(1,1)", "--config.model.num_res_blocks=1",
    "--config.quantizer.codebook_size=16", "--config.quantizer.embed_dim=4", "--config.discriminator.channels=8",
    "--config.batch_size=8",
]  # fmt: skip


def fails(capsys, *argv: str, status: int = 1) -> str:
    """What a mistake says on stderr; it has that exit status and no traceback."""
    assert main(argv) == status
    captured = capsys.readouterr()
    assert not captured.out
    assert "Traceback" not in captured.err
    assert captured.err.startswith("vqgan")
    return captured.err


# Help


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help_lists_every_verb_with_its_line(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    verbs = {path.stem for path in (ROOT / "vqgan_jax" / "cli").glob("*.py")} - {"__init__"}
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert set(lines) == verbs
    assert "Trains what a config describes" in lines["train"]


@pytest.mark.parametrize("verb", sorted({p.stem for p in (ROOT / "vqgan_jax" / "cli").glob("*.py")} - {"__init__"}))
def test_every_verb_has_help_with_examples(capsys, verb):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"vqgan {verb} " in capsys.readouterr().out.split("examples:")[1]


def test_a_reader_that_leaves_early_ends_a_verb_quietly():
    """As `vqgan train --help | head -1` does, but that here the reader is surely gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vqgan_jax", "train", "--help"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, text=True, timeout=300)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_pipe_of_something_else_that_breaks_is_a_message(capsys, monkeypatch):
    def breaks(argv):
        raise BrokenPipeError("the store's connection")

    monkeypatch.setattr("vqgan_jax.cli.inspect.main", breaks)
    monkeypatch.setattr("vqgan_jax.__main__.reader_is_gone", lambda: False)
    assert "the store's connection" in fails(capsys, "inspect")


def test_an_unknown_verb_is_named_with_the_known_ones(capsys):
    message = fails(capsys, "trian", status=2)
    assert "'trian'" in message
    assert "train" in message.replace("'trian'", "")


@pytest.mark.parametrize("environment", ["", "elsewhere"])
def test_a_verb_keeps_what_it_compiled_for_the_next_one(monkeypatch, tmp_path, environment):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment)
    folders = []
    monkeypatch.setattr(
        "vqgan_jax.cli.inspect.main", lambda argv: folders.append(jax.config.values["jax_compilation_cache_dir"]) or 0
    )
    before = jax.config.values["jax_compilation_cache_dir"]
    assert main(["inspect"]) == 0
    assert folders == [environment or str(tmp_path / "cache" / "compiled")]
    assert jax.config.values["jax_compilation_cache_dir"] == before


def test_a_verb_runs_where_nothing_can_be_kept(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path / "file"))
    assert compiled_folder() == ""


def test_no_config_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "--config" in capsys.readouterr().err


# Mistakes in configs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.learning_rat=1", "nearest is `config.optimizer.learning_rate`"),
        ("--config.sed=1", "nearest is `config.seed`"),
        ("--config.modle.channels=32", "nearest is `config.model`"),
        ("--config.steps=many", "`config.steps` must be of type int; got 'many'"),
        ("--config.data.flip=1", "`config.data.flip` must be of type bool; got 1"),
        ("--config.seed.x=1", "`config.seed` is a value"),
        ("--config.seed", "must look like --config.section.key=value"),
        ("--seed=1", "must look like --config.section.key=value"),
        ("seed=1", "must look like --config.section.key=value"),
        ("--config.loss.pixel=l3", "must be one of l1, l2, cross_entropy, binary_cross_entropy; got 'l3'"),
        ("--config.data=3", "config.data"),
    ],
)
def test_a_bad_override_is_one_message(capsys, override, message):
    assert message in fails(capsys, "train", PAGE, override, "--dry_run")


def test_a_missing_config_file_is_named(capsys):
    assert "'no/such/page.py'" in fails(capsys, "train", "--config=no/such/page.py:variant", "--dry_run")


@pytest.mark.parametrize(("name", "text"), [("page.txt", "get_config = dict"), ("page.py", '"""No get_config."""')])
def test_a_file_that_is_no_config_is_named(capsys, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert name in fails(capsys, "train", f"--config={tmp_path / name}", "--dry_run")


def test_an_unknown_variant_is_named(capsys):
    assert "'nonsense'" in fails(capsys, "train", f"{PAGE}:nonsense", "--dry_run")


def test_no_workdir_is_named(capsys):
    assert "--workdir" in fails(capsys, "train", PAGE, *TINY)


def test_a_mesh_of_other_devices_is_named(capsys):
    message = fails(capsys, "train", PAGE, *TINY, "--config.mesh.data=3", "--workdir=/nonexistent")
    assert "number of devices" in message


def test_a_folder_without_a_tokenizer_is_named(capsys, tmp_path):
    argv = ("reconstruct", f"--workdir={tmp_path}", "--input=photos", f"--output={tmp_path / 'out'}")
    assert str(tmp_path) in fails(capsys, *argv)
    assert not (tmp_path / "out").exists()


# The dry run


def test_a_dry_run_prints_the_config_and_counts_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["train", PAGE, *TINY, "--config.data.source=photos", "--config.loss.disc_weight=0.5", "--dry_run"]
    assert main([*argv, "--config.optimizer.learning_rate=0.25"]) == 0
    out = capsys.readouterr().out
    assert '"learning_rate": 0.25' in out
    assert '"disc_weight": 0.5' in out
    counts = {
        name: int(count.replace(",", "")) for name, count in re.findall(r"^(\w+): ([\d,]+) parameters$", out, re.M)
    }
    assert set(counts) == {"generator", "discriminator"}
    assert not list(tmp_path.iterdir())
    # Twice the codes are so many numbers more, and nothing else.
    assert main([*argv, "--config.quantizer.codebook_size=32"]) == 0
    more = re.findall(r"^generator: ([\d,]+) parameters$", capsys.readouterr().out, re.M)
    assert int(more[0].replace(",", "")) - counts["generator"] == 16 * 4


def test_rates_follow_the_batch_size_where_a_flag_says_so_and_stay_when_the_run_goes_on(tmp_path, monkeypatch):
    """The square root of the ratio, of both optimisers; by the run's own config the rates are those of the run."""
    configs = []
    monkeypatch.setattr(train, "describe", lambda config, console: configs.append(config))

    def rates(page: str, *flags: str) -> tuple[float, float]:
        assert main(["train", page, "--dry_run", *flags]) == 0
        return configs[-1].optimizer.learning_rate, configs[-1].optimizer.disc_learning_rate

    first, larger = rates(PAGE), f"--config.batch_size={4 * cli.load_config(PAGE.removeprefix('--config=')).batch_size}"
    assert first == rates(PAGE, "--scale_lr") == rates(PAGE, larger)
    twice = tuple(2 * rate for rate in first)
    assert rates(PAGE, larger, "--scale_lr") == twice
    (tmp_path / "config.json").write_text(json.dumps(stored.to_json(configs[-1])))
    assert rates(f"--config={tmp_path / 'config.json'}", larger, "--scale_lr") == twice


@pytest.mark.parametrize(
    "flags", [["--coordinator=localhost:1234"], ["--distributed", "--processes=2"], ["--process_id=0", "--processes=1"]]
)
def test_flags_of_a_cluster_go_together(flags):
    parser = argparse.ArgumentParser()
    cli.add_cluster_flags(parser)
    with pytest.raises(cli.UsageError, match=r"go together, and with `--distributed`"):
        cli.join_cluster(parser.parse_args(flags))
