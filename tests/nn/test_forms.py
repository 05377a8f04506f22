"""Every faster form has the value and the gradient of the plain function that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.nn import block, forms, layers, perceptual, transformer


def check_equal(function, *arrays, rest=(), atol=1e-4):
    """Values, and gradients by every array for a random cotangent."""
    ours, our_pull = jax.vjp(lambda *x: function(*x, *rest), *arrays)
    plain, plain_pull = jax.vjp(lambda *x: function.plain(*x, *rest), *arrays)
    assert ours.dtype == plain.dtype
    np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(plain, np.float32), atol=atol, rtol=atol)
    cotangent = jax.random.normal(jax.random.key(9), plain.shape).astype(plain.dtype)
    for a, b in zip(our_pull(cotangent), plain_pull(cotangent), strict=True):
        assert a.dtype == b.dtype
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol * max(scale, 1.0))


@pytest.mark.parametrize(("side", "size", "padding"), [(2, 3, (1, 1)), (1, 3, (1, 1)), (2, 2, (0, 1)), (5, 3, (1, 1))])
def test_convolve(getkey, side, size, padding):
    x, kernel = jax.random.normal(getkey(), (2, side, side, 6)), jax.random.normal(getkey(), (size, size, 6, 4))
    check_equal(layers.convolve, x, kernel, rest=(1, padding))


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)])
def test_convolve_of_a_map_that_is_small_beside_the_kernel(getkey, dtype, atol):
    x, kernel = jax.random.normal(getkey(), (2, 8, 7, 512)), jax.random.normal(getkey(), (3, 3, 512, 256))
    text = jax.jit(lambda *arrays: layers.convolve(*arrays, 1, (1, 1))).lower(x, kernel).as_text()
    assert ("convolution" in text, text.count("dot_general")) == (False, 9)
    check_equal(layers.convolve, x.astype(dtype), kernel.astype(dtype) / 68, rest=(1, (1, 1)), atol=atol)


@pytest.mark.parametrize(("h", "w"), [(5, 6), (1, 4)])
def test_upsample_convolve(getkey, h, w):
    x, kernel = jax.random.normal(getkey(), (2, h, w, 8)), jax.random.normal(getkey(), (3, 3, 8, 7))
    check_equal(layers.upsample_convolve, x, kernel)
    np.testing.assert_allclose(
        forms.upsample_transposed(x, kernel), layers.upsample_convolve.plain(x, kernel), atol=1e-4
    )


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [1, 4, 32])
def test_group_norm(getkey, groups, dtype, atol):
    x = (3.0 + jax.random.normal(getkey(), (2, 6, 5, 64))).astype(dtype)
    scale, bias = jax.random.normal(getkey(), (64,)), jax.random.normal(getkey(), (64,))
    check_equal(layers.group_norm, x, scale, bias, rest=(groups, jnp.dtype(dtype)), atol=atol)


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("deviation", [0.01, 0.1, 1.0])
def test_the_one_pass_variance_of_bfloat16_is_that_of_float64(getkey, mean, deviation):
    """Closer than rounding to bfloat16, which moves x by up to 2^-9 of itself."""
    x = (mean + deviation * jax.random.normal(getkey(), (2, 16, 16, 64))).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    _, (*_, inverse_std) = forms.group_norm_forward(x, jnp.ones(64), jnp.zeros(64), 32, jnp.dtype(jnp.bfloat16))
    exact = wide.reshape(2, 256, 32, 2).var((1, 3))
    variance = 1.0 / np.square(np.asarray(inverse_std, np.float64)[:, 0, 0, ::2]) - 1e-6
    np.testing.assert_allclose(variance, exact, rtol=1e-4, atol=2**-20 * np.square(wide).mean() + 1e-9)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (5, 9)])
def test_max_pool(getkey, size):
    check_equal(perceptual.max_pool, jax.random.normal(getkey(), (2, *size, 3)), atol=0.0)


def test_of_two_equal_maxima_the_first_has_the_whole_gradient():
    gradient = jax.grad(lambda x: perceptual.max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("key", [None, jax.random.key(3)])
def test_group_distance(getkey, key):
    """The gradient jumps at every ReLU: bfloat16 flips some."""
    x, y = (jax.random.normal(getkey(), (2, 6, 8, 3)) for _ in range(2))
    shapes = [((3, 3, 3, 64), (64,)), ((3, 3, 64, 64), (64,))]
    layers = [tuple(0.1 * jax.random.normal(getkey(), shape) for shape in pair) for pair in shapes]
    head = jax.random.uniform(getkey(), (64,))

    def run(function):
        distance = lambda x, y: function(x, y, layers, head, key, jnp.bfloat16)
        (value, *pooled), pull = jax.vjp(distance, x, y)
        return value, pooled, pull((jnp.ones(2), *map(jnp.ones_like, pooled)))

    ours, plain = run(perceptual.group_distance), run(perceptual.group_distance.plain)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-2)
    for a, b in zip(ours[1], plain[1], strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=0.02)
    for a, b in zip(ours[2], plain[2], strict=True):
        assert np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] > 0.99


def test_the_pairs_of_group_distance_in_float32(getkey):
    """Each part of it, without the rounding of bfloat16."""
    x, kernel = jax.random.normal(getkey(), (2, 5, 6, 4)), jax.random.normal(getkey(), (3, 3, 4, 4))
    paired = layers.convolve(forms.pair(x), forms.pair_kernel(kernel), 1, (1, 1))
    np.testing.assert_allclose(paired, forms.pair(layers.convolve(x, kernel, 1, (1, 1))), atol=1e-5)
    np.testing.assert_array_equal(forms.pool_pairs(forms.pair(x)), perceptual.max_pool(x))
    x = x.at[0, 0].set(0.0)
    np.testing.assert_allclose(forms.normalise_pairs(forms.pair(x)), forms.pair(perceptual.normalise(x)), atol=1e-6)


# The transformer


def test_gelu(getkey):
    check_equal(block.gelu, 3 * jax.random.normal(getkey(), (5, 7)), atol=1e-6)


def test_project(getkey):
    arrays = [jax.random.normal(getkey(), shape) for shape in [(2, 5, 8), (8, 3, 2, 4), (3, 2, 4)]]
    run = lambda f: jax.vjp(lambda *x: f(*x, False), *arrays)
    ours, plain = run(block.project), run(block.project.plain)
    both = ((value, pull(value)) for value, pull in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *both)


def heads(getkey, dtype, width=8, length=12):
    """Queries, keys and values, and the causal mask."""
    arrays = [jax.random.normal(getkey(), (2, length, 4, width), dtype) for _ in range(3)]
    return arrays, transformer.causal_mask(length)[None, None]


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_fused_attention_is_asked_for_what_the_causal_mask_says(getkey, monkeypatch, dtype, atol):
    """Value and gradient of JAX's own `is_causal` are those of the mask, bfloat16 to 2% of the largest."""
    arrays, mask = heads(getkey, dtype)
    ask = lambda q, k, v, mask, causal: jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    ask.plain = block.attend.plain
    check_equal(ask, *arrays, rest=(mask, True), atol=atol)


