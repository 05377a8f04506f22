import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.nn.autoencoder import VQGAN, AttnBlock, Downsample, ResBlock, Upsample
from vqgan_jax.nn.layers import GroupNorm
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.nn.remat import REMAT


def vqgan(multipliers=(1, 1), attn_resolutions=(8,), dropout=0.0, dtype=jnp.float32) -> VQGAN:
    fields = {"latent_channels": 32, "dropout": dropout, "dtype": dtype}
    return VQGAN(VectorQuantizer(16, 4), 32, multipliers, 1, attn_resolutions, 16, **fields)


@pytest.fixture(scope="module")
def variables():
    """Parameters of `vqgan()`."""
    return jax.jit(vqgan().init)(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: VQGAN, variables, images):
    return model.apply(variables, images)


@functools.partial(jax.jit, static_argnums=0)
def decode(model: VQGAN, variables, quantized):
    return model.apply(variables, quantized, method="decode")


@pytest.mark.parametrize("multipliers", [(1,), (1, 1), (1, 1, 2), (1, 1, 1, 1)])
def test_any_multiple_of_the_factor_comes_back_in_its_size(multipliers):
    model = vqgan(multipliers)
    f = model.downsample_factor
    assert f == 2 ** (len(multipliers) - 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))

    def shapes(variables, images):
        recon, quantized = model.apply(variables, images)
        return recon, quantized.indices

    for h, w in ((1, 1), (2, 3), (5, 1)):
        images = jax.ShapeDtypeStruct((2, f * h, f * w, 3), jnp.float32)
        recon, indices = jax.eval_shape(shapes, variables, images)
        assert (recon.shape, indices.shape) == (images.shape, (2, h, w))


def test_decoding_indices_is_decoding_what_they_stand_for(variables, getkey):
    images = jax.random.uniform(getkey(), (2, 8, 8, 3), minval=-1.0)
    recon, quantized = reconstruct(vqgan(), variables, images)
    codes = vqgan().apply(variables, quantized.indices, method=lambda model, indices: model.quantizer.lookup(indices))
    np.testing.assert_allclose(decode(vqgan(), variables, codes), recon, rtol=1e-4, atol=1e-5)
    decoded = jax.jit(functools.partial(vqgan().apply, method="decode_indices"))(variables, quantized.indices)
    np.testing.assert_allclose(decoded, recon, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(variables, getkey):
    images = jax.random.uniform(getkey(), (2, 8, 8, 3), minval=-1.0)
    together = reconstruct(vqgan(), variables, images)[0]
    other = reconstruct(vqgan(), variables, images.at[0].set(1.0))[0]
    np.testing.assert_allclose(together[1], other[1], atol=1e-5)
    assert np.abs(together[0] - other[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("attn_resolutions", "encoder", "decoder"),
    [
        ((), set(), set()),
        ((8,), {"level_1_attn_0"}, {"level_1_attn_0", "level_1_attn_1"}),
        ((16,), {"level_0_attn_0"}, {"level_0_attn_0", "level_0_attn_1"}),
    ],
)
@pytest.mark.parametrize("side", [16, 32])
def test_attention_stands_at_the_named_levels_whatever_the_image(attn_resolutions, encoder, decoder, side):
    model = vqgan(attn_resolutions=attn_resolutions)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]

    def names(part):
        return {name for name in params[part] if "attn" in name}

    assert names("encoder") == encoder | {"middle_attn"}
    assert names("decoder") == decoder | {"middle_attn"}


# Resampling: with a kernel of a single 1 a convolution only chooses pixels.


def one_hot_kernel(y: int, x: int, channels: int):
    kernel = jnp.zeros((3, 3, channels, channels)).at[y, x].set(jnp.eye(channels))
    return {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(channels)}}}


