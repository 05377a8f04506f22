"""VQGAN tokenizers and the transformers over their codes, in pure JAX.

import vqgan_jax as vq

tokenizer = vq.load_tokenizer("runs/photos")
indices = vq.encode(tokenizer, images)            # uint8 or float in [-1, 1] -> int32, b h w
recon = vq.to_uint8(vq.decode(tokenizer, indices))

prior = vq.load_prior("runs/photos_prior")
images = vq.to_uint8(vq.sample(prior, jax.random.key(0), labels=jnp.array([2, 4]), top_k=100))
nats = vq.log_likelihood(prior, images, labels=jnp.array([2, 4]))
"""

from vqgan_jax.api import decode, embed, encode, log_likelihood, sample, sample_indices
from vqgan_jax.convert import hub
from vqgan_jax.models import FETCHERS, Prior, Tokenizer, load_prior, load_tokenizer
from vqgan_jax.nn.pixels import to_uint8
from vqgan_jax.train import compat

compat.quiet_libtpu()
FETCHERS["hf"] = hub.run_folder

__all__ = [
    "Prior",
    "Tokenizer",
    "decode",
    "embed",
    "encode",
    "load_prior",
    "load_tokenizer",
    "log_likelihood",
    "sample",
    "sample_indices",
    "to_uint8",
]
