"""The verbs for Python users: equal under the caller's own jit, and clear about what they cannot take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vqgan_jax as vq
from vqgan_jax.nn.autoencoder import Decoder, Encoder
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.nn.vqgan import VQGAN


@pytest.fixture(scope="module")
def tokenizer():
    shape = {
        "channels": 32,
        "channel_multipliers": (1, 1),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "resolution": 8,
    }
    module = VQGAN(Encoder(**shape, out_channels=32), VectorQuantizer(16, 4, True), Decoder(**shape, out_channels=3))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    return vq.Tokenizer(params, module)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)


def test_pixels_and_floats_have_the_same_codes_inside_and_outside_of_jit(tokenizer, images):
    indices = vq.encode(tokenizer, images)
    assert (indices.shape, indices.dtype) == ((2, 4, 6), jnp.int32)
    np.testing.assert_array_equal(vq.encode(tokenizer, jnp.float32(images) / 127.5 - 1), indices)
    np.testing.assert_array_equal(jax.jit(vq.encode)(tokenizer, images), indices)
    recon = vq.decode(tokenizer, indices)
    assert recon.shape == images.shape
    np.testing.assert_allclose(jax.jit(vq.decode)(tokenizer, indices), recon, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :7], "height must be a multiple of the downsample factor 2; got 7. Resize or pad to 8"),
        (lambda x: x[..., :1], r"must have shape \(b, H, W, 3\)"),
        (lambda x: x.astype(np.int32), "must be uint8 or float"),
        (lambda x: x.astype(np.float32), r"must be in \[-1, 1\]; got values in"),
    ],
)
def test_images_that_do_not_fit_are_refused(tokenizer, images, change, message):
    with pytest.raises(ValueError, match=message):
        vq.encode(tokenizer, change(images))


def test_an_index_outside_the_codebook_is_refused_and_nan_under_jit(tokenizer):
    bad = jnp.zeros((2, 4, 4), jnp.int32).at[1, 0, 0].set(16)
    with pytest.raises(ValueError, match=r"must be in \[0, 16\); got values in \[0, 16\]"):
        vq.decode(tokenizer, bad)
    finite = jnp.isfinite(jax.jit(vq.decode)(tokenizer, bad)).all((1, 2, 3))
    np.testing.assert_array_equal(finite, [True, False])


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        vq.load_tokenizer(tmp_path)
