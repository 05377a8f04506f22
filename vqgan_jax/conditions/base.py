"""What every condition answers. A kind of condition is one subclass in one file, and one line of `CONDITIONS`.

The fields of a subclass are the keys of the config's section `condition` of that kind; those
that are `derived` are no keys: `Condition.bind` fills them from the rest of the config.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vqgan_jax.data.views import View
from vqgan_jax.nn import fields
from vqgan_jax.nn.fields import derived

Params: TypeAlias = dict[str, Any]
Grid: TypeAlias = tuple[int, int]  # rows and columns of codes
Size: TypeAlias = tuple[int, int]  # height and width in pixels
HostTokens: TypeAlias = Int[np.ndarray, "b s"]
Pictures: TypeAlias = UInt8[np.ndarray, "b _H _W 3"]
Color: TypeAlias = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """A stage-1 run whose codes stage 2 reads."""

    workdir: str = ""
    fingerprint: str = ""  # of its parameters; "" takes what is there, and the run writes down what that was
    codebook_size: int = 1024
    downsample_factor: int = 16


class Prefix(NamedTuple):
    """What stands before the codes of each image, wherever the window is.

    Attributes:
      tokens: b s of an image of the training size, and of a condition that is the same for every window; b rows
        columns of one whose tokens belong to places; b n m s of one with tokens of its own for each window's origin,
        zeros for an origin where the window never stands.
      grid: rows and columns of codes of each image.
    """

    tokens: Int[Array, "b ..."]
    grid: Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What a prior knows of an image before the first code: a prefix of tokens.

    Class attributes:
      kind: its name in a config.
      field: what of a batch it reads; empty if nothing.
      argument: of `api.sample_indices`, in which a caller gives it: "labels", "condition" or, for nothing, "count".
      rule: where the window of a larger image is around the code that is drawn; see `prior.RULES`.
      files: endings of the files that `read` takes; none where it reads no file.
    """

    kind: ClassVar[str]
    field: ClassVar[str] = ""
    argument: ClassVar[str] = "count"
    rule: ClassVar[str] = "center"
    files: ClassVar[tuple[str, ...]] = ()

    drop: float = 0.1  # probability of the null token instead, for guidance
    shared_vocab: bool = False  # tokens share the codes' rows of the embedding, as upstream's do
    # Rows and columns of codes of a training image.
    window: Grid = derived((1, 1))
    downsample_factor: int = derived(1)  # of the images' tokenizer

    # Answers of a condition that is not bound yet

    def bind(self, *, window: Grid, images: Frozen, module: Any = None) -> "Condition":
        """Returns the condition of a run.

        Args:
          window: rows and columns of codes of a training image.
          images: the tokenizer of the images.
          module: of the tokenizer that encodes maps; only shapes are known without it.

        Raises:
          ValueError: a tokenizer that cannot encode the maps.
        """
        return dataclasses.replace(self, window=window, downsample_factor=images.downsample_factor)

    def check(self) -> None:
        """Raises ValueError where a key is out of range."""
        if not 0.0 <= self.drop <= 1.0:
            raise ValueError(f"`config.condition.drop` must be a probability, 0 to 1; got {self.drop}.")

    def check_fit(self, codebook_size: int) -> None:
        """Raises ValueError where a bound condition does not fit the images or their `codebook_size` codes."""
        if self.shared_vocab and self.vocab_size > codebook_size:
            raise ValueError(
                f"the {self.vocab_size} tokens of the condition must be rows of the {codebook_size} codes with "
                "condition.shared_vocab. Set it to False."
            )

    def of_classes(self, names: Callable[[], Sequence[str]]) -> "Condition":
        """Returns the condition of a run's data, whose class names `names` looks up; itself unless a key is open."""
        return self

    def check_classes(self, source: str, names: Sequence[str]) -> None:
        """Raises ValueError where the classes of the data are none of the condition's."""

    @property
    def own_tokenizer(self) -> Frozen | None:
        """The tokenizer that encodes the condition and is not that of the images."""
        return None

    def views(self, data: Any) -> dict[str, View]:
        """Returns what the loader must show of each example besides image and label; `data` is `config.data`."""
        return {}

    def meaning(self, data: Any, images: Frozen) -> dict[str, Any]:
        """Returns what a token cache must have in common with a run: what the tokens mean, not how they are used.

        `data` is `config.data` and `images` the tokenizer of the images.
        """
        own = fields.keys(type(self)).keys() - fields.keys(Condition).keys()
        return {"kind": self.kind} | {name: getattr(self, name) for name in own}

    # Answers of a bound condition: tokens

    @property
    def image_size(self) -> int:
        """Side of a training image, in pixels."""
        return self.window[0] * self.downsample_factor

    @property
    def num_labels(self) -> int:
        """Classes to draw images of; 0 where the condition is not a class."""
        return 0

    @property
    def droppable(self) -> bool:
        """Whether training dropped it now and then, so that there is a null token, as guidance needs."""
        return self.drop > 0

    @property
    def grid(self) -> Grid | None:
        """Rows and columns of its tokens, where each belongs to a place in the image; they move with a window."""
        return None

    @property
    def length(self) -> int:
        """Tokens in front of the codes."""
        return math.prod(self.grid or (1, 1))

    @property
    def num_values(self) -> int:
        """Tokens that say something are below this."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Tokens are below this; the last one is the null token of a condition that may be dropped."""
        return self.num_values + self.droppable

    def coordinates(self) -> list[tuple[int, int]]:
        """Where each token stands for rotary positions, in rows and columns of codes.

        What belongs to a place in the image stands there; all else in a line to the left of the image.
        """
        if self.grid is None:
            return [(0, -i) for i in range(self.length)]
        (height, width), (rows, columns) = self.window, self.grid
        return [(i * height // rows, j * width // columns) for i in range(rows) for j in range(columns)]

    def places(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s 2"] | None:
        """Where each token stands, in rows and columns of codes, if the tokens themselves say that."""
        return None

    # The data

    def encode(self, frozen: Params, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Returns tokens of a batch of the loader; `frozen` holds parameters of the tokenizers, by role."""
        return batch[self.field]

    def read(self, names: Sequence[str], size: Size, data: Any) -> np.ndarray:
        """Returns the condition in each file, as `tokens` takes it.

        Args:
          names: paths of files.
          size: height and width in pixels of the images to be drawn.
          data: `config.data`.

        Raises:
          ValueError: a file does not hold what the condition is, or the condition is read from no file.
        """
        raise ValueError(f"a prior conditioned on {self.kind!r} reads no files; got {names[0]}.")

    # What people draw and see

    def brushes(self, names: Sequence[str] = ()) -> dict[str, Color]:
        """Returns the colours that people draw it with, by their meaning; none where it cannot be drawn.

        The first one is the ground, which is there before anything is drawn; `names` of the categories.
        """
        return {}

    def drawn(self, drawing: UInt8[np.ndarray, "H W 3"], size: Size) -> np.ndarray:
        """Returns the one condition that a drawing with `brushes` shows, as `tokens` takes it.

        Args:
          drawing: a picture of any size, in about the colours of the brushes.
          size: height and width in pixels of the images to be drawn.

        Raises:
          ValueError: the drawing shows no condition, or there are no brushes.
        """
        raise ValueError(f"a prior conditioned on {self.kind!r} reads no drawings. Give its condition in another way.")

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns what people should see of tokens beside a sample of `size` pixels; `names` of the classes."""
        raise NotImplementedError

    def beside(self, frozen: Params, values: np.ndarray, size: Size, names: Sequence[str] = ()) -> tuple[Pictures, ...]:
        """Returns pictures of values of a caller, from left to right, each as large as the sample beside it."""
        side = min(size)
        squares = self.picture(frozen, values, side, names)
        margin = ((0, 0), (0, size[0] - side), (0, size[1] - side), (0, 0))
        return (np.pad(squares, margin, constant_values=255),)

    # What a caller gives

    def value_of(self, *, labels: Any, condition: Any, count: int | None) -> Any:
        """Returns the argument that is this condition's; the number of images where it is neither of the others.

        Raises:
          ValueError: it is missing, another one is given, or it is not as many as the images.
        """
        for name, value, owner in (
            ("labels", labels, "are for a class-conditional prior"),
            ("condition", condition, "is for a prior over maps or objects or captions"),
        ):
            if value is not None and name != self.argument:
                raise ValueError(f"`{name}` {owner}; the condition of this one is {self.kind!r}. Leave it out.")
        if self.argument == "count":
            if count is None or count < 1:
                raise ValueError(
                    f"a prior without a condition of yours needs `count`, the number of images; got {count}."
                )
            return count
        value = labels if self.argument == "labels" else condition
        if value is None:
            raise ValueError(
                f"this prior's condition is {self.kind!r}: it needs `{self.argument}`, the {self.kind} of each image; "
                "none were given."
            )
        length = len(value) if np.ndim(value) else None
        if count is not None and count != length:
            raise ValueError(f"`{self.argument}` must be as many as the images, {count}; got {length}.")
        return value

    def size_of(self, value: Any, size: Size | None) -> Size | None:
        """Returns height and width of the requested images; None is the training size."""
        return size

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b ..."]:
        """Returns tokens as `Prefix` has them.

        Args:
          frozen: parameters of the tokenizers, by role.
          value: from `value_of`.
          grid: rows and columns of codes of each image.
          origins: k 2, of the window, wherever it stands; None of images of the training size.

        Raises:
          ValueError: a value of another type or shape, or, on the host, out of range.
        """
        raise NotImplementedError

    def grid_of(self, size: Size | None) -> Grid:
        """Returns rows and columns of codes of images of `size` pixels; those of training by default.

        Raises:
          ValueError: a side that is no multiple of the downsample factor, or smaller than the training images'.
        """
        f, smallest = self.downsample_factor, self.window
        if size is None:
            return smallest
        grid = (size[0] // f, size[1] // f)
        if (grid[0] * f, grid[1] * f) != tuple(size):
            near = tuple(-(-side // f) * f for side in size)
            raise ValueError(
                f"`size` must be height and width in multiples of {f} pixels; got {tuple(size)}. Ask for {near}."
            )
        if grid[0] < smallest[0] or grid[1] < smallest[1]:
            least = (smallest[0] * f, smallest[1] * f)
            raise ValueError(
                f"`size` must be at least {least}, the window that the prior was trained on; got {tuple(size)}. Draw "
                "that and cut it."
            )
        return grid

    def window_of(self, tokens: Int[Array, "b ..."], row: Any, column: Any) -> Int[Array, "b s"]:
        """Returns the part of a `Prefix`'s tokens that the window at an origin, in codes, sees."""
        if tokens.ndim == 2:
            return tokens
        if tokens.ndim == 4:
            return tokens[:, row, column]
        assert self.grid is not None
        own, window = self.grid, self.window
        start = (jnp.zeros((), jnp.int32), row * own[0] // window[0], column * own[1] // window[1])
        return jax.lax.dynamic_slice(tokens, start, (len(tokens), *own)).reshape(len(tokens), -1)

    def _placed(self, tokens: Int[Array, "b s"], grid: Grid) -> Int[Array, "b ..."]:
        """Row-major tokens of an image of `grid` codes, as `Prefix` has them."""
        if grid == self.window or self.grid is None:
            return tokens
        rows, columns = (own * side // part for own, side, part in zip(self.grid, grid, self.window, strict=True))
        return tokens.reshape(-1, rows, columns)


@functools.partial(jax.jit, static_argnums=0)
def jitted_encode(condition: Condition, frozen: Params, batch: dict[str, Any]) -> Any:
    """Returns `condition.encode(frozen, batch)`, compiled once for each condition."""
    return condition.encode(frozen, batch)


def on_host(values: Any) -> bool:
    """Whether values can be looked at without waiting for a device: NumPy's and Python's, but no `jax.Array`."""
    return not isinstance(values, jax.Array)


def in_range(name: str, values: Any, limit: int) -> Int[Array, "..."]:
    """Returns values as int32: those outside [0, limit) raise ValueError on the host, and are -1 on a device."""
    check_range(name, values, limit)
    return mark_out_of_range(values, limit)


def check_range(name: str, values: Any, limit: int, hint: str = "Leave the others out.") -> None:
    """Raises ValueError for values on the host that are outside [0, limit)."""
    if on_host(values) and not np.all((np.asarray(values) >= 0) & (np.asarray(values) < limit)):
        raise ValueError(
            f"`{name}` must be in [0, {limit}); got values in [{np.min(values)}, {np.max(values)}]. {hint}"
        )


def mark_out_of_range(values: Any, limit: int) -> Int[Array, "..."]:
    """Returns values as int32, those outside [0, limit) as -1: values on a device cannot raise an error."""
    values = jnp.asarray(values)
    return jnp.where((values >= 0) & (values < limit), values, -1).astype(jnp.int32)
