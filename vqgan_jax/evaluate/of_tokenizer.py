"""A tokenizer: every held-out image once, against what comes back of it."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from vqgan_jax import api, data, models
from vqgan_jax import config as configs
from vqgan_jax.evaluate import generation, likeness, reconstruction, record, structural
from vqgan_jax.evaluate.collection import Collector, Measured, Numbered, padded
from vqgan_jax.evaluate.gathering import numbered
from vqgan_jax.evaluate.of_images import ROUNDING, Networks, Request, open_networks, results
from vqgan_jax.train import program, sharding

EXTREMES = 4  # images of each kind to look at


class Report(NamedTuple):
    """What was found of a tokenizer.

    Attributes:
      results: the figures.
      found: values of each image, and the histogram.
      shown: by "best", "median" and "worst": originals, reconstructions and their LPIPS.
    """

    results: list[record.Result]
    found: reconstruction.Reconstructed
    shown: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def evaluate(
    model: models.Tokenizer, config: configs.Stage1, request: Request, *, workdir: str, split: str = "validation"
) -> Report:
    """Every image of a split once, against what comes back of it.

    Raises:
      ValueError: the tokenizer is not one of pictures, or the metrics do not fit.
      FileNotFoundError: a metric's network is not there.
    """
    check(config)
    chosen = generation.choose(request.metrics, "tokenizer")
    name = {"validation": config.data.eval_split, "train": config.data.train_split}[split]
    source = Measured(request.limited(program.open_split(config, name)))
    generation.check_counts(chosen, reference=len(source))
    networks, size = open_networks(chosen, request.inception), config.data.image_size
    share: dict[str, Any] = program.share()
    batches = data.evaluation_batches(source, image_size=size, batch_size=request.global_batch, **share)
    reconstruct, compare = pair_functions(model, networks, request.local_batch, ssim="ssim" in chosen)
    keep = generation.kept(chosen)
    found = reconstruction.measure(
        numbered(batches, **share), reconstruct, compare, codebook_size=model.codebook_size,
        collectors=(Collector(networks.run, keep=keep), Collector(networks.run, keep=keep)),
        batch_size=request.local_batch,
        progress=request.track("reconstructing", -(-len(source) // jax.process_count())),
    )  # fmt: skip
    values = found.means | generation.compare(chosen, found.originals, found.recons, seed=request.seed)
    protocol = results(
        values, chosen, networks, subject="reconstructions of the reference", subject_count=found.recons.count,
        subject_fingerprint=found.recons.fingerprint, reference=f"{source.name}, the same crops",
        reference_count=found.originals.count, reference_fingerprint=found.originals.fingerprint,
        resize=source.resize(size), rounding=ROUNDING, model=workdir, step=model.step, weights=model.weights,
        sampling={}, seed=request.seed,
    )  # fmt: skip
    order = dict(zip(found.numbers.tolist(), found.values["lpips_vgg"], strict=True))
    one = lambda number: next(
        data.evaluation_batches(Numbered(source.source, [number]), image_size=size, batch_size=1)
    )["image"][0]
    shown = {}
    for kind, numbers in found.extremes(EXTREMES).items():
        originals = np.stack([one(int(number)) for number in numbers])
        shown[kind] = originals, reconstruct(originals)[0], np.array([order[int(number)] for number in numbers])
    return Report(protocol, found, shown)


def check(config: configs.Stage1) -> None:
    """ValueError for a tokenizer of anything but pictures."""
    if config.data.field != "image" or config.model.image_channels != 3:
        raise ValueError(
            f"a tokenizer to evaluate must be one of RGB pictures; this one reads {config.data.field!r} in "
            f"{config.model.image_channels} channels. Its training logs say how good it is."
        )


@jax.jit
def reconstructed(model: models.Tokenizer, images: Any) -> tuple[Any, Any]:
    """Rounded pixels and codes."""
    indices = api.encode(model, images)
    return api.to_uint8(api.decode(model, indices)), indices


def pair_functions(model: models.Tokenizer, networks: Networks, size: int, *, ssim: bool) -> tuple[Any, Any]:
    """Reconstruction of images, and values of pairs; compiled for batches of `size`, which they pad."""
    whole = lambda array, count: np.asarray(array)[:count]

    def recons_and_codes(images: UInt8[np.ndarray, "b H W 3"]) -> tuple[np.ndarray, np.ndarray]:
        recons, indices = reconstructed(model, padded(images, size))
        return whole(recons, len(images)), whole(indices, len(images))

    def values(images: np.ndarray, recons: np.ndarray) -> dict[str, np.ndarray]:
        x, y = padded(images, size), padded(recons, size)
        found = {"lpips_vgg": likeness.lpips_vgg(networks.lpips, x, y), "psnr": structural.psnr(x, y)}
        rows = {name: whole(value, len(images)).astype(np.float64) for name, value in found.items()}
        if ssim:
            rows["ssim"] = structural.ssim(images, recons)
        return rows | {"l1": np.abs(images.astype(np.float64) - recons).mean(axis=(1, 2, 3)) / 127.5}

    model = jax.device_put(model, sharding.replicated(sharding.local_mesh()))
    return recons_and_codes, values
