"""Samples larger than the crops that a prior was trained on, drawn through the sliding window, and how they are."""

import tempfile
import time
from pathlib import Path

import numpy as np

import vqgan_jax as vq
from vqgan_jax import data
from vqgan_jax.evaluate import drawing, of_images
from vqgan_jax.evaluate.protocol import Request
from vqgan_jax.train import program


def draw(prior: vq.Prior, size: int, count: int, stride: int, seed: int) -> tuple[np.ndarray, float]:
    """Unconditional square samples, and the CPU seconds that one took."""
    options = vars(prior.config.sampling.settings)
    if size != prior.config.data.image_size:
        options = options | {"size": (size, size), "stride": stride}
    labels = np.zeros(count, np.int32)
    common = {"seed": seed, "batch_size": 64, "options": options}
    drawing.draw(prior, labels[:64], np.arange(64), **common)  # compiles
    began = time.process_time()
    images, _ = drawing.draw(prior, labels, np.arange(count), **common)
    return images, (time.process_time() - began) / count


def frechet(prior: vq.Prior, images: np.ndarray, seed: int, count: int = 2_000) -> float:
    """fd_vgg of samples against held-out images that are brought to their size."""
    tokenizer = prior.tokenizer.config
    source = data.spread(program.open_split(tokenizer, tokenizer.data.eval_split), count)
    real = of_images.crops(source, list(range(count)), images.shape[1])
    request = Request(
        metrics=("fd_vgg",), seed=seed, batch_size=100, inception=None, track=lambda name, total: lambda done: None
    )
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.npz") for name in ("real", "drawn")]
        for file, arrays in zip(files, (real, images), strict=True):
            np.savez(file, arr_0=arrays)
        return of_images.evaluate(*files, request).results[0].value


def seam(images: np.ndarray, every: int) -> float:
    """The mean jump between columns where a window moved, over that between other codes; 1 shows no seam."""
    jumps = np.abs(np.diff(images.astype(np.float64), axis=2)).mean(axis=(0, 1, 3))
    places = np.arange(1, images.shape[2])
    code = places % 4 == 0  # jumps between codes only: inside of a code's pixels they are smaller
    moved = places % every == 0
    return float(jumps[moved].mean() / jumps[code & ~moved].mean())
