"""What a prior is told before the first code: every condition is a prefix of tokens."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vqgan_jax import pictures
from vqgan_jax.data.layouts import Layout
from vqgan_jax.nn.pixels import to_input, to_output

Frozen = dict[str, Any]


@runtime_checkable
class Condition(Protocol):
    """One kind of prefix."""

    @property
    def kind(self) -> str:
        """Its name in a config."""
        ...

    @property
    def droppable(self) -> bool:
        """Whether training dropped it now and then, so that there is a null token, as guidance needs."""
        ...

    @property
    def field(self) -> str:
        """What of a batch it reads; empty if nothing."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of its tokens, where each belongs to a place in the image; they move with a window."""
        ...

    @property
    def length(self) -> int:
        """Tokens in front of the codes."""
        ...

    @property
    def vocab_size(self) -> int:
        """Its tokens are below this; the last one is the null token of a condition that may be dropped."""
        ...

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Tokens of a batch as the loader gives it; `frozen` holds parameters of networks that this may need."""
        ...

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b s"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b _H _W 3"]:
        """What people should see of it beside a sample of `size` pixels; `names` of the classes."""
        ...


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """One token that is always the same, for the first code to follow."""

    kind = "none"
    droppable = False
    field = ""
    grid = None
    length = 1
    vocab_size = 1

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """Zeros, as many as the batch is long."""
        return jnp.zeros((len(next(iter(batch.values()))), 1), jnp.int32)

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b 1"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """Plain grey."""
        return np.full((len(tokens), size, size, 3), 128, np.uint8)


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """The class's number, from "label"; one more number is the null token where it may be dropped."""

    num_classes: int
    droppable: bool = False
    kind = "class"
    field = "label"
    grid = None
    length = 1

    @property
    def vocab_size(self) -> int:
        """Classes, and the null token."""
        return self.num_classes + self.droppable

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """The labels."""
        return batch["label"][:, None]

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b 1"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """The class's name, or its number where it has none."""
        texts = [str(names[t] if t < len(names) else t) for t in tokens[:, 0]]
        return np.stack([pictures.words(text, size) for text in texts])


@dataclasses.dataclass(frozen=True)
class Codes:
    """A map of the image, as the codes of a tokenizer.

    Attributes:
      field: the map's name in a batch.
      frozen: name of the tokenizer's parameters: "condition", or "tokenizer" where the images' own encodes it.
      codebook_size: of that tokenizer.
      grid: rows and columns of codes at the training size.
      size: pixels to which a map of the training size is brought first, by the nearest one; 0 leaves it.
      droppable: whether one more number is the null token.
      module: the tokenizer's; only shapes are known without it.
    """

    field: str
    frozen: str
    codebook_size: int
    grid: tuple[int, int]
    size: int = 0
    droppable: bool = False
    module: Any = None

    @property
    def kind(self) -> str:
        """The map's."""
        return self.field

    @property
    def length(self) -> int:
        """One token a code."""
        return self.grid[0] * self.grid[1]

    @property
    def vocab_size(self) -> int:
        """Codes, and the null token."""
        return self.codebook_size + self.droppable

    def is_cut(self, window: tuple[int, int]) -> bool:
        """Whether a window of that many of the image's codes sees whole codes of a larger map wherever it stands.

        Then the map is encoded once and its codes are cut. Else the part of the map in each window is encoded by
        itself, as in training: it is brought to another size, or the window may stand in the middle of a code.
        """
        return not self.size and all(own % side == 0 for own, side in zip(self.grid, window, strict=True))

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Codes of the map, row by row; deterministic also for a Gumbel quantizer."""
        maps = batch[self.field]
        if self.size:
            maps = resized(maps, self.size)
        inputs = to_input(maps, self.module.image_channels)
        rngs = {"gumbel": jax.random.key(0)}
        quantized = self.module.apply({"params": frozen[self.frozen]}, inputs, method="encode", rngs=rngs)
        return quantized.indices.reshape(len(maps), -1)

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b s"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b _H _W 3"]:
        """The map as its tokenizer decodes it: what the prior sees."""
        grids = np.minimum(tokens, self.codebook_size - 1).reshape(-1, *self.grid)
        maps = _decoded(self.module, self.field == "segmentation", frozen[self.frozen], grids)
        return resized(pictures.shown(np.asarray(maps)), size)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Where each code lies in the whole image, from "coordinates": raster position in steps of 1 / num_tokens."""

    num_tokens: int
    grid: tuple[int, int]
    downsample_factor: int
    droppable: bool = False
    kind = field = "coordinates"

    @property
    def length(self) -> int:
        """One token a code of the image."""
        return self.grid[0] * self.grid[1]

    @property
    def vocab_size(self) -> int:
        """Levels, and the null token."""
        return self.num_tokens + self.droppable

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """The mean of the pixels below each code, rounded half to even as upstream does."""
        values, f = batch["coordinates"], self.downsample_factor
        b, height, width, _ = values.shape
        means = values.reshape(b, height // f, f, width // f, f).mean((2, 4))
        levels = jnp.rint(jnp.clip(means, 0.0, 1.0) * self.num_tokens).astype(jnp.int32)
        return jnp.minimum(levels, self.num_tokens - 1).reshape(b, -1)

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b s"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b _H _W 3"]:
        """The levels as greys, dark at the top."""
        values = 2 * np.minimum(tokens / self.num_tokens, 1.0).astype(np.float32) - 1
        return resized(pictures.shown(values.reshape(-1, *self.grid, 1)), size)