def without_cudnn(calls):
    """`jax.nn.dot_product_attention` that notes how it is called, and computes where cuDNN cannot."""
    real = jax.nn.dot_product_attention

    def noted(q, k, v, **options):
        calls.append(options)
        return real(q, k, v, **options | {"implementation": "xla"})

    return noted


def test_only_a_program_for_nvidia_fuses_attention_and_the_others_stay_as_they_are(getkey, monkeypatch):
    calls: list[dict] = []
    monkeypatch.setattr(forms, "has_cudnn", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn(calls))
    arrays, mask = heads(getkey, "bfloat16")
    check_equal(block.attend, *arrays, rest=(mask, True), atol=0.0)  # here, on a CPU
    traced = jax.jit(lambda *qkv: block.attend(*qkv, ~mask, True)).trace(*arrays)  # a mask that cuDNN does not see
    assert {"is_causal": True, "implementation": "cudnn"} in calls
    ours, others = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu"))
    plain = jax.jit(lambda *qkv: block.attend.plain(*qkv, ~mask, True)).trace(*arrays)
    count = lambda text: text.count("dot_general")
    assert ours != others
    assert count(others) == count(plain.lower(lowering_platforms=("tpu",)).as_text()) == 2


@pytest.mark.parametrize(
    ("dtype", "width", "length", "causal", "fits"),
    [("bfloat16", 64, 12, True, True), ("float16", 128, 12, True, True), ("float32", 64, 12, True, False),
     ("bfloat16", 132, 12, True, False), ("bfloat16", 12, 12, True, False), ("bfloat16", 64, 1, True, False),
     ("bfloat16", 64, 12, False, False)],
)  # fmt: skip
def test_cudnn_has_causal_attention_in_16_bits_of_heads_up_to_128(
    getkey, monkeypatch, dtype, width, length, causal, fits
):
    monkeypatch.setattr(forms, "has_cudnn", lambda: True)
    arrays, mask = heads(getkey, dtype, width, length)
    assert forms.fits_cudnn(*arrays, mask, causal) == fits


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_block_is_causal_where_no_position_sees_one_behind_it(prefix):
    network = transformer.Transformer(bidirectional_prefix=prefix)
    assert network.block_fields["causal"] == (prefix < 2)
    assert network.block_fields["causal"] == bool(
        (transformer.causal_mask(4, prefix) == jnp.tril(jnp.ones((4, 4)))).all()
    )


