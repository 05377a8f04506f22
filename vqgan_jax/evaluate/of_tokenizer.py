"""A tokenizer: every held-out image once, against its reconstruction; and one histogram of all codes."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax import api, models
from vqgan_jax import config as configs
from vqgan_jax.evaluate import likeness, perturbed, protocol
from vqgan_jax.evaluate.features import Networks, open_networks
from vqgan_jax.evaluate.of_images import ROUNDING, Collector, Measured, crops, gather, in_order, padded, read
from vqgan_jax.evaluate.protocol import Evaluation, Request, Summary
from vqgan_jax.nn.pixels import to_uint8
from vqgan_jax.train import program, sharding
from vqgan_jax.train.metrics import code_statistics

EXTREMES = 4  # images of each kind to look at
Images = UInt8[np.ndarray, "b H W 3"]
Perturb = Callable[[Int[np.ndarray, "b"], Int[np.ndarray, "b h w"]], Images]


class Reconstructed(NamedTuple):
    """What is known of a set of images and their reconstructions, over all processes.

    Attributes:
      values: of each image of the source in turn, by metric.
      hits: how often each code was used.
      originals, recons: both sets.
      perturbed: the images of perturbed codes; None where no metric is of them.
    """

    values: dict[str, Float[np.ndarray, "n"]]
    hits: Int[np.ndarray, "k"]
    originals: Summary
    recons: Summary
    perturbed: Summary | None

    @property
    def means(self) -> dict[str, float]:
        """Of each metric over the images, whatever the batches were; usage and perplexity of the one histogram."""
        return {name: float(np.mean(values)) for name, values in self.values.items()} | code_statistics(self.hits)

    def extremes(self, count: int) -> dict[str, Int[np.ndarray, "_"]]:
        """Returns numbers of the images with the best, the middle and the worst LPIPS."""
        order = np.argsort(self.values["lpips_vgg"], kind="stable")
        count = min(count, len(order))
        middle = (len(order) - count) // 2
        return {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}


def evaluate(
    model: models.Tokenizer, config: configs.Stage1, request: Request, *, workdir: str, split: str = "validation"
) -> Evaluation:
    """Measures every image of a split once, against its reconstruction.

    Raises:
      ValueError: the tokenizer is not one of pictures, the split is not "validation" or "train", or the metrics do not
        fit.
      FileNotFoundError: a metric's network is not there.
    """
    check(config)
    chosen = protocol.choose(request.metrics, "tokenizer")
    splits = {"validation": config.data.eval_split, "train": config.data.train_split}
    if split not in splits:
        raise ValueError(f"the reference of a tokenizer must be validation or train; got {split!r}. Choose one.")
    source = Measured(request.limited(program.open_split(config, splits[split])))
    protocol.check_counts(chosen, reference=len(source))
    networks, size = open_networks(chosen.values(), request.inception), config.data.image_size
    reconstruct, compare = pair_functions(model, networks, request.local_batch, ssim="ssim" in chosen)
    plain = {name: metric for name, metric in chosen.items() if not metric.perturbed}
    of_perturbed = {name: metric for name, metric in chosen.items() if metric.perturbed}
    perturb = perturbing(model, request.local_batch, request.seed) if of_perturbed else None
    measured = measure(
        read(source, request, size=size, name="reconstructing"),
        reconstruct,
        compare,
        perturb,
        codebook_size=model.codebook_size,
        collectors=tuple(Collector(networks.run, keep=networks.keep) for _ in range(3 if of_perturbed else 2)),
        batch_size=request.local_batch,
    )
    originals = measured.originals._replace(name=f"{source.name}, the same crops")
    recons = measured.recons._replace(name="reconstructions of the reference")
    values = measured.means | protocol.compare(plain, originals, recons, seed=request.seed)
    run = {"model": workdir, "step": model.step, "weights": model.weights, "seed": request.seed, "sampling": {}}
    pixels = {"resize": source.resize(size), "rounding": ROUNDING}
    results = protocol.records(values, plain, networks.files, recons, originals, run | pixels)
    if measured.perturbed is not None:
        moved = measured.perturbed._replace(name="images of the reference's codes, perturbed")
        values = protocol.compare(of_perturbed, originals, moved, seed=request.seed)
        results += protocol.records(values, of_perturbed, networks.files, moved, originals, run | pixels)
    distances, pairs = measured.values["lpips_vgg"], {}
    for kind, rows in measured.extremes(EXTREMES).items():
        images = crops(source.source, rows.tolist(), size)
        pairs[kind] = images, reconstruct(images)[0], distances[rows]
    lead = f"{workdir}, step {model.step}, {model.weights} weights, on {originals.count:,} images: each once, "
    return Evaluation(
        results=results,
        title="A tokenizer, measured",
        lead=lead + "centre crop.",
        reference=originals,
        sections={"recons": pairs, "hits": measured.hits, "distances": distances},
    )


def check(config: configs.Stage1) -> None:
    """Raises ValueError for a tokenizer of anything but pictures."""
    if config.data.field != "image" or config.model.image_channels != 3 or config.data.value_range:
        raise ValueError(
            f"a tokenizer to evaluate must be one of RGB pictures of 8 bits; this one reads {config.data.field!r} in "
            f"{config.model.image_channels} channels. Its training logs say how good it is."
        )


@jax.jit
def reconstructed(model: models.Tokenizer, images: Any) -> tuple[Any, Any]:
    """Returns rounded pixels and codes."""
    indices = api.encode(model, images)
    return to_uint8(api.decode(model, indices)), indices


def pair_functions(model: models.Tokenizer, networks: Networks, size: int, *, ssim: bool) -> tuple[Any, Any]:
    """Returns a function to reconstruct images and one to compare pairs, for batches of `size`, which they pad."""
    whole = lambda array, count: np.asarray(array)[:count]

    def reconstruct(images: Images) -> tuple[np.ndarray, np.ndarray]:
        recons, indices = reconstructed(model, padded(images, size))
        return whole(recons, len(images)), whole(indices, len(images))

    def compare(images: np.ndarray, recons: np.ndarray) -> dict[str, np.ndarray]:
        x, y = padded(images, size), padded(recons, size)
        pairs = {"lpips_vgg": likeness.lpips_vgg(networks.lpips, x, y), "psnr": likeness.psnr(x, y)}
        values = {name: whole(value, len(images)).astype(np.float64) for name, value in pairs.items()}
        if ssim:
            values["ssim"] = likeness.ssim(images, recons)
        return values | {"l1": np.abs(images.astype(np.float64) - recons).mean(axis=(1, 2, 3)) / 127.5}

    model = jax.device_put(model, sharding.replicated(sharding.local_mesh()))
    return reconstruct, compare


def perturbing(model: models.Tokenizer, size: int, seed: int) -> Perturb:
    """Returns a function from images' numbers and codes to the pixels of the perturbed codes, for batches of `size`."""
    model = jax.device_put(model, sharding.replicated(sharding.local_mesh()))
    keys = jax.jit(jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed))))

    def perturb(rows: Int[np.ndarray, "b"], indices: Int[np.ndarray, "b h w"]) -> Images:
        return np.asarray(perturbed.decoded(model, padded(indices, size), keys(padded(rows, size))))[: len(rows)]

    return perturb


