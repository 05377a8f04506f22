"""What the demo does with a run: what a person asks for in, pictures out. Nothing here knows the page."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

import vqgan_jax as vq
from vqgan_jax import api, models, pictures
from vqgan_jax.data import images, photos, views
from vqgan_jax.evaluate import classifier, drawing
from vqgan_jax.train import program

Picture: TypeAlias = UInt8[np.ndarray, "_H _W 3"]
Indices: TypeAlias = Int[np.ndarray, "h w"]
Rows: TypeAlias = Mapping[str, np.ndarray]

CHUNK = 4  # images at a time: after each chunk they are shown, and one may stop
ROWS = 2  # of codes of a wide image from one picture to the next
MAX_COUNT, MAX_TIMES, MAX_SEED = 16, 16, 2**31 - 1
COVERED = 0.1  # share of a code's pixels that a brush must cover


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """What a demo shows.

    Attributes:
      tokenizer: of pictures; the prior's own where there is one.
      side: of the training images, in pixels.
      prior: None of a tokenizer's run.
      class_names: of the data that the run was trained on; none where it is not at hand.
      category_names: likewise, of objects.
      scorer: of images, for the paper's rejection; None for none.
    """

    tokenizer: vq.Tokenizer
    side: int
    prior: vq.Prior | None = None
    class_names: tuple[str, ...] = ()
    category_names: tuple[str, ...] = ()
    scorer: drawing.Scorer | None = None

    @property
    def classes(self) -> list[str]:
        """Names of the prior's classes; their numbers where the data is not at hand; none without classes."""
        count = self.prior.module.condition.num_labels if self.prior else 0
        return [self.class_names[i] if i < len(self.class_names) else str(i) for i in range(count)]

    def class_of(self, name: str | None) -> int:
        """Returns the number of a class; 0 for a prior without classes; ValueError for what is none."""
        classes = self.classes
        if not classes:
            return 0
        if name not in classes:
            some = ", ".join(classes[:20]) + ", ..." * (len(classes) > 20)
            raise ValueError(f"the class must be one of {some}; got {name!r:.60}. Choose one of the list.")
        return classes.index(name)


def load(
    workdir: str,
    *,
    step: int | str = "newest",
    tokenizer: str | None = None,
    condition_tokenizer: str | None = None,
    scorer: str | None = None,
) -> Models:
    """Loads a tokenizer's or a prior's run.

    Args:
      workdir: the folder of the run; converted weights are one, too.
      step: of its checkpoint.
      tokenizer, condition_tokenizer: folders of a prior's tokenizers, where they are elsewhere; see `load_prior`.
      scorer: folder of a classifier, for the paper's rejection.

    Raises:
      FileNotFoundError: no run, or no tokenizer, in the folders.
      ValueError: the tokenizer is of no pictures; see also `load_prior`.
    """
    config, prior, source = models.config_of(workdir, step=step), None, None
    if config.stage == 1:
        loaded = vq.load_tokenizer(workdir, step=step)
    else:
        prior = vq.load_prior(workdir, step=step, tokenizer=tokenizer, condition=condition_tokenizer)
        loaded = prior.tokenizer
        with contextlib.suppress(OSError, ValueError, ImportError):  # names are not at hand where the data is elsewhere
            source = program.open_examples(prior.config, "validation")
    channels = loaded.module.image_channels
    if channels != 3:
        raise ValueError(f"the demo shows pictures, of three channels; the tokenizer has {channels}. Give another run.")
    return Models(
        tokenizer=loaded,
        side=config.data.image_size,
        prior=prior,
        class_names=tuple(getattr(source, "class_names", ())),
        category_names=tuple(getattr(source, "category_names", ())),
        scorer=classifier.load(scorer).scores if scorer else None,
    )


def warm(models: Models) -> None:
    """Compiles what the first clicks need."""
    indices = encode(models, np.zeros((models.side, models.side, 3), np.uint8))
    decode(models, indices)
    if models.prior is not None and models.prior.module.condition.argument != "condition":
        next(draw(models, 0, {}, Request.of_run(models)))


# Codes of a picture


def read(path: str | None, photograph: str | None, side: int) -> Picture:
    """Returns the middle of an uploaded picture, or of an embedded photograph, brought to side x side pixels.

    Raises:
      ValueError: neither is given, the name is none, or the file is no picture or too large.
    """
    if path:
        picture = images.decode(path, name=Path(path).name)
    elif photograph in photos.NAMES:
        picture = photos.photograph(photograph)
    else:
        raise ValueError("there is no picture yet. Drop one, or choose a photograph.")
    return views.fit(views.image, {"image": picture}, (side, side))


