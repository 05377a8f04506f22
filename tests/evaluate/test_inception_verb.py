"""`vqgan evaluate` with a whole file of Inception's weights, drawn instead of trained."""

import json

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
from safetensors.numpy import save_file
from verbs import succeeds

from vqgan_jax.convert import names, trees
from vqgan_jax.convert.inception import FILES, TORCH, load_inception
from vqgan_jax.evaluate import distances
from vqgan_jax.evaluate.distances import add, empty, frechet_distance, inception_score
from vqgan_jax.evaluate.features import inception_features
from vqgan_jax.evaluate.protocol import file_hash
from vqgan_jax.nn.inception import Inception

pytestmark = pytest.mark.slow
METRICS = "fid,kid,inception_score,precision,recall"
BATCH = "--batch_size=4"  # of what a device's batch is filled up to, each image costs 11 GFLOP


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The file under its published name in a cache folder, and two sets of images."""
    folder = tmp_path_factory.mktemp("inception")
    shapes = trees.flat(jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"])
    entries = names.entries(TORCH, shapes)
    save_file({name: drawn.weight(name, entry.shape) for name, entry in entries.items()}, folder / FILES[0])
    for name, count, seed in (("real", 9, 0), ("drawn", 7, 1)):
        sets.write(folder / name, sets.blobs(count, size=40, seed=seed))
    return folder


def test_figures_are_those_of_the_features(folder, monkeypatch):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(folder))
    flags = (f"--reference={folder / 'real'}", f"--samples_from={folder / 'drawn'}", f"--metrics={METRICS}")
    succeeds("evaluate", *flags, f"--output={folder / 'out'}", BATCH)
    told = json.loads((folder / "out" / "evaluation.json").read_text())
    found = {row["metric"]: row for row in told["results"]}
    params, images = load_inception(folder / FILES[0]), (sets.blobs(9, size=40), sets.blobs(7, size=40, seed=1))
    real, samples = (inception_features(params, jnp.asarray(some)) for some in images)
    moments = [add(empty(2048), np.asarray(features)) for features, _ in (real, samples)]
    rows = [np.asarray(features) for features, _ in (real, samples)]
    expected = {
        "fid7": frechet_distance(*moments),
        "kid7": distances.kid(*rows, size=7, seed=0)[0],
        "inception_score7": inception_score(np.asarray(samples[1]), seed=0)[0],
        "precision7": distances.precision_recall(*rows)[0],
        "recall7": distances.precision_recall(*rows)[1],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=2e-3, abs=1e-6), name
        assert found[name]["network_hash"] == file_hash(folder / FILES[0])
    assert told["features_per_second"] > 0


def test_nothing_is_as_near_as_itself(folder):
    file = f"--inception={folder / FILES[0]}"
    same = (f"--reference={folder / 'real'}", f"--samples_from={folder / 'real'}", "--metrics=fid", file, BATCH)
    succeeds("evaluate", *same, f"--output={folder / 'same'}")
    (row,) = json.loads((folder / "same" / "evaluation.json").read_text())["results"]
    assert abs(row["value"]) < 1e-6 * 2048
    statistics = f"--reference={folder / 'same' / 'reference_inception.npz'}"
    succeeds("evaluate", statistics, *same[1:], f"--output={folder / 'again'}", "--size=40")
    (again,) = json.loads((folder / "again" / "evaluation.json").read_text())["results"]
    assert abs(again["value"]) < 1e-6 * 2048
