"""Images and what is known of them: sources behind one interface, resumable batches, conditions, and token caches."""

from vqgan_jax.data.images import ImageError
from vqgan_jax.data.loader import Batches, evaluation_batches, training_batches
from vqgan_jax.data.sources import Source, open_source, spread, subset
from vqgan_jax.data.tokens import TokenSource, evaluation_token_batches, is_cache, open_tokens, token_batches

__all__ = [
    "Batches",
    "ImageError",
    "Source",
    "TokenSource",
    "evaluation_batches",
    "evaluation_token_batches",
    "is_cache",
    "open_source",
    "open_tokens",
    "spread",
    "subset",
    "token_batches",
    "training_batches",
]
