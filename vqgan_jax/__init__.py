"""VQGAN tokenizers and the transformers over their codes, in pure JAX.

import vqgan_jax as vq

tokenizer = vq.load_tokenizer("runs/photos")
indices = vq.encode(tokenizer, images)            # uint8 or float in [-1, 1] -> int32, b h w
recon = vq.to_uint8(vq.decode(tokenizer, indices))
"""

from vqgan_jax.api import Tokenizer, decode, encode, load_tokenizer, to_uint8

__all__ = ["Tokenizer", "decode", "encode", "load_tokenizer", "to_uint8"]