def encode(models: Models, picture: Picture) -> Indices:
    """Returns the codes of a picture."""
    return np.asarray(vq.encode(models.tokenizer, picture[None]))[0]


def decode(models: Models, indices: Indices) -> Picture:
    """Returns the picture of codes, in tiles where it is much larger than the training images."""
    tile = 2 * models.side // models.tokenizer.downsample_factor
    return np.asarray(vq.to_uint8(vq.decode(models.tokenizer, indices[None], tile=tile)))[0]


def shown(picture: Picture, least: int = 384) -> Picture:
    """Returns a picture for people: each pixel a square, so large that the shorter side has `least` or more."""
    height, width, _ = picture.shape
    times = -(-least // min(height, width))
    return pictures.resized(picture, (height * times, width * times))


def colored(indices: Indices, source: tuple[int, int] | None = None) -> Picture:
    """Returns the grid of codes, each in its own color, with a white frame around the code at `source`."""
    sheet = shown(pictures.colors(indices)).copy()
    if source is not None:
        size = sheet.shape[0] // indices.shape[0]
        top, left = (place * size for place in source)
        square = sheet[top : top + size, left : left + size]
        middle = square[2:-2, 2:-2].copy()
        square[:] = 255
        square[2:-2, 2:-2] = middle
    return sheet


def covered(strokes: Bool[np.ndarray, "_H _W"], grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns which cells of a grid over the picture a brush has covered, at least in part."""
    share = Image.fromarray(np.uint8(255) * strokes).resize((grid[1], grid[0]), Image.Resampling.BOX)
    return np.asarray(share) > 255 * COVERED


def paint(
    indices: Indices, target: Bool[np.ndarray, "h w"], code: int, source: tuple[int, int] | None = None
) -> Indices:
    """Returns the codes with others at `target`.

    Args:
      indices: of a picture.
      target: where to write.
      code: what to write, without a source.
      source: row and column of a code: the upper left corner of the target takes this one, and every other place what
        lies as far from it, up to the border.

    Raises:
      ValueError: nothing is covered.
    """
    places = np.argwhere(target)
    if not len(places):
        raise ValueError("the brush must cover at least one code. Paint over the picture first.")
    painted = indices.copy()
    if source is None:
        painted[target] = code
    else:
        rows, columns = np.minimum(places - places.min(axis=0) + source, np.subtract(indices.shape, 1)).T
        painted[target] = indices[rows, columns]
    return painted


# Samples of a prior


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """How many images to draw, and how: the fields are flags of `vqgan sample`, with its meanings."""

    count: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    guidance: float
    accept_rate: float = 1.0

    def __post_init__(self):
        for name, value, least, most in (("count", self.count, 1, MAX_COUNT), ("seed", self.seed, 0, MAX_SEED)):
            if not least <= value <= most:
                raise ValueError(f"`{name}` must be in {least} .. {most}; got {value}. Change it.")
        if not 0 < self.accept_rate <= 1:
            raise ValueError(f"`accept_rate` must be in (0, 1]; got {self.accept_rate}. Change it.")

    @classmethod
    def of_run(cls, models: Models) -> "Request":
        """Returns what the run's config says."""
        config = prior_of(models).config.sampling
        names = ("temperature", "top_k", "top_p", "guidance")
        return cls(count=CHUNK, seed=0, **{name: getattr(config, name) for name in names})

    def options(self, models: Models) -> dict[str, Any]:
        """Returns what `sample_indices` takes; the rest as the run's config says."""
        config = prior_of(models).config.sampling
        changed = {name: value for name, value in vars(self).items() if hasattr(config, name)}
        return dict(vars(dataclasses.replace(config, **changed).settings))


def prior_of(models: Models) -> vq.Prior:
    """Returns the prior; ValueError without one."""
    if models.prior is None:
        raise ValueError("this run is a tokenizer, which draws nothing. Give `vqgan demo` a prior's --workdir.")
    return models.prior


def draw(models: Models, label: int, rows: Rows, request: Request) -> Iterator[tuple[float, list[Picture]]]:
    """Yields the share that is done and the images so far, which are those of `vqgan sample` with the same seed.

    With an `accept_rate` below 1 more of them are drawn, and the last list holds those with the best scores.

    Args:
      models: with a prior.
      label: their class; 0 for a prior without.
      rows: what else `sample_indices` takes, each of one row: "condition", "prompt" and "known".
      request: how many, and how.

    Raises:
      ValueError: settings, rows or a label out of range.
    """
    prior, options, drawn = prior_of(models), request.options(models), []
    rate = request.accept_rate if models.scorer is not None else 1.0
    total = math.ceil(request.count / rate)
    labels = np.full(CHUNK, label, np.int32)
    repeated = {name: np.repeat(row, CHUNK, axis=0) for name, row in rows.items()}
    for start in range(0, total, CHUNK):
        numbers = np.arange(start, start + CHUNK)
        chunk, _ = drawing.draw(
            prior, labels, numbers, seed=request.seed, batch_size=CHUNK, options=options, rows=repeated
        )
        drawn = [*drawn, *chunk][:total]
        yield len(drawn) / total, drawn
    if models.scorer is not None and rate < 1:
        classes = np.full(total, label, np.int32)
        best = drawing.best(drawing.scored(models.scorer, np.stack(drawn), classes), classes, request.count)
        yield 1.0, [drawn[i] for i in best]


def completion(models: Models, picture: Picture, strokes: Bool[np.ndarray, "_H _W"]) -> Rows:
    """Returns rows for `draw`: the codes of a picture, of which those under the strokes are drawn anew.

    Raises:
      ValueError: nothing is covered.
    """
    codes = encode(models, picture)
    anew = covered(strokes, codes.shape)
    if not anew.any():
        raise ValueError("the brush must cover what to draw anew. Paint over the picture first.")
    return {"prompt": codes[None], "known": ~anew[None]}


def drawn_condition(models: Models, drawing: Picture | None, file: str | None) -> np.ndarray:
    """Returns the one condition in an uploaded file, or, without a file, of a drawing.

    Raises:
      ValueError: neither is given, or it is none of this prior's.
    """
    prior = prior_of(models)
    size = (prior.image_size, prior.image_size)
    if file:
        try:
            return prior.module.condition.read([file], size, prior.config.data)[:1]
        except ValueError as error:
            raise ValueError(str(error).replace(os.fspath(file), Path(file).name)) from error
    if drawing is None:
        raise ValueError("there is no condition yet. Draw one, or upload a file.")
    return prior.module.condition.drawn(drawing, size)


def looks(models: Models, condition: np.ndarray) -> list[Picture]:
    """Returns the condition as people see it and as the prior does."""
    prior = prior_of(models)
    size = (prior.image_size, prior.image_size)
    beside = prior.module.condition.beside(prior.frozen, condition, size, models.category_names)
    return [squares[0] for squares in beside]


def wide(models: Models, label: int, times: int, request: Request) -> Iterator[tuple[float, Picture]]:
    """Yields the share that is done and an image through the sliding window, grey where nothing is drawn yet.

    The last one is that of `vqgan sample --size --stride`, with half the window as the stride.

    Args:
      models: with a prior over rows of codes.
      label: its class; 0 for a prior without.
      times: its width, in training images.
      request: how to draw it.

    Raises:
      ValueError: the prior's order is no raster, or `times` or the settings are out of range.
    """
    prior = prior_of(models)
    if not 2 <= times <= MAX_TIMES:
        raise ValueError(f"the width must be in 2 .. {MAX_TIMES} training images; got {times}. Change it.")
    height, width = prior.module.grid[0], prior.module.grid[1] * times
    f = prior.tokenizer.downsample_factor
    arguments: dict[str, Any] = {"size": (height * f, width * f), "stride": max(prior.module.grid[1] // 2, 1)}
    labels = np.array([label], np.int32)
    if prior.module.condition.num_labels:
        arguments["labels"] = labels
    arguments |= request.options(models)
    key = drawing.keys(jax.random.key(request.seed), labels, np.zeros(1, np.int32))
    codes, row = np.zeros((1, height, width), np.int32), np.arange(height)[None, :, None]
    for start in range(0, height, ROWS):
        known = np.broadcast_to((row < start) | (row >= start + ROWS), codes.shape)
        codes = np.asarray(api.sample_indices(prior, key, prompt=codes, known=known, **arguments))
        done = min(start + ROWS, height)
        picture = np.asarray(vq.to_uint8(api.decode_samples(prior, codes)))[0].copy()
        picture[done * f :] = 128
        yield done / height, picture
