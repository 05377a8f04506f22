"""Faster forms of plain functions. A form has the signature and the result of the function that it stands for.

A module defines the plain function, which is the mathematics, and chooses the form in one line above it:

    @forms.use(forms.group_norm)
    def group_norm(x, scale, bias, groups, dtype): ...

`group_norm.plain` is the plain function, against which tests compare value and gradient. The environment variable
`VQGAN_JAX_PLAIN` names functions, separated by commas, that stay plain in this process: what a form gains in a whole
step is the difference of two `vqgan plan` or two benchmarks. Beside each form stands its gain; `docs/log.md` has more.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqgan_jax import losses
from vqgan_jax.nn.precision import attention, precision_of, product

PLAIN = frozenset(os.environ.get("VQGAN_JAX_PLAIN", "").split(","))


def use(
    form: Callable[..., Any], *, where: Callable[..., bool] = lambda *_: True
) -> Callable[[Callable[..., Any]], Any]:
    """Returns a decorator that puts `form` in the place of a plain function; see the module's docstring.

    Args:
      form: the faster function.
      where: of the same arguments; where it is false the plain function serves.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        faster = plain.__name__ not in PLAIN

        @functools.wraps(plain)
        def chosen(*args: Any) -> Any:
            return form(*args) if faster and where(*args) else plain(*args)

        chosen.plain = plain  # type: ignore[attr-defined]
        return chosen

    return decorate


# Convolutions

NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b H W c"], kernel: Float[Array, "s s c d"], stride: int, padding: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """On a CPU, sums products of shifted maps where a map is small beside the kernel, as VGG16's last maps are.

    XLA turns the kernel around for each gradient to x. For 4 maps of 512 channels this gradient takes 13.2 ms of CPU
    time in place of 18.5 at 8 x 8 pixels, 3.6 in place of 9.8 at 4 x 4, and 1.5 in place of 72 at 2 x 2.
    """
    plain = functools.partial(convolution, stride=stride, padding=padding)
    pixels, products = x.shape[1] * x.shape[2], functools.partial(shifted_products, padding=padding)
    if stride > 1 or pixels > 64 or (pixels > 4 and kernel.size < 2**20):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=products, default=plain)


def convolution(x: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    """Convolves as XLA does."""
    window, precision = ((stride, stride), (padding, padding)), precision_of(x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=NHWC, precision=precision)


def shifted_products(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    """Sums one product for each place of the kernel, at stride 1."""
    size, x = kernel.shape[0], jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    cut = lambda i, j: x[:, i : x.shape[1] - size + 1 + i, j : x.shape[2] - size + 1 + j]
    one = lambda i, j: product("bhwc,cd->bhwd", cut(i, j), kernel[i, j], jnp.float32)
    first, *others = (one(*place) for place in np.ndindex(size, size))
    return sum(others, start=first).astype(x.dtype)


@jax.custom_vjp
def upsample_convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b H W d"]:
    """Convolves the small grid by one 4x4 kernel, transposed, at stride 2: four of nine products.

    The gradient always has this form. The value has it on TPUs in bfloat16: a CPU has no fast transposed convolution,
    and in float32 the compiler of v6e crashes on it (libtpu 0.0.42). At the full size of f16 the gradient takes 47% and
    the value 52% fewer cycles of v5p. Together with `group_norm` it saves 18% of the tokenizer's step, as computed from
    the table in docs/log.md.
    """
    if x.dtype != jnp.bfloat16:
        return upsample_copies(x, kernel)
    return jax.lax.platform_dependent(x, kernel, tpu=upsample_transposed, default=upsample_copies)


def upsample_copies(x: Array, kernel: Array) -> Array:
    """Every pixel four times, then the convolution."""
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return convolve(doubled, kernel, 1, (1, 1))


def upsample_transposed(x: Array, kernel: Array) -> Array:
    """A convolution with zeros between the pixels of x."""
    dilated = functools.partial(jax.lax.conv_general_dilated, lhs_dilation=(2, 2), dimension_numbers=NHWC)
    return dilated(x, fold(kernel), (1, 1), ((2, 2), (2, 2)), precision=precision_of(x.dtype))


def fold(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "4 4 c d"]:
    """Sums, in float32, what each pixel sends through its four copies to the 4x4 pixels that they reach."""
    wide = kernel.astype(jnp.float32)
    shifted = [jnp.pad(wide, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)]
    return sum(shifted[1:], start=shifted[0]).astype(kernel.dtype)


@jax.jit
def upsample_convolve_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """The function is linear in x, in the kernel and in g alike: the kernel's gradient comes from that of x."""
    x, kernel = saved
    of_x = lambda kernel: convolve(g, fold(kernel)[::-1, ::-1].swapaxes(2, 3), 2, (1, 1))
    gradient, pull = jax.vjp(of_x, kernel)
    return gradient, pull(x)[0]


