"""docs/tour.ipynb runs from its first cell to its last."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"

SHORT = {"steps": 2, "log.eval_every": 2, "log.eval_examples": 8}
TOKENIZER = SHORT | {"loss.perceptual_weight": 0.0}
PRIOR = SHORT | {"transformer.depth": 1}


def flags(changes):
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def cells():
    return [cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]


def test_the_committed_tour_has_no_outputs():
    assert all(not cell.outputs and cell.execution_count is None for cell in cells())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what runs notebooks
def test_the_tour_runs(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient").NotebookClient
    monkeypatch.setenv("TOUR_TOKENIZER", flags(TOKENIZER))
    monkeypatch.setenv("TOUR_PRIOR", flags(PRIOR))
    notebook = nbformat.read(TOUR, as_version=4)
    client(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert not [output for output in outputs if output.output_type == "error"]
