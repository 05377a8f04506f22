"""Convolutions as functions of maps and kernels, in the forms that compilers make fast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqgan_jax.nn.precision import precision_of, product


def convolve(
    x: Float[Array, "b H W c"], kernel: Float[Array, "s s c d"], stride: int, padding: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """A plain convolution, of float32 in float32; `padding` is (before, after) on both axes."""
    if stride == 1 and x.shape[1] * x.shape[2] <= 4:
        # VGG's last maps of a 32-pixel crop: XLA's CPU convolution takes 80 times as long as a product of patches.
        size = kernel.shape[0]
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
        h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
        patches = jnp.stack([x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=3)
        kernel = kernel.reshape(size * size, *kernel.shape[2:])
        return product("bhwsc,scd->bhwd", patches, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(x.dtype),
    )


@jax.custom_vjp
def convolve_doubled(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b H W d"]:
    """The 3x3 convolution of x with every pixel four times, which keeps that side: nearest upsampling and after it.

    It is a 4x4 that is transposed, at stride 2, on the small grid: four of nine products. The gradient is always taken
    of that form, the value on TPUs in bfloat16: a CPU has no fast transposed convolution, and in float32 the compiler
    of v6e crashes on it (libtpu 0.0.42).
    """
    if x.dtype != jnp.bfloat16:
        return convolve_copies(x, kernel)
    return jax.lax.platform_dependent(x, kernel, tpu=convolve_transposed, default=convolve_copies)


def convolve_copies(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b H W d"]:
    """As it is defined."""
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return convolve(doubled, kernel, 1, (1, 1))


def convolve_transposed(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b H W d"]:
    """The same with zeros between the pixels."""
    return jax.lax.conv_general_dilated(
        x,
        folded(kernel),
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(x.dtype),
    )


def folded(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "4 4 c d"]:
    """Every pixel's part in the 4x4 pixels that its four copies reach; summed in float32."""
    wide = kernel.astype(jnp.float32)
    shifted = [jnp.pad(wide, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)]
    return sum(shifted[1:], start=shifted[0]).astype(kernel.dtype)


@jax.jit
def doubled_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """Gradients of `convolve_doubled`. Linear in x, kernel and g alike, so that the kernel's comes from that of x."""

    def of_x(kernel: Array) -> Array:
        return convolve(g, folded(kernel)[::-1, ::-1].swapaxes(2, 3), 2, (1, 1))

    gradient, pull = jax.vjp(of_x, kernel)
    return gradient, pull(x)[0]


convolve_doubled.defvjp(
    lambda x, kernel: (convolve_doubled(x, kernel), (x, kernel)), lambda saved, g: doubled_gradients(*saved, g)
)


def paired(x: Float[Array, "b h w c"]) -> Float[Array, "b h v d"]:
    """Maps with every two neighbouring columns side by side in the channels; the width must be even."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


@jax.jit
def convolve_paired(x: Float[Array, "b h v p"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h v q"]:
    """The 3x3 convolution that keeps the side, of `paired` maps.

    Half of the wider kernel is zeros. Where 2c and 2d are 128, the width of a TPU's matrix unit, it costs as much as
    the plain one on half of the pixels, and so does all that follows.
    """
    shifted = [jnp.pad(kernel, ((0, 0), (1 + column, 2 - column), (0, 0), (0, 0))) for column in (0, 1)]
    _, _, c, d = kernel.shape
    return convolve(x, jnp.stack(shifted, axis=-2).reshape(3, 3, 2 * c, 2 * d), 1, (1, 1))
