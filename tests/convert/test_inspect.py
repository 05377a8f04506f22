"""What a file is, told without reading its tensors."""

import math
import os

import pytest
from mutations import write_header
from published import MODELS

from vqgan_jax.__main__ import main


def safetensors(path, shapes):
    """A file of zeros that take no place on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    size = write_header(path, header).stat().st_size
    os.truncate(path, size + end)
    return path


def told(capsys, *argv) -> str:
    assert main(["inspect", *map(str, argv)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_file_of_no_known_model_is_listed(capsys, tmp_path):
    out = told(capsys, safetensors(tmp_path / "a.safetensors", {"w": [2, 3], "b": [3]}))
    assert "2 tensors, 9 numbers" in out
    assert "not a model that can be loaded" in out
    assert "w (2, 3)" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vqgan_imagenet_f16_1024", "a tokenizer: f16, 1024 codes of 256, vq, 3 channels"),
        ("cin_transformer_1p4B", "a prior: 48 layers of 1536, 16 heads, condition 'class', order 'raster'"),
    ],
)
def test_published_files_are_told_from_their_names_and_shapes(capsys, tmp_path, name, message):
    """Of zeros that take no room on the disk: 1.4 billion parameters in a second."""
    shapes = {key: list(shape) for key, shape in MODELS[name].names()}
    out = told(capsys, safetensors(tmp_path / "a.safetensors", shapes))
    assert message in out
    assert "missing │ 0" in out
    assert "unexpected │ 0" in out


def test_what_is_no_checkpoint_is_one_message(capsys, tmp_path):
    path = tmp_path / "page.ckpt"
    path.write_text("<html>not found</html>")
    assert main(["inspect", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vqgan inspect: ")
    assert "see whether it is a web page" in " ".join(err.split())
    with pytest.raises(SystemExit):
        main(["inspect"])
