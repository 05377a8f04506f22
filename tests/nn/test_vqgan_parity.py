"""Encoder, quantizer and decoder against upstream's, with its weights: values, codes and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GRADIENTS, VALUES, error, golden, pairs, translate, tree, under

from vqgan_jax.losses import codebook_loss, commitment_loss
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import VectorQuantizer

MODEL: Any = VQGAN(VectorQuantizer(32, 8), 32, (3, 2, 2), 1, (8,), 32, 3, 16, dtype="float32")

# Weights of (codebook_loss, commitment_loss): upstream's beta of 0.25 sat on the first term before it was corrected.
PLACEMENTS = {"legacy": (0.25, 1.0), "corrected": (1.0, 0.25)}


def code_loss(latents, codes, placement):
    codebook, commitment = PLACEMENTS[placement]
    return codebook * codebook_loss(latents, codes).mean() + commitment * commitment_loss(latents, codes).mean()


def forward(model, images):
    """By its parts: 35x22 decodes to 32x20, which `VQGAN.__call__` does not promise."""
    codes = model.encode(images)
    return model.encoder(images), codes, model.decode(codes.quantized)


def functional(params, images, cotangent):
    """What upstream differentiated, and what it recorded on the way."""
    encoded, codes, recon = MODEL.apply({"params": params}, images, method=forward)
    loss = code_loss(codes.latents, codes.codes, "legacy")
    value = jnp.mean(recon * cotangent) + loss
    names = dict(latents=codes.latents, quantized=codes.quantized, indices=codes.indices)
    return value, names | dict(encoded=encoded, codebook_loss=loss, recon=recon, functional=value)


@pytest.fixture(scope="module")
def params():
    like = jax.eval_shape(MODEL.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return tree(translate(golden("weights")), "generator", like["params"])


@pytest.fixture(scope="module", params=["even", "odd"])
def case(request, params):
    """Upstream's arrays; ours by the same names; our gradients to the parameters and the images."""
    recorded = under(request.param, golden("forward"))
    both = jax.jit(jax.grad(functional, argnums=(0, 1), has_aux=True))
    grads, ours = both(params, recorded["images"], recorded["cotangent"])
    return recorded, ours, grads


def test_indices_are_the_same(case):
    recorded, ours, _ = case
    np.testing.assert_array_equal(ours["indices"], recorded["indices"])


@pytest.mark.parametrize("name", ["encoded", "latents", "quantized", "codebook_loss", "recon", "functional"])
def test_values(case, name):
    recorded, ours, _ = case
    assert error(ours[name], recorded[name]) < VALUES


def test_gradient_to_the_images(case):
    recorded, _, (_, grad_images) = case
    assert error(grad_images, recorded["grad_images"]) < GRADIENTS


def test_gradient_to_every_parameter(case):
    recorded, _, (grads, _) = case
    norms, small = under("grad_norm", recorded), under("grad", recorded)
    keys = jax.tree_util.tree_flatten_with_path(grads)[0]
    assert len(norms) == len([path for path, _ in keys if [str(k.key) for k in path[-2:]] != ["k", "bias"]])
    assert max(error(jnp.linalg.norm(g.reshape(-1)), n) for g, n in pairs(grads, norms)) < GRADIENTS
    assert max(error(g, s) for g, s in pairs(grads, small)) < GRADIENTS


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_both_placements_of_beta(params, placement):
    """The value is the same for both, the gradients are not."""
    recorded = under("even", golden("forward"))

    def loss(codebook, latents):
        codes = MODEL.quantizer.apply({"params": {"codebook": codebook}}, latents)
        return code_loss(codes.latents, codes.codes, placement)

    codebook = params["quantizer"]["codebook"]
    value, (grad_codebook, grad_latents) = jax.value_and_grad(loss, (0, 1))(codebook, jnp.asarray(recorded["latents"]))
    assert error(value, recorded["codebook_loss"]) < VALUES
    assert error(grad_codebook, recorded[f"{placement}/grad_codebook"]) < GRADIENTS
    assert error(grad_latents, recorded[f"{placement}/grad_latents"]) < GRADIENTS
