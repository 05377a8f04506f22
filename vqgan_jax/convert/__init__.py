"""Other people's weights: read without their libraries and without running their pickles, and written for them."""

from vqgan_jax.convert.loading import load
from vqgan_jax.convert.weights import ConvertError

__all__ = ["ConvertError", "load"]
