"""Maps of the image as the codes of a tokenizer: label maps, depth, edges, low resolution, limbs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Num, UInt8

from vqgan_jax import pictures
from vqgan_jax.conditions.base import (
    Color,
    Condition,
    Frozen,
    Grid,
    HostTokens,
    Params,
    Pictures,
    Size,
    check_range,
    jitted_encode,
)
from vqgan_jax.data import folder, images, views
from vqgan_jax.data.views import View
from vqgan_jax.nn.fields import derived
from vqgan_jax.nn.pixels import to_input, to_output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes(Condition):
    """A map of three channels; `Segmentation` and `Depth` are others."""

    argument = "condition"
    files = tuple(sorted(folder.EXTENSIONS))
    form: ClassVar[str] = "uint8 of shape (b, H, W, 3)"
    number: ClassVar[Any] = np.uint8  # of its pixels
    decode: ClassVar[Callable[..., np.ndarray]] = staticmethod(images.decode)  # a file

    size: int = 0  # pixels to which a map of the training size is brought first, by the nearest one; 0 leaves it
    tokenizer: Frozen = Frozen()  # without a workdir it is the images' own
    encoder: Frozen = derived(Frozen())  # the one or the other, without names
    role: str = derived("tokenizer")  # or "condition": whose parameters encode
    module: Any = derived(None)  # of the encoder

    @property
    def channels(self) -> int:
        """Channels that the map's tokenizer must read."""
        return views.FIELDS[self.kind].channels

    @property
    def grid(self) -> tuple[int, int]:
        """One token a code of the map, at the training size."""
        side = (self.size or self.image_size) // self.encoder.downsample_factor
        return side, side

    @property
    def num_values(self) -> int:
        """Codes."""
        return self.encoder.codebook_size

    @property
    def own_tokenizer(self) -> Frozen | None:
        """That of the config, if it has a workdir."""
        return self.tokenizer if self.tokenizer.workdir else None

    @property
    def is_cut(self) -> bool:
        """Whether a window sees whole codes of a larger map wherever it stands.

        Then the map is encoded once and its codes are cut. Else the part of the map in each window is encoded by
        itself, as in training: it is brought to another size, or the window may stand in the middle of a code.
        """
        return not self.size and all(own % side == 0 for own, side in zip(self.grid, self.window, strict=True))

    def bind(self, *, window: Grid, images: Frozen, module: Any = None) -> Condition:
        """Returns the condition of a run, with what encodes its maps, wherever that lies."""
        if module is not None and self.own_tokenizer and module.image_channels != self.channels:
            raise ValueError(
                f"the tokenizer of the condition {self.kind!r} must have {self.channels} channels; "
                f"{self.tokenizer.workdir} has {module.image_channels}. Name another, or mend "
                "`config.condition.num_classes`."
            )
        run, role = self.own_tokenizer or images, "condition" if self.own_tokenizer else "tokenizer"
        encoder = Frozen(codebook_size=run.codebook_size, downsample_factor=run.downsample_factor)
        bound = super().bind(window=window, images=images)
        return dataclasses.replace(bound, tokenizer=Frozen(), encoder=encoder, role=role, module=module)

    def check_fit(self, codebook_size: int) -> None:
        """Raises ValueError for a size that is no multiple of the factor, or a map that no tokenizer can read."""
        side, factor = self.size or self.image_size, self.encoder.downsample_factor
        if side % factor:
            raise ValueError(
                f"a map's side must be a multiple of its tokenizer's downsample factor {factor}; got {side}. Set "
                f"`config.condition.size` to {-(-side // factor) * factor}."
            )
        if self.role == "tokenizer" and views.FIELDS[self.kind].channels != 3:
            raise ValueError(
                f"`config.condition.tokenizer.workdir` must name the run that encodes {self.kind!r}: only pictures of "
                "three channels can be given to the images' own tokenizer."
            )
        super().check_fit(codebook_size)

    def views(self, data: Any) -> dict[str, View]:
        """Returns the map."""
        return {self.field: views.FIELDS[self.kind].view(data, self.channels)}

    def meaning(self, data: Any, images: Frozen) -> dict[str, Any]:
        """Returns what the tokens mean: of the encoder its fingerprint."""
        return super().meaning(data, images) | {"tokenizer": (self.own_tokenizer or images).fingerprint}

    def encode(self, frozen: Params, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Returns codes of the map, row by row; deterministic also for a Gumbel quantizer."""
        values = batch[self.field]
        if self.size:
            values = resized(values, self.size)
        inputs = to_input(values, self.module.image_channels)
        params, rngs = {"params": frozen[self.role]}, {"gumbel": jax.random.key(0)}
        quantized = self.module.apply(params, inputs, method="encode", rngs=rngs)
        return quantized.indices.reshape(len(values), -1)

    def size_of(self, value: Any, size: Size | None) -> Size:
        """Returns the size of the maps; ValueError for maps of another shape, type or range, or another `size`."""
        self._check(value)
        height, width = value.shape[1:3]
        if size is not None and tuple(size) != (height, width):
            raise ValueError(
                f"`size` must be that of the condition, {(height, width)}; got {tuple(size)}. Leave it out."
            )
        return height, width

    def _check(self, value: Any) -> None:
        """Raises ValueError for maps of another shape, type or range."""
        dtype, shape = jnp.result_type(value), jnp.shape(value)
        channels = () if views.FIELDS[self.kind].is_categories else (self.channels,)
        if not jnp.issubdtype(dtype, self.number) or len(shape) < 3 or shape[3:] != channels:
            raise ValueError(
                f"`condition` must be the {self.kind} of each image, {self.form}; got {dtype} of shape {shape}."
            )
        factor = self.encoder.downsample_factor
        if self.is_cut and (value.shape[1] % factor or value.shape[2] % factor):
            raise ValueError(
                f"the sides of a {self.kind} must be multiples of {factor}, its tokenizer's downsample factor; got "
                f"{value.shape[1:3]}. Crop it."
            )

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b ..."]:
        """Returns codes of maps: cut out of the whole, or those of each window's part of the map."""
        value = jnp.asarray(value)
        if origins is None or self.is_cut:
            return self._placed(jitted_encode(self, frozen, {self.field: value}), grid)
        shape = (grid[0] - self.window[0] + 1, grid[1] - self.window[1] + 1)
        return _encode_windows(self, frozen, value, origins, shape)

    def read(self, names: Sequence[str], size: Size, data: Any) -> Num[np.ndarray, "n H W ..."]:
        """Returns the map in each file, as the loader would show it: its middle, brought to `size`."""
        (view,), maps = self.views(data).values(), []
        for name in names:
            values = self.decode(name)  # a map; or a picture, of which edges and low resolution are made
            image = values if values.ndim == 3 else np.zeros((*values.shape, 3), np.uint8)
            maps.append(views.fit(view, {self.field: values, "image": image}, size))
        return np.stack(maps)

    def brushes(self, names: Sequence[str] = ()) -> dict[str, Color]:
        """Returns black, on which the others are drawn, grey and white."""
        return {"black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}

    def drawn(self, drawing: UInt8[np.ndarray, "H W 3"], size: Size) -> Num[np.ndarray, "1 _H _W ..."]:
        """Returns the drawing itself, brought to `size`."""
        return pictures.resized(drawing, size)[None]

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns the map as its tokenizer decodes it: what the prior sees."""
        return resized(self._decoded(frozen, tokens.reshape(-1, *self.grid)), size)

    def _decoded(self, frozen: Params, indices: Int[np.ndarray, "b h w"]) -> Pictures:
        known = np.minimum(indices, self.num_values - 1)  # a null token is no code
        return pictures.shown(np.asarray(_decode(self, frozen[self.role], known)))

    def output(self, recon: Any) -> Num[Array, "b H W ..."]:
        """Returns maps of what the tokenizer decodes: pixels, or floats where there is one channel."""
        return to_output(recon, jnp.zeros(recon.shape, jnp.uint8 if recon.shape[-1] == 3 else jnp.float32))

    def beside(self, frozen: Params, values: np.ndarray, size: Size, names: Sequence[str] = ()) -> tuple[Pictures, ...]:
        """Returns maps as they are and as the prior sees them: the codes of the whole, or of windows side by side.

        Raises:
          ValueError: maps of a size of which the prior draws no images.
        """
        self.grid_of(values.shape[1:3])
        encode = lambda part: np.asarray(jitted_encode(self, frozen, {self.field: part}))
        if self.is_cut:
            rows, columns = (length // self.encoder.downsample_factor for length in values.shape[1:3])
            return pictures.shown(values), self._decoded(frozen, encode(values).reshape(-1, rows, columns))
        side, kept = self.image_size, np.empty((*values.shape[:3], 3), np.uint8)
        starts = [[*range(0, length - side, side), length - side] for length in values.shape[1:3]]
        for top, left in itertools.product(*starts):
            part = np.s_[:, top : top + side, left : left + side]
            kept[part] = self.picture(frozen, encode(values[part]), side)
        return pictures.shown(values), kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Codes):
    """The category of each pixel."""

    kind = field = "segmentation"
    form = "integers of shape (b, H, W), below the number of classes"
    number = jnp.integer
    decode = staticmethod(images.decode_labels)

    num_classes: int = 1000

    @property
    def channels(self) -> int:
        """One for each class."""
        return self.num_classes

    def _check(self, value: Any) -> None:
        super()._check(value)
        check_range("condition", value, self.num_classes)

    def brushes(self, names: Sequence[str] = ()) -> dict[str, Color]:
        """Returns the colour of each category, whose number is its name: those of the data may be of objects."""
        return {str(category): pictures.color(category) for category in range(self.num_classes)}

    def drawn(self, drawing: UInt8[np.ndarray, "H W 3"], size: Size) -> Int[np.ndarray, "1 _H _W"]:
        """Returns the category of the nearest colour, for each pixel."""
        return pictures.nearest(super().drawn(drawing, size)[0], list(self.brushes().values()))[None]

    def output(self, recon: Any) -> Int[Array, "b H W"]:
        """Returns the likeliest category of each pixel."""
        return jnp.argmax(recon, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(Codes):
    """The depth of each pixel, scaled to [-1, 1] over the whole image."""

    kind = field = "depth"
    form = "floats in [-1, 1] of shape (b, H, W, 1)"
    number = jnp.floating
    decode = staticmethod(images.decode_depth)
    files = (*Codes.files, ".npy")

    def brushes(self, names: Sequence[str] = ()) -> dict[str, Color]:
        """Returns five greys from black, which is -1, to white, 1."""
        return {f"{grey / 127.5 - 1:+.1f}": (grey, grey, grey) for grey in (0, 64, 128, 191, 255)}

    def drawn(self, drawing: UInt8[np.ndarray, "H W 3"], size: Size) -> Float32[np.ndarray, "1 _H _W 1"]:
        """Returns the brightness of each pixel, as `pictures.heat` shows it."""
        grey = super().drawn(drawing, size).astype(np.float32).mean(axis=-1, keepdims=True)
        return grey / np.float32(127.5) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowResolution(Codes):
    """The picture at a part of its size, and back."""

    kind = field = "low_resolution"

    def meaning(self, data: Any, images: Frozen) -> dict[str, Any]:
        """Returns what the tokens mean, with the factor of size."""
        return super().meaning(data, images) | {"factor": data.low_resolution_factor}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges(Codes):
    """Canny's edges of the picture."""

    kind = field = "edges"

    def meaning(self, data: Any, images: Frozen) -> dict[str, Any]:
        """Returns what the tokens mean, with the blur before the edges."""
        return super().meaning(data, images) | {"sigma": data.edge_sigma}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keypoints(Codes):
    """A picture of the limbs of people."""

    kind = field = "keypoints"


@functools.partial(jax.jit, static_argnums=0)
def _decode(condition: Codes, params: Params, indices: Array) -> Array:
    """Maps of codes."""
    return condition.output(condition.module.apply({"params": params}, indices, method="decode_indices"))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode_windows(
    condition: Codes, frozen: Params, values: Array, origins: Array, shape: tuple[int, int]
) -> Int[Array, "b n m s"]:
    """Tokens of the part of the maps in the window at each of the origins (k 2), which lie in a table of that shape."""
    f = condition.downsample_factor
    height, width = (side * f for side in condition.window)

    def encode(origin: Int[Array, "2"]) -> Int[Array, "b s"]:
        rows = jax.lax.dynamic_slice_in_dim(values, origin[0] * f, height, axis=1)
        part = jax.lax.dynamic_slice_in_dim(rows, origin[1] * f, width, axis=2)
        return condition.encode(frozen, {condition.field: part})

    tokens = jnp.moveaxis(jax.lax.map(encode, origins), 0, 1)
    table = jnp.zeros((len(values), *shape, condition.length), tokens.dtype)
    return table.at[:, origins[:, 0], origins[:, 1]].set(tokens)


def resized(values: Any, size: int) -> Any:
    """Returns maps of `size` rows and columns, by torch's rule of the nearest pixel: floor(i * in / out)."""
    rows, columns = (np.arange(size) * side // size for side in values.shape[1:3])
    return values[:, rows][:, :, columns]
