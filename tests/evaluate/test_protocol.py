"""A result without its protocol is an error (E8), and its name tells the number of images (E12)."""

import dataclasses

import pytest

from vqgan_jax.evaluate import protocol

WHOLE = {
    "metric": "fid5k", "value": 4.5, "unit": "none", "better": "lower", "variant": "Frechet distance",
    "subject": "samples", "subject_count": 5000, "subject_fingerprint": "ab", "reference": "tfds:cifar10",
    "reference_count": 10_000, "reference_fingerprint": "cd", "resize": "none", "rounding": "rint",
    "network": "inception.pth", "network_hash": "ef", "model": "runs/prior", "step": 10, "weights": "ema",
    "sampling": {"top_k": 100}, "seed": 0, "versions": {"jax": "1"},
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(protocol.Result)])
def test_no_field_may_be_left_out(field):
    assert protocol.Result(**WHOLE)
    with pytest.raises(TypeError, match=f"argument: '{field}'"):
        protocol.Result(**{name: value for name, value in WHOLE.items() if name != field})


@pytest.mark.parametrize(
    ("field", "value"),
    [("reference", ""), ("weights", ""), ("value", float("nan")), ("subject_count", -1), ("versions", {})],
)
def test_no_field_may_be_empty(field, value):
    with pytest.raises(ValueError, match=f"must say its `{field}`"):
        protocol.Result(**WHOLE | {field: value})


@pytest.mark.parametrize(
    ("count", "name"), [(5000, "fid5k"), (50_000, "fid50k"), (512, "fid512"), (1003, "fid1003"), (0, "fid0")]
)
def test_the_number_of_images_is_in_the_name(count, name):
    assert protocol.named("fid", count) == name


def test_the_hash_is_of_the_whole_file(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * 1000)
    second.write_bytes(b"x" * 999 + b"y")
    assert protocol.file_hash(first) != protocol.file_hash(second)
    assert protocol.file_hash(first) == "44f8354494a5ba03"
