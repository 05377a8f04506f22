"""VQGAN tokenizers and their transformers in pure JAX."""