upsample_convolve.defvjp(lambda x, kernel: (upsample_convolve(x, kernel), (x, kernel)), upsample_convolve_backward)


# Norms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int, dtype: np.dtype
) -> Float[Array, "b h w c"]:
    """Takes the statistics of bfloat16 in one pass, and has a gradient with two sums at once.

    The gradient that JAX derives needs three sums over the image, one after the other; TPUs take these two in the same
    pass as the convolution before. Sums over space come first and then those over the few channels of a group: they
    read memory in order, on a CPU three to six times as fast as `flax.linen.GroupNorm`. A block of 128 channels at the
    full size of f16 takes 24% fewer cycles of v5p.
    """
    return group_norm_forward(x, scale, bias, groups, dtype)[0]


def group_norm_forward(x: Array, scale: Array, bias: Array, groups: int, dtype: np.dtype) -> tuple[Array, tuple]:
    """The value, and what the gradient needs."""
    wide = x.astype(jnp.float32)
    mean = group_mean(wide.mean((1, 2)), groups)
    if x.dtype == jnp.bfloat16:
        # The difference of two float32 means cancels fewer digits than rounding x to bfloat16 has taken already.
        variance = jnp.maximum(group_mean(jnp.square(wide).mean((1, 2)), groups) - jnp.square(mean), 0.0)
    else:
        variance = group_mean(jnp.square(wide - mean).mean((1, 2)), groups)
    inverse_std = jax.lax.rsqrt(variance + 1e-6)
    y = (wide - mean) * (inverse_std * scale[None, None, None]) + bias[None, None, None]
    return y.astype(dtype), (x, scale, mean, inverse_std)


def group_norm_backward(groups: int, dtype: np.dtype, saved: tuple, g: Array) -> tuple[Array, Array, Array]:
    """Gradients of x, scale and bias."""
    x, scale, mean, inverse_std = saved
    g, normed = g.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse_std
    slope, offset = (g * normed).mean((1, 2)), g.mean((1, 2))
    along, level = group_mean(slope * scale[None], groups), group_mean(offset * scale[None], groups)
    of_x = inverse_std * (g * scale[None, None, None] - level - normed * along)
    pixels = x.shape[1] * x.shape[2]
    return of_x.astype(x.dtype), pixels * slope.sum(0), pixels * offset.sum(0)


group_norm.defvjp(group_norm_forward, group_norm_backward)