def test_downsample_pads_below_and_to_the_right_only(getkey):
    x = jax.random.normal(getkey(), (1, 6, 8, 2))

    def chosen(dy, dx):
        return Downsample().apply(one_hot_kernel(dy, dx, 2), x)

    np.testing.assert_array_equal(chosen(0, 0), x[:, ::2, ::2])
    np.testing.assert_array_equal(chosen(1, 1), x[:, 1::2, 1::2])
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_array_equal(chosen(2, 2), padded[:, 2::2, 2::2])
    assert not chosen(2, 2)[:, -1].any()
    assert not chosen(2, 2)[:, :, -1].any()


def test_upsample_repeats_every_pixel_four_times(getkey):
    x = jax.random.normal(getkey(), (1, 3, 2, 2))
    doubled = np.asarray(x).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(Upsample().apply(one_hot_kernel(1, 1, 2), x), doubled)


# Normalisation


def group_norm_float64(x, scale, bias):
    x = np.asarray(x, np.float64)
    groups = x.reshape(x.shape[0], -1, 32, x.shape[-1] // 32)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-6)
    return normed.reshape(x.shape) * scale + bias


@pytest.mark.parametrize(("mean", "std", "atol"), [(0.0, 1.0, 1e-5), (3.0, 1e-3, 1e-3), (1000.0, 1.0, 1e-3)])
def test_group_norm_equals_float64(getkey, mean, std, atol):
    x = mean + std * jax.random.normal(getkey(), (2, 5, 7, 64))
    scale, bias = jax.random.normal(getkey(), (64,)), jax.random.normal(getkey(), (64,))
    out = GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(out, group_norm_float64(x, np.asarray(scale), np.asarray(bias)), atol=4 * atol)


def test_group_norm_equals_flaxs_with_its_gradients(getkey):
    x, cotangent = jax.random.normal(getkey(), (2, 6, 6, 64)), jax.random.normal(getkey(), (2, 6, 6, 64))
    params = {"scale": jax.random.normal(getkey(), (64,)), "bias": jax.random.normal(getkey(), (64,))}
    flaxs = nn.GroupNorm(num_groups=32, epsilon=1e-6, use_fast_variance=False)
    ours, our_vjp = jax.vjp(lambda p, x: GroupNorm().apply({"params": p}, x), params, x)
    theirs, their_vjp = jax.vjp(lambda p, x: flaxs.apply({"params": p}, x), params, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), our_vjp(cotangent), their_vjp(cotangent))


def test_group_norm_ignores_shift_and_scale_of_a_group(getkey):
    x = jax.random.normal(getkey(), (1, 4, 4, 64))
    variables = GroupNorm().init(getkey(), x)
    factors = jnp.repeat(jnp.arange(1.0, 33.0), 2)
    moved = GroupNorm().apply(variables, (x + 2.0) * factors[None, None, None])
    np.testing.assert_allclose(moved, GroupNorm().apply(variables, x), atol=1e-4)


def test_group_norm_names_channels_that_do_not_fit(getkey):
    with pytest.raises(ValueError, match=r"multiple of the 32 groups.*48"):
        GroupNorm().init(getkey(), jnp.zeros((1, 2, 2, 48)))


@pytest.mark.parametrize("mean", [0.0, 10.0, 200.0])
def test_bfloat16_norms_lose_only_what_rounding_their_input_does(getkey, mean):
    """Far from zero bfloat16 could not even hold the mean, and one pass over it could cancel."""
    x = mean + jax.random.normal(getkey(), (2, 32, 32, 64))
    rounded = x.astype(jnp.bfloat16)
    variables = GroupNorm().init(getkey(), x)
    narrow = GroupNorm(jnp.bfloat16).apply(variables, rounded)
    assert narrow.dtype == jnp.bfloat16
    exact, of_rounded = (group_norm_float64(v, 1.0, 0.0) for v in (x, rounded))
    lost_to_input = np.abs(of_rounded - exact).max()
    np.testing.assert_allclose(np.asarray(narrow, np.float64), of_rounded, rtol=2**-8, atol=0.2 * lost_to_input)


