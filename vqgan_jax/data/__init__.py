"""Images and their labels: four kinds of sources behind one interface, and resumable batches of them."""

from vqgan_jax.data.images import ImageError
from vqgan_jax.data.loader import Batches, evaluation_batches, training_batches
from vqgan_jax.data.sources import Source, open_source, spread

__all__ = ["Batches", "ImageError", "Source", "evaluation_batches", "open_source", "spread", "training_batches"]
