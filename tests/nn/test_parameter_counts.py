"""The published models have exactly so many parameters, running statistics not counted."""

import jax
import jax.numpy as jnp
import pytest

from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.quantizer import GumbelQuantizer, VectorQuantizer


def count(module):
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("multipliers", "attention", "quantizer", "expected"),
    [
        ((1, 1, 2, 2, 4), 16, VectorQuantizer(1024, 256), 72_141_699),
        ((1, 1, 2, 2, 4), 16, VectorQuantizer(16384, 256), 76_073_859),
        ((1, 1, 2, 4), 32, GumbelQuantizer(8192, 256), 68_995_971),
    ],
    ids=["f16_1024", "f16_16384", "gumbel_f8_8192"],
)
def test_autoencoder(multipliers, attention, quantizer, expected):
    assert count(VQGAN(quantizer, 128, multipliers, 2, (attention,), 256, 3, 256)) == expected


@pytest.mark.parametrize(
    ("num_layers", "norm", "expected"), [(3, "batch", 2_765_633), (2, "batch", 663_361), (3, "act", 2_766_529)]
)
def test_discriminator(num_layers, norm, expected):
    assert count(PatchDiscriminator(64, num_layers, norm)) == expected