def group_mean(v: Float[Array, "b c"], groups: int) -> Float[Array, "b 1 1 c"]:
    """The mean over each group of channels, at each of its channels."""
    means = v.reshape(v.shape[0], groups, -1).mean(-1)
    return jnp.repeat(means, v.shape[1] // groups, axis=-1)[:, None, None]


# VGG16


def max_pool(x: Float[Array, "b H W c"]) -> Float[Array, "b h w c"]:
    """Takes maxima of slices.

    A select-and-scatter, the gradient of a window's maximum, takes a CPU twenty times as long. The four maxima of VGG16
    and their gradients take 0.2 ms of CPU time an image of 32 pixels instead of 1.4.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    x = larger(x[:, ::2], x[:, 1::2])
    return larger(x[:, :, ::2], x[:, :, 1::2])


@jax.custom_vjp
def larger(x: Float[Array, "*b"], y: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The maximum; of equals the first has the gradient, where that of `jnp.maximum` divides to halve it."""
    return jnp.maximum(x, y)


def larger_backward(first: Array, g: Array) -> tuple[Array, Array]:
    """The whole gradient goes to one of the two."""
    return jnp.where(first, g, 0), jnp.where(first, 0, g)


larger.defvjp(lambda x, y: (larger(x, y), x >= y), larger_backward)


def group_distance(
    x: Float[Array, "b H W _"], y: Float[Array, "b H W _"], layers: Any, head: Array, key: Any, dtype: Any
) -> tuple[Float[Array, "b"], Float[Array, "b h w d"], Float[Array, "b h w d"]]:
    """Puts every two neighbouring columns side by side in the channels; see `fits_pairs`.

    128 channels fill the width of a TPU's matrix unit: half of the wider kernel is zeros, and it costs as much as the
    plain one on half of the pixels. The ReLU, the maximum and the norm behind it work on such pairs, too. This saves 5%
    of the f16 tokenizer's step on v5p, by plan.
    """
    x, y = (pair_features(features, tuple(layers), jnp.dtype(dtype)) for features in (x, y))
    difference = normalise_pairs(x.astype(jnp.float32)) - normalise_pairs(y.astype(jnp.float32))
    return losses.lpips_loss(difference, jnp.tile(head, 2), key) / 2, pool_pairs(x), pool_pairs(y)


def fits_pairs(x: Array, y: Array, layers: Any, head: Array, key: Any, dtype: Any) -> bool:
    """Whether a group has 64 channels in bfloat16, and the images an even width."""
    del y, layers, key
    return jnp.dtype(dtype) == jnp.bfloat16 and head.shape == (64,) and x.shape[2] % 2 == 0


@functools.partial(jax.jit, static_argnums=2)
def pair_features(x: Float[Array, "b h w c"], layers: Any, dtype: Any) -> Float[Array, "b h v d"]:
    """What leaves a group, of pairs of columns."""
    x = pair(x)
    for kernel, bias in layers:
        x = convolve(x.astype(dtype), pair_kernel(kernel).astype(dtype), 1, (1, 1))
        x = jax.nn.relu(x + jnp.tile(bias, 2).astype(dtype)[None, None, None])
    return x


def pair(x: Float[Array, "b h w c"]) -> Float[Array, "b h v d"]:
    """Every two neighbouring columns of a map side by side in the channels; its width is even."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


def pair_kernel(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "3 3 e f"]:
    """The kernel that convolves pairs as `kernel` convolves columns."""
    _, _, c, d = kernel.shape
    shifted = [jnp.pad(kernel, ((0, 0), (1 + column, 2 - column), (0, 0), (0, 0))) for column in (0, 1)]
    return jnp.stack(shifted, axis=-2).reshape(3, 3, 2 * c, 2 * d)


def pool_pairs(x: Float[Array, "b h v d"]) -> Float[Array, "b g v c"]:
    """`max_pool` of the columns that were put side by side."""
    x = x[:, : x.shape[1] // 2 * 2]
    return larger(*jnp.split(larger(x[:, ::2], x[:, 1::2]), 2, axis=-1))


def normalise_pairs(x: Float[Array, "b h v d"]) -> Float[Array, "b h v d"]:
    """Divides each half of the channels by its length, and zeros by nothing."""
    squares = half_sums(jnp.square(x))
    positive = squares > 0
    return x * jnp.where(positive, 1.0 / (jnp.sqrt(jnp.where(positive, squares, 1.0)) + 1e-10), 0.0)


@jax.jit
def half_sums(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The sum of each half of the channels, at each of its channels.

    As a product, because a sum over a part of a TPU's lanes costs more. HIGH is three products of bfloat16, which hold
    the 16 bits of a squared bfloat16.
    """
    width = x.shape[-1] // 2
    same = jnp.kron(jnp.eye(2), jnp.ones((width, width)))
    return jnp.einsum("bhwc,cd->bhwd", x, same, precision=jax.lax.Precision.HIGH)


# The transformer


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Takes erf in float32; erfc, which `jax.nn.gelu` takes, costs a TPU twice as much.

    The intermediate values stay in float32, so that the compiler writes none of them to memory: this alone saves 4% of
    the 1.41 B prior's step on v5p, by plan.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def project(
    x: Float[Array, "b t m"], kernel: Float[Array, "m 3 n p"], bias: Float[Array, "3 n p"], step: bool
) -> tuple[Float[Array, "b t n p"], ...]:
    """Computes three products, each in the layout that attention reads, so that nothing is copied.

    This saves 6% of the 1.41 B prior's step on v5p, by plan.
    """
    del step
    return tuple(product("btm,mnp->btnp", x, kernel[:, i]) + bias[i][None, None] for i in range(3))


