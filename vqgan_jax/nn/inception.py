"""The Inception network of 2015 that FID, KID and the Inception Score are defined by, and the resize before it.

It is not the Inception v3 of classifiers: its average pools do not count padding, its last pool is a maximum, its
logits have no bias. Weights: `convert.inception`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Num

SIDE, WIDTH, CLASSES = 299, 2048, 1008


class Conv(NamedTuple):
    """A row of the tables: a convolution, its norm and a ReLU. With stride 1 it keeps the side, unless `valid`."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


# A branch is a chain of convolutions and pools; two convolutions side by side read the same and are concatenated.
Step = Conv | str | tuple[Conv, Conv]
Branches = tuple[tuple[Step, ...], ...]

STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), valid=True),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "max/2",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), valid=True),
    "max/2",
)


def _mixed_5(pool: int) -> Branches:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pool)),
    )


def _mixed_6(c: int) -> Branches:
    wide, tall = (1, 7), (7, 1)
    double = [Conv(f"branch7x7dbl_{i}", c, kernel) for i, kernel in enumerate(((1, 1), tall, wide, tall), start=1)]
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", c), Conv("branch7x7_2", c, wide), Conv("branch7x7_3", 192, tall)),
        (*double, Conv("branch7x7dbl_5", 192, wide)),
        ("average", Conv("branch_pool", 192)),
    )


def _mixed_7(pool: str) -> Branches:
    def both(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), both("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), both("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


MIXED: dict[str, Branches] = {
    "Mixed_5b": _mixed_5(32),
    "Mixed_5c": _mixed_5(64),
    "Mixed_5d": _mixed_5(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        ("max/2",),
    ),
    "Mixed_6b": _mixed_6(128),
    "Mixed_6c": _mixed_6(160),
    "Mixed_6d": _mixed_6(160),
    "Mixed_6e": _mixed_6(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            *(Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1))),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        ("max/2",),
    ),
    "Mixed_7b": _mixed_7("average"),
    "Mixed_7c": _mixed_7("max"),
}


class ConvBlock(nn.Module):
    """A convolution without bias, BatchNorm by stored statistics with eps 1e-3, ReLU; float32, full precision."""

    row: Conv

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {self.row.channels}"]:
        row, channels = self.row, (self.row.channels,)
        kernel = self.param("kernel", nn.initializers.he_normal(), (*row.kernel, x.shape[-1], *channels))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        mean, var = self.param("mean", zeros, channels), self.param("var", ones, channels)
        side = [(0, 0) if row.stride > 1 or row.valid else (k // 2, k // 2) for k in row.kernel]
        x = jax.lax.conv_general_dilated(
            x, kernel, (row.stride,) * 2, side, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=Precision.HIGHEST
        )
        factor = scale / jnp.sqrt(var + 1e-3)
        return nn.relu((x - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None])


class Inception(nn.Module):
    """Features and logits of images that are `resize_tf1`'d and scaled to (x - 128) / 128.

    Parameters: for each convolution, by its name in the published files, kernel, scale, bias, mean and var; `fc`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b 299 299 3"]) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        x = self.chain(STEM, x, "")
        for name, branches in MIXED.items():
            x = jnp.concatenate([self.chain(branch, x, f"{name}.") for branch in branches], axis=-1)
        features = x.mean((1, 2))
        fc = self.param("fc", nn.initializers.lecun_normal(), (WIDTH, CLASSES))
        return features, jnp.dot(features, fc, precision=Precision.HIGHEST)

    def chain(self, steps: tuple[Step, ...], x: Float[Array, "b H W c"], prefix: str) -> Float[Array, "b h w d"]:
        """One step after the other."""
        for step in steps:
            if isinstance(step, Conv):
                x = ConvBlock(step, name=prefix + step.name)(x)
            elif isinstance(step, str):
                x = POOLS[step](x)
            else:
                x = jnp.concatenate([self.chain((conv,), x, prefix) for conv in step], axis=-1)
        return x


_RIM: Any = ((1, 1), (1, 1))
POOLS = {
    "average": lambda x: nn.avg_pool(x, (3, 3), (1, 1), _RIM, count_include_pad=False),
    "max": lambda x: nn.max_pool(x, (3, 3), (1, 1), _RIM),
    "max/2": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
}


def resize_tf1(images: Num[Array, "b H W c"], size: int = SIDE) -> Float[Array, "b {size} {size} c"]:
    """Bilinear resize of TensorFlow 1: no antialiasing, and no shift by half a pixel; float32, levels as given.

    Output i is at i * H / size of the input, between the two pixels there. Along the rows first, then the columns.
    Bit for bit the original's; under `jit` a compiler may join product and sum and round once, 5e-5 of a level apart.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.floor(place).astype(np.int32)
        way = np.expand_dims(place - low.astype(np.float32), tuple(i for i in range(4) if i != axis))
        a, b = (jnp.take(x, np.minimum(i, length - 1), axis=axis) for i in (low, low + 1))
        x = a + (b - a) * way
    return x
