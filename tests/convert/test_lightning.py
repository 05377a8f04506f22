"""Whole files as upstream's trainer writes them, from bytes to trees: weights, optimisers, and what is in the way."""

import jax
import numpy as np
import published
from published import TINY
from torch_files import Call, Global, Ordered, tensor, write_legacy, write_zip

from vqgan_jax.convert import taming
from vqgan_jax.convert.read import open_checkpoint


def lightning(arrays, rng):
    """Weights, Adam's moments of all parameters that are trained, and an object of a class that is not here."""
    numbers = iter(range(10**6))
    store = lambda array: tensor(str(next(numbers)), array)
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    groups = [
        [name for part in parts for name in arrays if name.startswith(part)],
        [n for n in arrays if n.startswith("loss.discriminator.") and n.endswith((".weight", ".bias"))],
    ]
    moments = [[rng.standard_normal(arrays[n].shape).astype(np.float32) for n in group] for group in groups]
    states = [
        {
            "state": {i: {"step": 5, "exp_avg": store(m), "exp_avg_sq": store(m * m)} for i, m in enumerate(group)},
            "param_groups": [{"lr": 5.4e-5, "betas": (0.5, 0.9), "params": list(range(len(group)))}],
        }
        for group in moments
    ]
    file = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {Global("pytorch_lightning.callbacks", "ModelCheckpoint"): {"best_model_score": 0.5}},
        "optimizer_states": states,
        "lr_schedulers": [],
        "state_dict": Ordered((name, store(array)) for name, array in arrays.items()),
        "hyper_parameters": Call(Global("omegaconf.dictconfig", "DictConfig"), ({},), {"_content": {}}),
    }
    return file, [dict(zip(group, each, strict=True)) for group, each in zip(groups, moments, strict=True)]


def test_a_training_checkpoint_from_bytes_to_trees(tmp_path):
    arrays = published.random(TINY["f8_batchnorm"])
    file, (generator, judge) = lightning(arrays, np.random.default_rng(1))
    converted = published.load(taming, open_checkpoint(write_legacy(tmp_path / "last.ckpt", file)))
    wanted = published.load(taming, published.checkpoint(arrays))
    assert converted.report == wanted.report
    assert converted.step == 40
    jax.tree.map(np.testing.assert_array_equal, converted.networks, wanted.networks)
    as_weights = published.load(taming, published.checkpoint(arrays | generator | judge))
    for network, moments in converted.moments.items():
        expected = as_weights.networks[network]
        assert moments.count == 5
        jax.tree.map(np.testing.assert_array_equal, moments.mu, expected)
        jax.tree.map(np.testing.assert_array_equal, moments.nu, jax.tree.map(np.square, expected))


def test_a_prior_from_bytes_to_trees(tmp_path):
    arrays = published.random(TINY["map"])
    stored = Ordered((name, tensor(str(i), array)) for i, (name, array) in enumerate(arrays.items()))
    opened = open_checkpoint(write_zip(tmp_path / "last.ckpt", {"state_dict": stored}))
    converted = published.load(taming, opened, num_heads=4)
    wanted = published.load(taming, published.checkpoint(arrays), num_heads=4)
    assert converted.config == wanted.config
    assert converted.report == wanted.report
    for part in (lambda model: model, lambda model: model.tokenizer, lambda model: model.condition):
        jax.tree.map(np.testing.assert_array_equal, part(converted).networks, part(wanted).networks)
