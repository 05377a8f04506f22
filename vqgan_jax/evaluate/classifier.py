"""A small classifier, trained here on the run's own images: it scores samples of a class and says how many are of it.

It is a scorer for rejection (section 4.4 of the paper, which takes a ResNet-101), and the figure `class_accuracy`. What
it says is worth as much as its accuracy on held-out images, which every record of a figure has. It is not FID.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange, reduce
from etils import epath
from flax import serialization
from jaxtyping import Array, Float, Int, UInt8

from vqgan_jax import config as configs
from vqgan_jax import data
from vqgan_jax.data import storage
from vqgan_jax.evaluate import protocol
from vqgan_jax.nn.layers import GroupNorm, conv3x3
from vqgan_jax.nn.pixels import to_float
from vqgan_jax.train import program


class Schedule(NamedTuple):
    """How long it is trained, by Adam with decoupled weight decay.

    Attributes:
      steps, batch_size: by default four epochs of CIFAR-10.
      learning_rate: at the top of a triangle.
    """

    steps: int = 1_500
    batch_size: int = 128
    learning_rate: float = 3e-3


SCHEDULE = Schedule()
BATCH = 128  # images that a trained one sees at a time
WEIGHTS, RECORD = "classifier.msgpack", "classifier.json"


class Network(nn.Module):
    """Images in [-1, 1] to logits: 3x3 convolutions at a half, a quarter, ... of the side, and the mean over positions.

    Pixels come in by fours, and means of four lie between the levels: the gradients of maxima are dear on a CPU.

    Attributes:
      num_classes: logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Computes the logits."""
        x = rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)
        for i in range(max(1, round(math.log2(min(x.shape[1:3]) / 2)))):
            if i > 0:
                if x.shape[1] % 2 or x.shape[2] % 2:
                    break
                x = reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
            x = conv3x3(min(64 * 2**i, 256), jnp.float32, f"conv_{i}")(x)
            x = nn.relu(GroupNorm(groups=8, name=f"norm_{i}")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network.

    Attributes:
      params: of `Network`.
      record: how it was trained, and `accuracy` on `held_out` images: what its file says.
      file: name and hash of its weights' file, for the records of figures.
    """

    params: dict[str, Any]
    record: Mapping[str, Any]
    file: tuple[str, str]

    def log_probabilities(self, images: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n k"]:
        """Returns the logarithm of the probability of each class, of images of the training size."""
        side = self.record["image_size"]
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"the classifier was trained on RGB images of {side}x{side}; got {images.shape[1:]}. Train one for "
                "this size: give another --classifier folder."
            )
        padded = np.concatenate([images, np.zeros((-len(images) % BATCH, side, side, 3), np.uint8)])
        rows = [np.asarray(_log_p(self.params, part)) for part in np.split(padded, len(padded) // BATCH)]
        return np.concatenate(rows)[: len(images)]

    def labels(self, images: UInt8[np.ndarray, "n H W 3"]) -> Int[np.ndarray, "n"]:
        """Returns the likeliest class of each image."""
        return self.log_probabilities(images).argmax(-1).astype(np.int32)

    def scores(self, images: UInt8[np.ndarray, "n H W 3"], labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Returns the log-probability of the class of each image: a `drawing.Scorer`."""
        return np.take_along_axis(self.log_probabilities(images), labels[:, None], axis=1)[:, 0]

    @property
    def name(self) -> str:
        """Its description in the records of figures."""
        return f"a classifier that is right about {self.record['accuracy']:.1%} of {self.record['source']}, held out"


@jax.jit
def _log_p(params: dict[str, Any], images: UInt8[Array, "b H W 3"]) -> Float[Array, "b k"]:
    network = Network(params["head"]["kernel"].shape[-1])
    return jax.nn.log_softmax(network.apply({"params": params}, to_float(images)))  # type: ignore[arg-type]


def open_classifier(
    folder: epath.PathLike, config: configs.Stage1 | configs.Stage2, *, seed: int, track: protocol.Track
) -> Classifier:
    """Loads the classifier in a folder, or trains one on the config's images and saves it there.

    Several processes train the same one, each for itself, and the first saves it.

    Raises:
      ValueError: the images have no classes, or the folder's classifier is of other images.
    """
    place = storage.place(folder)
    if (place / RECORD).exists():
        classifier = load(folder)
    else:
        params, record = train(config, SCHEDULE, seed=seed, track=track)
        weights = serialization.to_bytes(params)
        classifier = Classifier(params, record, (WEIGHTS, hashlib.sha256(weights).hexdigest()[:16]))
        if jax.process_index() == 0:
            storage.make_folder(place)
            storage.write_whole(place / WEIGHTS, weights)
            storage.write_json(place / RECORD, record)
    facts = {"source": config.data.source, "image_size": config.data.image_size}
    for name, expected in facts.items():
        if classifier.record[name] != expected:
            raise ValueError(
                f"the classifier in {place} must be of {name} {expected!r}; it was trained on "
                f"{classifier.record[name]!r}. Give another folder, where one will be trained."
            )
    return classifier


def load(folder: epath.PathLike) -> Classifier:
    """Loads the classifier that `open_classifier` saved; FileNotFoundError if the folder holds none."""
    place = storage.place(folder)
    if not (place / RECORD).exists():
        raise FileNotFoundError(
            f"a classifier's folder must hold {RECORD}; {place} does not. Train one by `vqgan evaluate --classifier`."
        )
    weights, record = (place / WEIGHTS).read_bytes(), json.loads((place / RECORD).read_text())
    params: Any = serialization.msgpack_restore(weights)
    return Classifier(params, record, (WEIGHTS, hashlib.sha256(weights).hexdigest()[:16]))


def train(
    config: configs.Stage1 | configs.Stage2, schedule: Schedule, *, seed: int, track: protocol.Track
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains a network on the config's training images, cropped and flipped as there, and measures it once.

    Args:
      config: its section `data` names the images, which must have classes.
      seed: of the start and of the batches.
      track: shows progress.
      schedule: how long.

    Returns:
      Parameters of `Network`, and the record: how they were trained, and the share of held-out images that they put in
      their class.

    Raises:
      ValueError: the images have no classes.
    """
    began, d = time.monotonic(), config.data
    source, held_out = (program.open_split(config, split) for split in (d.train_split, d.eval_split))
    if len(source.class_names) < 2:
        raise ValueError(
            f"a classifier needs images of at least 2 classes; {source.name} has {len(source.class_names)}. Leave out "
            "what needs one."
        )
    batches = data.training_batches(
        source, augmentation=d.augmentation, batch_size=schedule.batch_size, seed=seed, num_threads=d.num_threads
    )
    batches = itertools.islice(batches, schedule.steps)
    network, progress = Network(len(source.class_names)), track("classifier", schedule.steps)
    params = fit(network, batches, d.image_size, schedule, seed=seed, progress=progress)
    record = {
        "source": d.source,
        "image_size": d.image_size,
        "classes": list(source.class_names),
        **schedule._asdict(),
        "seed": seed,
        "accuracy": accuracy(params, held_out, d.image_size),
        "held_out": len(held_out),
        "minutes": round((time.monotonic() - began) / 60, 2),
        "versions": protocol.versions(),
    }
    return params, record


def fit(
    network: Network,
    batches: Iterable[Mapping[str, Any]],
    image_size: int,
    schedule: Schedule,
    *,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Returns parameters after a step on each batch: cross-entropy with smoothed labels."""
    rate = optax.linear_onecycle_schedule(schedule.steps, schedule.learning_rate)
    optimizer = optax.adamw(rate, weight_decay=0.05)
    params = network.init(jax.random.key(seed), jnp.zeros((1, image_size, image_size, 3)))["params"]

    def loss(params: Any, images: Array, labels: Array) -> Array:
        logits: Any = network.apply({"params": params}, to_float(images))
        targets = optax.smooth_labels(jax.nn.one_hot(labels, network.num_classes), 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, images: Array, labels: Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for done, batch in enumerate(batches, start=1):
        params, state = step(params, state, batch["image"], batch["label"])
        progress(done)
    return jax.device_get(params)


def accuracy(params: dict[str, Any], source: Any, image_size: int) -> float:
    """Returns the share of a source's images, centre crops, that the network puts in their class."""
    right, count = 0, 0
    for batch in data.evaluation_batches(source, image_size=image_size, batch_size=BATCH):
        looks = np.asarray(_log_p(params, batch["image"])).argmax(-1)
        right += int(np.sum((looks == batch["label"]) & batch["mask"]))
        count += int(batch["mask"].sum())
    return right / count
