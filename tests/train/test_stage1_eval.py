"""What is measured during a run is what `vqgan evaluate` measures after it."""

from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

from vqgan_jax import cli, models
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate import likeness, of_tokenizer
from vqgan_jax.train.stage1 import Stage1


@pytest.mark.slow
def test_held_out_lpips_and_psnr_of_a_bfloat16_tokenizer_are_those_of_evaluate():
    config = cli.load_config(str(Path(__file__).parent / "tiny.py"), ["--config.model.dtype=bfloat16"])
    task, frozen = Stage1.from_config(config), {"lpips": load_lpips()}
    params = untrained.randomised(models.state_shapes(config).params["generator"], 0.1)
    images = drawn.pairs()[0][:, :32, :32]
    sums = jax.jit(task.evaluate)(params, frozen, {"image": images}, jnp.ones(3, bool))
    recons, _ = of_tokenizer.reconstructed(models.Tokenizer(params, task.model), images)
    distances = likeness.lpips_vgg(frozen["lpips"], images, recons)
    assert float(distances.min()) > 0.01
    np.testing.assert_allclose(sums["lpips"] / 3, np.mean(distances), atol=1e-5)
    np.testing.assert_allclose(sums["psnr"] / 3, np.mean(likeness.psnr(images, recons)), rtol=1e-5)
