"""What the loop is given: held-out sums and sheets of any stage, and its evaluator."""

from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath

from vqgan_jax import cli, data
from vqgan_jax.train import loop, sharding
from vqgan_jax.train.program import Program, open_split
from vqgan_jax.train.stage1 import Stage1

TINY = str(Path(__file__).with_name("tiny.py"))


@pytest.mark.parametrize("previews", [3, 12])
def test_every_held_out_example_counts_once_and_the_first_are_shown(previews):
    """Ten examples in batches of four, whose last one is padded; of sheets each batch has a key of its own."""
    flags = ["--config.batch_size=4", "--config.log.eval_examples=10"]
    config, keys = cli.load_config(TINY, flags), []
    held_out = data.spread(open_split(config, "validation"), 10)

    def measure(params, frozen, batch, mask):
        assert params == "averaged"
        images = np.asarray(batch["image"])[np.asarray(mask)]
        return {"sum": images.sum(dtype=np.int64), "count": len(images)}

    def show(params, frozen, batch, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return (batch["image"],)

    stage = mock.Mock(
        spec=Stage1,
        network="net",
        previews=previews,
        figures=lambda sums: {name: float(value) for name, value in sums.items()},
        sheets=lambda arrays, frozen, names: {"sheet": arrays[0]},
    )
    program = Program(
        stage=stage,
        config=config,
        mesh=sharding.make_mesh(1, 1, 1, jax.devices()[:1]),
        abstract=None,
        frozen={},
        source=None,
        held_out=held_out,
        step=mock.Mock(),
        init=mock.Mock(),
        measure=measure,
        show=show,
    )
    figures, pictures = program.evaluate(mock.Mock(ema={"net": "averaged"}, params={"net": "raw"}))
    (everything,) = data.evaluation_batches(held_out, image_size=16, batch_size=10)
    assert figures == {"sum": everything["image"].sum(dtype=np.int64), "count": 10}
    expected = data.evaluation_batches(data.spread(held_out, previews), image_size=16, batch_size=1)
    np.testing.assert_array_equal(pictures["sheet"], np.concatenate([batch["image"] for batch in expected]))
    assert len(set(keys)) == len(keys) == -(-min(previews, 10) // 4)


def test_metrics_of_evaluate_need_an_evaluator():
    console, workdir = mock.Mock(), epath.Path("here")
    config = cli.load_config(TINY, ["--config.log.eval_metrics=('fd_vgg',)"])
    with pytest.raises(ValueError, match=r"eval_metrics` needs an evaluator; got \('fd_vgg',\)"):
        loop.evaluator_of(None, config, workdir)
    made = loop.evaluator_of(lambda config, workdir: console, config, workdir)
    assert made is console
    assert loop.evaluator_of(None, cli.load_config(TINY), workdir)(mock.Mock(), 1) == {}