@pytest.mark.parametrize("position", [0, 7, 8, 17])
@pytest.mark.parametrize("width", [8, 64])  # of a head: groups of all four, and of two
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_caches(getkey, position, width, dtype, atol):
    """What stands behind the position is not seen."""
    k, v, more_k, more_v = (jax.random.normal(getkey(), (2, 18, 4, width), dtype) for _ in range(4))
    q, at = k[:, :1], jnp.asarray(position)

    @jax.jit
    def attended(k, v):
        caches = [cls.start(k, v, 18) for cls in (transformer.Cache, forms.PartCache, forms.WideCache)]
        return [cache.put(more_k[:, :1], more_v[:, :1], at).attend(q, at) for cache in caches]

    plain, *ours = attended(k, v)
    behind = (jnp.arange(18) > position)[None, :, None, None]
    for found in (*ours, *attended(jnp.where(behind, more_k, k), jnp.where(behind, more_v, v))):
        assert found.dtype == q.dtype
        np.testing.assert_allclose(np.float32(found), np.float32(plain), atol=atol)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_the_cache_is_that_of_the_platform_a_program_is_compiled_for(monkeypatch, platform):
    monkeypatch.setattr(forms, "has_cudnn", lambda: True)
    names = {"cpu": forms.PartCache, "tpu": forms.WideCache, "cuda": transformer.Cache}
    numbers = {cache: 1000 + number for number, cache in enumerate(names.values())}
    traced = jax.jit(lambda: forms.choose_cache(lambda cache: jnp.full((), numbers[cache]), transformer.Cache)).trace()
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert [f"dense<{number}>" in text for number in numbers.values()] == [name == platform for name in names]


def test_groups_of_heads_fill_rows_of_128():
    shapes = {
        (n, p): forms.grouped(jnp.zeros((1, 1, n, p))).shape[1] for n, p in [(16, 96), (12, 64), (16, 128), (4, 8)]
    }
    assert shapes == {(16, 96): 4, (12, 64): 6, (16, 128): 8, (4, 8): 1}