@dataclasses.dataclass(frozen=True)
class Objects:
    """Boxes or centre points of objects, from "boxes" or "centers", which the loader has made tokens of already."""

    field: str
    layout: Layout
    droppable: bool = False
    grid = None

    @property
    def kind(self) -> str:
        """The field's."""
        return self.field

    @property
    def length(self) -> int:
        """Of the layout."""
        return self.layout.length

    @property
    def vocab_size(self) -> int:
        """Tokens of the layout, and the null token."""
        return self.layout.num_tokens + self.droppable

    def encode(self, frozen: Frozen, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """The tokens."""
        return batch[self.field]

    def places(self, tokens: Int[Array, "b s"], grid: tuple[int, int]) -> Float[Array, "b s 2"]:
        """Where each token stands in a grid of codes, in rows and columns of the part that is looked at.

        A point stands at itself, an object in the middle of its points, and what says nothing at (0, 0).
        """
        layout, width = self.layout, 2 if self.layout.centers else 3
        last = layout.sections - 1
        points = jnp.stack([tokens // layout.sections, tokens % layout.sections], axis=-1) / last
        known = (tokens < layout.none)[..., None]
        first, extent = jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2))
        if layout.crop_points:
            first = points[:, -2:-1]
            extent = jnp.maximum(points[:, -1:] - first, 1 / last)
        count = layout.max_objects * width
        objects = points[:, :count].reshape(len(tokens), -1, width, 2)
        objects = objects.at[:, :, 0].set(objects[:, :, 1:].mean(axis=2)).reshape(len(tokens), count, 2)
        points = jnp.concatenate([objects, points[:, count:]], axis=1)
        return jnp.where(known, (points - first) / extent * jnp.array(grid)[None, None] - 0.5, 0.0)

    def picture(
        self, frozen: Frozen, tokens: Int[np.ndarray, "b s"], size: int, names: Sequence[str] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """Outlines with the categories' names, or their numbers."""
        count = self.layout.num_categories

        def outlines(row: np.ndarray) -> list[tuple[str, tuple[float, ...], tuple[int, ...]]]:
            objects = [(number % count, box) for number, box in self.layout.decode(row)]
            color = lambda category: tuple(int(v) for v in pictures.colors(np.full((1, 1), category + 1))[0, 0])
            return [(names[c] if c < len(names) else str(c), tuple(box), color(c)) for c, box in objects]

        known = np.minimum(tokens, self.layout.num_tokens - 1)  # a null token is no object
        return np.stack([pictures.boxes(outlines(row), size) for row in known])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(module: Any, labels: bool, params: Any, indices: Array) -> Array:
    """Maps of codes: labels, pixels, or floats where there is one channel."""
    recon = module.apply({"params": params}, indices, method="decode_indices")
    if labels:
        return jnp.argmax(recon, axis=-1)
    return to_output(recon, jnp.zeros(recon.shape, jnp.uint8 if recon.shape[-1] == 3 else jnp.float32))


def resized(maps: Any, size: int) -> Any:
    """To `size` rows and columns, by torch's rule of the nearest pixel: floor(i * in / out)."""
    rows, columns = (np.arange(size) * side // size for side in maps.shape[1:3])
    return maps[:, rows][:, :, columns]
