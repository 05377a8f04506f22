"""Where each code lies in the whole image, for priors over crops (section 4.3 of the paper)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vqgan_jax import pictures
from vqgan_jax.conditions.base import Condition, Grid, HostTokens, Params, Pictures, jitted_encode
from vqgan_jax.conditions.codes import resized
from vqgan_jax.data import views
from vqgan_jax.data.views import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coordinates(Condition):
    """Raster position of each code, from "coordinates", in steps of 1 / num_tokens."""

    kind = field = "coordinates"

    num_tokens: int = 1024  # levels

    @property
    def grid(self) -> tuple[int, int]:
        """One token a code of the image."""
        return self.window

    @property
    def num_values(self) -> int:
        """Levels."""
        return self.num_tokens

    def views(self, data: Any) -> dict[str, View]:
        """Returns the positions of pixels."""
        return {self.field: views.coordinates}

    def encode(self, frozen: Params, batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Returns the mean of the pixels below each code, rounded half to even as upstream does."""
        values, f = batch["coordinates"], self.downsample_factor
        b, height, width, _ = values.shape
        means = values.reshape(b, height // f, f, width // f, f).mean((2, 4))
        levels = jnp.rint(jnp.clip(means, 0.0, 1.0) * self.num_tokens).astype(jnp.int32)
        return jnp.minimum(levels, self.num_tokens - 1).reshape(b, -1)

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b ..."]:
        """Returns the levels of whole images of `grid` codes."""
        height, width = grid[0] * self.downsample_factor, grid[1] * self.downsample_factor
        position = jnp.arange(height * width, dtype=jnp.float32).reshape(1, height, width, 1) / (height * width)
        batch = {self.field: jnp.broadcast_to(position, (value, *position.shape[1:]))}
        return self._placed(jitted_encode(self, frozen, batch), grid)

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns the levels as greys, dark at the top."""
        values = 2 * np.minimum(tokens / self.num_tokens, 1.0).astype(np.float32) - 1
        return resized(pictures.shown(values.reshape(-1, *self.grid, 1)), size)
