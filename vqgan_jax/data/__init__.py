"""Images and what is known of them: sources behind one interface, resumable batches, and token caches."""

from vqgan_jax.data.images import ImageError
from vqgan_jax.data.loader import Batches, evaluation_batches, training_batches
from vqgan_jax.data.sources import Source, Subset, open_source, spread
from vqgan_jax.data.tokens import TokenSource, is_cache, open_tokens
from vqgan_jax.data.views import Augmentation

__all__ = [
    "Augmentation",
    "Batches",
    "ImageError",
    "Source",
    "Subset",
    "TokenSource",
    "evaluation_batches",
    "is_cache",
    "open_source",
    "open_tokens",
    "spread",
    "training_batches",
]