def test_bfloat16_computes_in_bfloat16_and_gives_float32_images(variables, getkey):
    model, images = vqgan(dtype=jnp.bfloat16), jax.random.uniform(getkey(), (2, 8, 8, 3), minval=-1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(model.init, getkey(), images))} == {
        jnp.dtype(jnp.float32)
    }
    recon, out = reconstruct(model, variables, images)
    assert recon.dtype == out.latents.dtype == jnp.float32
    wide = decode(vqgan(), variables, out.quantized)
    assert 0 < np.abs(recon - wide).max() < 0.1 * np.abs(wide).max()


# Blocks


def test_attention_is_blind_to_the_order_of_positions(getkey):
    x, order = jax.random.normal(getkey(), (1, 4, 4, 32)), jax.random.permutation(getkey(), 16)
    variables = AttnBlock().init(getkey(), x)

    def shuffle(x):
        return x.reshape(1, 16, 32)[:, order].reshape(1, 4, 4, 32)

    np.testing.assert_allclose(
        AttnBlock().apply(variables, shuffle(x)), shuffle(AttnBlock().apply(variables, x)), atol=1e-5
    )


def test_attention_equals_its_formula(getkey):
    x = jax.random.normal(getkey(), (1, 3, 2, 32))
    variables = AttnBlock().init(getkey(), x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    normed = group_norm_float64(x, p["norm"]["scale"], p["norm"]["bias"]).reshape(6, 32)
    q, k, v = (normed @ p[name]["kernel"][0, 0] + p[name]["bias"] for name in "qkv")
    weights = np.exp(q @ k.T / np.sqrt(32))
    weights /= weights.sum(-1, keepdims=True)
    out = np.asarray(x, np.float64).reshape(6, 32) + (weights @ v) @ p["out"]["kernel"][0, 0] + p["out"]["bias"]
    np.testing.assert_allclose(AttnBlock().apply(variables, x).reshape(6, 32), out, atol=1e-5)


@pytest.mark.parametrize(("channels", "shortcut"), [(32, False), (64, True)])
def test_a_residual_block_is_its_shortcut_where_its_last_kernel_is_zero(getkey, channels, shortcut):
    x = jax.random.normal(getkey(), (1, 4, 4, 32))
    params = ResBlock(channels).init(getkey(), x)["params"]
    assert ("shortcut" in params) == shortcut
    params["conv_2"] = jax.tree.map(jnp.zeros_like, params["conv_2"])
    p = params.get("shortcut", {"kernel": jnp.eye(32)[None, None], "bias": jnp.zeros(32)})
    expected = jnp.einsum("bhwc,cd->bhwd", x, p["kernel"][0, 0]) + p["bias"][None, None, None]
    np.testing.assert_allclose(ResBlock(channels).apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.slow
def test_remat_computes_convolutions_again_only_where_nothing_is_kept(variables, getkey):
    """And changes no gradient, with the same dropout."""
    images, key = jax.random.uniform(getkey(), (2, 8, 8, 3), minval=-1.0), getkey()
    grads, convolutions = {}, {}
    for policy in REMAT:
        model = vqgan(dropout=0.5).clone(remat=policy)

        def loss(params, model=model):
            recon, quantized = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
            return jnp.mean(jnp.abs(recon - images)) + quantized.loss

        grads[policy] = jax.jit(jax.grad(loss))(variables["params"])
        convolutions[policy] = str(jax.make_jaxpr(jax.grad(loss))(variables["params"])).count("conv_general_dilated[")
    for policy in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads["none"], grads[policy])
    assert convolutions["none"] == convolutions["dots"] < convolutions["full"]


def test_dropout_is_in_training_only(variables, getkey):
    model, images = vqgan(dropout=0.5), jax.random.uniform(getkey(), (2, 8, 8, 3), minval=-1.0)
    still, quantized = reconstruct(model, variables, images)
    np.testing.assert_array_equal(still, reconstruct(vqgan(), variables, images)[0])

    @jax.jit
    def latents(key):
        return model.apply(variables, images, train=True, rngs={"dropout": key}, method="encode").latents

    noisy = [latents(getkey()) for _ in range(2)]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
    assert np.abs(noisy[0] - quantized.latents).max() > 1e-3
