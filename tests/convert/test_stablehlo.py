"""Functions in files give what the package gives, in a process that does not have the package."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax.convert import stablehlo


@pytest.mark.slow
def test_the_example_runs_without_the_package_and_gives_the_same_arrays(tmp_path):
    prior = untrained.prior(side=4, codebook_size=16, sampling__top_k=5, sampling__guidance=2.0)
    stablehlo.write(prior, tmp_path / "served", size=(8, 12), platforms=("cpu", "cuda", "tpu"))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    alone = "import sys; sys.modules['vqgan_jax'] = None; sys.argv[:] = sys.argv[1:]; exec(open(sys.argv[0]).read())"
    served = tmp_path / "served"
    code = alone.replace("exec(", "__file__ = sys.argv[0]; exec(")
    run = [sys.executable, "-c", code, str(served / "example.py"), str(tmp_path / "images.npy")]
    subprocess.run(run, check=True)
    indices = vq.encode(prior.tokenizer, images)
    np.testing.assert_allclose(np.load(served / "recon.npy"), vq.decode(prior.tokenizer, indices), atol=1e-5)
    # As the command `vqgan sample` would draw with the run's own settings.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(np.uint32(0)), jnp.arange(2))
    wanted = vq.sample(prior, keys, labels=jnp.zeros(2, jnp.int32), top_k=5, guidance=2.0)
    np.testing.assert_allclose(np.load(served / "samples.npy"), wanted, atol=1e-5)


def test_indices_are_identical_at_every_batch_size():
    tokenizer = untrained.tokenizer()
    functions = stablehlo.serialised(tokenizer, size=(8, 8), platforms=("cpu",))
    assert sorted(functions) == ["decode", "encode"]
    encode = jax.export.deserialize(bytearray(functions["encode"])).call
    weights = stablehlo.weights_of(tokenizer)
    for batch in (1, 5):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 8, 8, 3), np.uint8)
        np.testing.assert_array_equal(encode(weights, images), vq.encode(tokenizer, images))


def test_sizes_and_platforms_are_checked(tmp_path):
    with pytest.raises(ValueError, match="multiples of the downsample factor 2"):
        stablehlo.write(untrained.tokenizer(), tmp_path / "a", size=(8, 9), platforms=("cpu",))
    with pytest.raises(ValueError, match="abacus"):
        stablehlo.write(untrained.tokenizer(), tmp_path / "a", size=(8, 8), platforms=("abacus",))
    assert not (tmp_path / "a").exists()
