"""Folders that diffusers itself wrote: what our network makes of their weights is what theirs made."""

from pathlib import Path

import jax
import numpy as np
import published
import pytest

from vqgan_jax import api, models
from vqgan_jax.convert import diffusers
from vqgan_jax.convert.read import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


def near(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(("name", "attended"), [("mid", ()), ("levels", (128,))])
def test_latents_codes_and_pictures_are_theirs(name, attended):
    converted = published.load(diffusers, open_checkpoint(GOLDEN / f"diffusers_{name}"))
    tokenizer = models.Tokenizer(converted.params, converted.config.make_vqgan())
    theirs = np.load(GOLDEN / f"diffusers_{name}" / "arrays.npz")
    assert theirs["margin"] > 1e-5
    model = converted.config.model
    assert (model.norm_groups, model.latent_channels, model.attn_resolutions) == (2, 6, attended)
    encode = lambda params, images: tokenizer.module.apply({"params": params}, images, method="encode")
    ours = jax.jit(encode)(tokenizer.params, theirs["images"])
    assert near(ours.latents, theirs["latents"])
    np.testing.assert_array_equal(ours.indices, theirs["indices"])
    assert near(api.decode(tokenizer, theirs["indices"]), theirs["recon"])
    assert converted.report._replace(used=()) == ((),) * 5
