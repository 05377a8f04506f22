"""The verb on runs as they are found: whole, at work, killed, broken, or none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from verbs import refused, told

from vqgan_jax.report import run

CURVES = Path(__file__).parents[1] / "golden" / "curves"


@pytest.fixture
def tokenizer(tmp_path):
    shutil.copytree(CURVES / "quickstart_tokenizer", tmp_path / "mine")
    return tmp_path / "mine"


def planted(folder, name, value):
    """The run with another value in all of its lines."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    text = "".join(json.dumps(line | ({name: value} if name in line else {})) + "\n" for line in lines)
    path.write_text(text)


def test_a_run_that_is_well_has_nothing_to_mend(capsys, tokenizer):
    said = told(capsys, "report", f"--workdir={tokenizer}")
    assert "step 700 of 700: nothing to mend" in said
    assert str(tokenizer / "report.html") in said
    assert "No rule fires" in (tokenizer / "report.html").read_text()


def test_what_is_found_is_printed_with_its_plot_and_its_command(capsys, tokenizer, tmp_path):
    planted(tokenizer, "train/codebook_usage", 0.07)
    said = told(capsys, "report", f"--workdir={tokenizer}/", f"--output={tmp_path / 'page.html'}")
    assert "1 to mend" in said
    assert "dead codes: at most 7% of 512 codes" in said
    assert "plot: Codes used" in said
    command = f"vqgan train --config={tokenizer}/config.json --workdir={tokenizer}_again --config.quantizer.kind=fsq"
    assert command in said
    page = (tmp_path / "page.html").read_text()
    assert "At most 7% of 512 codes" in page
    assert not (tokenizer / "report.html").exists()


def test_a_folder_that_is_no_run(capsys, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        message = refused(capsys, "report", f"--workdir={folder}")
        assert "must be the folder of a run" in message
        assert str(folder) in message


def test_a_folder_of_runs_names_them(capsys, tokenizer):
    message = refused(capsys, "report", f"--workdir={tokenizer.parent}")
    assert "Give one of the runs in it: mine" in message


@pytest.mark.parametrize("text", [None, "", '{"step": 20, "tra', "[1, 2]\n", '{"step": 0, "goodput/seconds": 9}\n'])
def test_a_run_without_metrics(capsys, tokenizer, text):
    (tokenizer / "metrics.jsonl").unlink()
    if text is not None:
        (tokenizer / "metrics.jsonl").write_text(text)
    message = refused(capsys, "report", f"--workdir={tokenizer}")
    assert "needs metrics" in message
    assert "log.metrics_every = 20" in message


def test_a_writer_that_was_killed_leaves_half_a_line_and_half_a_picture(capsys, tokenizer):
    """The rest of both is shown."""
    with (tokenizer / "metrics.jsonl").open("a") as file:
        file.write('{"step": 720, "train/rec_lo')
    (tokenizer / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tokenizer / "images" / "reconstructions_0000140.png")
    whole = (tokenizer / "images" / "reconstructions_0000140.png").read_bytes()
    (tokenizer / "images" / "reconstructions_0000280.png").write_bytes(whole[:40])
    (tokenizer / "images" / "notes.png").write_bytes(b"no picture")
    assert "step 700 of 700" in told(capsys, "report", f"--workdir={tokenizer}")
    page = (tokenizer / "report.html").read_text()
    assert "reconstructions of step 140" in page
    assert "of step 280" not in page


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", '{"stage": 3}'),
        ("metrics.jsonl", '{"step": 1, "train/loss": }\n'),
        ("evaluation/evaluation.json", '{"results": 3'),
        ("evaluation/evaluation.json", '{"results": [{"metric": "psnr"}]}'),
    ],
)
def test_a_broken_file_is_named(capsys, tokenizer, file, text):
    (tokenizer / "evaluation").mkdir()
    (tokenizer / file).write_text(text)
    assert f"{tokenizer / file} must be as a run wrote it" in refused(capsys, "report", f"--workdir={tokenizer}")


def test_of_many_sheets_some_are_shown_the_first_and_the_newest_among_them(tokenizer):
    (tokenizer / "images").mkdir()
    for step in range(10, 100):
        Image.fromarray(np.full((4, 2000, 3), step, np.uint8)).save(tokenizer / f"images/samples_{step:07d}.png")
    (sheets,) = run.read(str(tokenizer)).sheets.values()
    assert list(sheets) == [10, 32, 54, 77, 99]
    assert {picture.shape for picture in sheets.values()} == {(2, 1024, 3)}
    assert sheets[99].max() == 99


def test_a_page_that_cannot_be_written_is_a_warning_at_the_end_of_a_training(capsys, tokenizer, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "page", lambda *_: "")
    monkeypatch.setattr(run.storage, "write_whole", full)
    run.finish(str(tokenizer), Console())
    said = capsys.readouterr().out.strip()
    assert said.startswith("warning: the report of this run is not written; OSError: [Errno 28] No space")
    assert said.endswith(f"vqgan report --workdir={tokenizer}")
    assert "No space left" in refused(capsys, "report", f"--workdir={tokenizer}")
