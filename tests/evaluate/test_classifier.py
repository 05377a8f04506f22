"""The classifier: it learns what can be learned, scores a class, comes back from its folder, refuses other images."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqgan_jax import cli
from vqgan_jax.evaluate import classifier

PAGE = str(Path(__file__).parents[1] / "train" / "tiny.py")


def striped(label: int, count: int, seed: int) -> np.ndarray:
    """Noise with stripes of any phase: down (class 0), across (class 1) or along a diagonal; their means are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    wave = np.sin((x, y, x + y)[label] * 1.5 + rng.uniform(0, 6, (count, 1, 1)))
    noisy = 128 + 50 * wave[..., None] + 30 * rng.normal(size=(count, 16, 16, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of images in folders of three classes."""
    folder = tmp_path_factory.mktemp("stripes")
    for split, count in (("train", 40), ("validation", 20)):
        for label in range(3):
            place = folder / split / "abc"[label]
            place.mkdir(parents=True)
            for i, image in enumerate(striped(label, count, seed=label + count)):
                Image.fromarray(image).save(place / f"{i:03d}.png")
    flags = [f"--config.data.source=folder:{folder}", "--config.data.resize=(16,16)", "--config.data.flip=False"]
    return cli.load_config(PAGE, flags)


def opened(folder, config) -> classifier.Classifier:
    return classifier.open_classifier(folder, config, seed=0, track=lambda name, total: lambda done: None)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """Where a classifier was trained, for a few seconds."""
    folder = tmp_path_factory.mktemp("classifier") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "SCHEDULE", classifier.SCHEDULE._replace(steps=60, batch_size=16))
        opened(folder, config)
    return folder


@pytest.mark.slow
def test_what_can_be_learned_is_learned(folder, config):
    record = json.loads((folder / "classifier.json").read_text())
    assert record["accuracy"] > 0.9
    assert (record["held_out"], record["classes"], record["steps"]) == (60, ["a", "b", "c"], 60)
    found = opened(folder, config)
    images, labels = np.concatenate([striped(label, 10, seed=9) for label in range(3)]), np.repeat(np.arange(3), 10)
    assert np.mean(found.labels(images) == labels) > 0.9
    assert f"{record['accuracy']:.1%}" in found.name


@pytest.mark.slow
def test_a_score_is_the_log_probability_of_the_class(folder, config):
    found, images = opened(folder, config), striped(1, 5, seed=3)
    scores = np.stack([found.scores(images, np.full(5, label)) for label in range(3)], axis=1)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0, atol=1e-5)
    logits = jax.jit(classifier.Network(3).apply)({"params": found.params}, jnp.float32(images) / 127.5 - 1)
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits), atol=1e-4)


@pytest.mark.slow
def test_a_folder_is_read_and_not_trained_in_again(folder, config, monkeypatch):
    monkeypatch.setattr(classifier, "train", None)
    first, second = (opened(folder, config) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.file == second.file


@pytest.mark.slow
def test_other_images_are_refused(folder, config, tmp_path):
    with pytest.raises(ValueError, match=r"trained on RGB images of 16x16; got \(8, 8, 3\)"):
        opened(folder, config).labels(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="must be of source 'scenes'; it was trained on 'folder:"):
        opened(folder, cli.load_config(PAGE, ["--config.data.source=scenes"]))
    for split in ("train", "validation"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        Image.fromarray(striped(0, 1, seed=0)[0]).save(tmp_path / "flat" / split / "one.png")
    with pytest.raises(ValueError, match=r"at least 2 classes; .* has 0"):
        opened(tmp_path / "none", cli.load_config(PAGE, [f"--config.data.source=folder:{tmp_path / 'flat'}"]))


@pytest.mark.parametrize(("side", "levels"), [(16, 2), (32, 3), (112, 4), (144, 4), (224, 5), (256, 6)])
def test_sides_are_halved_as_long_as_they_are_even(side, levels):
    params = jax.eval_shape(classifier.Network(2).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    assert sum(name.startswith("conv") for name in params) == levels