def fused_attention(q: Array, k: Array, v: Array, mask: Array, causal: bool) -> Float[Array, "b t n p"]:
    """Takes cuDNN's fused attention in a program for NVIDIA's GPUs, which writes no weights to memory.

    A step of the 1.41 B prior takes 66.5 ms of eight H100 instead of 82.4, by plan.
    """
    fused = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn")
    return jax.lax.platform_dependent(q, k, v, cuda=fused, default=functools.partial(attention, mask=mask))


def fits_cudnn(q: Array, k: Array, v: Array, mask: Array, causal: bool) -> bool:
    """Whether cuDNN has this attention, on every GPU since A100: causal, in 16 bits, of heads up to 128 wide."""
    del k, v, mask
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return causal and fits and q.shape[1] > 1 and has_cudnn()


@functools.cache
def has_cudnn() -> bool:
    """Whether JAX finds cuDNN here, without which it does not even trace a fused attention."""
    jax.local_devices()  # JAX loads cuDNN with its platforms
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def masked_softmax(logits: Float[Array, "b n t"], position: Int[Array, ""]) -> Float[Array, "b n t"]:
    """Weights of positions 0 to `position`; those behind have none."""
    visible = (jnp.arange(logits.shape[-1]) <= position)[None, None]
    return jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1)


def choose_cache(run: Callable[[Any], Any], plain: type) -> Any:
    """Returns `run` of the class of caches for the platform that the program is compiled for.

    The classes hold arrays of other shapes, so that all that uses them must be in `run`. NVIDIA's GPUs take the plain
    cache: a sample of 16 rows by four layers of the 1.41 B prior takes 77.3 ms of an H100, with `WideCache` 85.8, by
    plan. Where there is no cuDNN nothing is traced for them.
    """
    if plain.__name__ in PLAIN:
        return run(plain)
    cuda = {"cuda": lambda: run(plain)} if has_cudnn() else {}
    return jax.lax.platform_dependent(cpu=lambda: run(PartCache), default=lambda: run(WideCache), **cuda)


PARTS = 4  # of a `PartCache`