def measure(
    batches: Iterable[tuple[Int[np.ndarray, "_"], dict[str, Any]]],
    reconstruct: Callable[[Images], tuple[Images, Int[np.ndarray, "b h w"]]],
    compare: Callable[[Images, Images], dict[str, Float[np.ndarray, "b"]]],
    perturb: Perturb | None = None,
    *,
    codebook_size: int,
    collectors: tuple[Collector, ...],
    batch_size: int,
) -> Reconstructed:
    """Measures every image once; nothing is kept of it but a few numbers.

    Args:
      batches: this process's, from `of_images.read`.
      reconstruct: rounded pixels and codes of images.
      compare: values of each pair by name.
      perturb: pixels of perturbed codes, from the images' numbers and codes; None where they are not needed.
      codebook_size: codes are below it.
      collectors: of the originals, of the reconstructions and, where there is `perturb`, of its images.
      batch_size: images that a network sees at a time.
    """
    numbers, values = [], []
    hits = np.zeros(codebook_size, np.int64)
    for rows, batch in batches:
        images = batch["image"]
        recons, indices = reconstruct(images)
        hits += np.bincount(indices.reshape(-1), minlength=codebook_size)
        numbers.append(rows.astype(np.int64))
        values.append(compare(images, recons))
        sets = (images, recons) if perturb is None else (images, recons, perturb(rows, indices))
        for collector, each in zip(collectors, sets, strict=True):
            collector.add(rows, each, batch_size=batch_size)
    joined = {name: in_order(numbers, [np.asarray(v[name], np.float64) for v in values]) for name in sorted(values[0])}
    originals, recons, *others = (collector.summary(protocol.NOTHING, protocol.NOTHING) for collector in collectors)
    return Reconstructed(joined, gather(hits[None]).sum(0), originals, recons, others[0] if others else None)