class PartCache(NamedTuple):
    """`transformer.Cache` in parts: those behind the current position are not read, three eighths less on average.

    Reading the filled part of one array would copy it first: 21% more CPU time for a sample of 16 rows by 6 layers of
    width 512.
    """

    keys: tuple[Float[Array, "b n t p"], ...]
    values: tuple[Float[Array, "b n t p"], ...]

    copies = 1

    @classmethod
    def start(cls, k: Float[Array, "b s n p"], v: Float[Array, "b s n p"], length: int) -> "PartCache":
        """Returns the cache of the first positions, with room for `length` at least."""
        room = ((0, 0), (0, 0), (0, -(-length // PARTS) * PARTS - k.shape[1]), (0, 0))
        fill = lambda x: tuple(jnp.split(jnp.pad(jnp.swapaxes(x, 1, 2), room), PARTS, axis=2))
        return cls(fill(k), fill(v))

    def put(self, k: Float[Array, "b 1 n p"], v: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> "PartCache":
        """Returns the cache with one position written; the other parts get a row of theirs back."""
        size = self.keys[0].shape[2]

        def write(i: int, part: Array, new: Array) -> Array:
            old = jax.lax.dynamic_slice_in_dim(part, position % size, 1, axis=2)
            row = jnp.where(position // size == i, jnp.swapaxes(new, 1, 2), old)
            return jax.lax.dynamic_update_slice_in_dim(part, row, position % size, axis=2)

        parts = (
            tuple(write(i, part, new) for i, part in enumerate(old)) for old, new in zip(self, (k, v), strict=True)
        )
        return PartCache(*parts)

    def attend(self, q: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> Float[Array, "b 1 n p"]:
        """Computes the attention of one position over positions 0 to `position`."""
        size = self.keys[0].shape[2]

        def filled(equation: str, i: int, x: Array, part: Array) -> Array:
            """Of x and part i, in float32; zeros where no position of the part is filled."""
            einsum = lambda x, part: product(equation, x, part, jnp.float32)
            zeros = lambda x, part: jnp.zeros(jax.eval_shape(einsum, x, part).shape, jnp.float32)
            return jax.lax.cond(position >= i * size, einsum, zeros, x, part)

        logits = [filled("bnp,bntp->bnt", i, q[:, 0], part) for i, part in enumerate(self.keys)]
        weights = masked_softmax(jnp.concatenate(logits, axis=-1) * q.shape[-1] ** -0.5, position).astype(q.dtype)
        pairs = enumerate(zip(jnp.split(weights, PARTS, axis=-1), self.values, strict=True))
        attended = [filled("bnt,bntp->bnp", i, x, part) for i, (x, part) in pairs]
        return sum(attended[1:], attended[0])[:, None].astype(q.dtype)


class WideCache(NamedTuple):
    """`transformer.Cache` with the heads of a group side by side, and one product a group.

    A single query with its own head is a product that TPUs take element by element. Here the queries of a group stand
    on a block diagonal: what is multiplied in vain, as many times as a group has heads, a matrix unit has done before
    the cache is read. With a single row a TPU would take a kernel's product, too, element by element: a second copy of
    its position costs less. A sample of the 1.41 B prior with four of its 48 layers takes 140 million cycles of v5p at
    one row a chip instead of 295.
    """

    keys: Float[Array, "b g t c"]
    values: Float[Array, "b g t c"]

    copies = 2

    @classmethod
    def start(cls, k: Float[Array, "b s n p"], v: Float[Array, "b s n p"], length: int) -> "WideCache":
        """Returns the cache of the first positions, with room for `length`."""
        fill = lambda x: jnp.pad(grouped(x), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
        return cls(fill(k), fill(v))

    def put(self, k: Float[Array, "b 1 n p"], v: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> "WideCache":
        """Returns the cache with one position written."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, grouped(new), position, axis=2)
        return WideCache(write(self.keys, k), write(self.values, v))

    def attend(self, q: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> Float[Array, "b 1 n p"]:
        """Computes the attention of one position over positions 0 to `position`."""
        b, _, n, p = q.shape
        _, g, t, c = self.keys.shape
        own = (jnp.arange(c // p)[:, None] == jnp.arange(c)[None] // p)[None, None]
        queries = jnp.where(own, q.reshape(b, g, 1, c), 0)
        logits = product("bghc,bgtc->bght", queries, self.keys, jnp.float32)
        weights = masked_softmax(logits.reshape(b, n, t) * p**-0.5, position).astype(q.dtype).reshape(logits.shape)
        attended = product("bght,bgtc->bghc", weights, self.values, jnp.float32)
        return jnp.where(own, attended, 0).sum(2).reshape(q.shape).astype(q.dtype)


def grouped(x: Float[Array, "b t n p"]) -> Float[Array, "b g t c"]:
    """Groups of the fewest heads, but two, that fill whole rows of 128 numbers, a TPU's width; else all heads."""
    b, t, n, p = x.shape
    heads = next((heads for heads in range(2, n + 1) if n % heads == 0 and heads * p % 128 == 0), n)
    return jnp.swapaxes(x.reshape(b, t, n // heads, heads * p), 1, 2)
