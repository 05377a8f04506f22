import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vqgan_jax.nn.discriminator import ActNorm, BatchNorm, PatchDiscriminator, PatchDiscriminatorV2, blur


@pytest.mark.parametrize(("num_layers", "field", "side"), [(3, 70, 128), (2, 34, 64)])
def test_the_receptive_field_by_gradients(getkey, num_layers, field, side):
    model = PatchDiscriminator(4, num_layers)
    images = jax.random.normal(getkey(), (1, side, side, 3))
    variables = jax.jit(model.init)(getkey(), images)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x)[0, 7, 7]))(images)
    for axes in ((0, 2, 3), (0, 1, 3)):
        seen = np.flatnonzero(np.abs(gradient).max(axes))
        assert seen[-1] - seen[0] + 1 == len(seen) == field


def test_widths_double_up_to_eightfold_and_batch_norm_makes_biases_idle():
    def shapes(norm):
        return jax.eval_shape(
            lambda key: PatchDiscriminator(4, 5, norm).init(key, jnp.zeros((2, 128, 128, 3)), train=True),
            jax.random.key(0),
        )["params"]

    widths = [shapes("batch")[f"conv_{i}"]["kernel"].shape[-1] for i in range(6)]
    assert widths == [4, 8, 16, 32, 32, 32]
    assert [("bias" in shapes(norm)["conv_1"]) for norm in ("batch", "act")] == [False, True]
    assert all("bias" in shapes("batch")[name] for name in ("conv_0", "conv_out"))


# BatchNorm


@pytest.fixture
def batch_norm(getkey):
    x = 3.0 + 2.0 * jax.random.normal(getkey(), (4, 5, 5, 2))
    return BatchNorm().init(getkey(), x, train=True), x


def test_init_does_not_touch_the_running_statistics(batch_norm):
    variables, _ = batch_norm
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [0, 0])
    np.testing.assert_array_equal(variables["batch_stats"]["var"], [1, 1])


def test_training_uses_the_batch_and_averages_it(batch_norm):
    variables, x = batch_norm
    out, changed = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 2)
    normed = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    expected = normed * np.asarray(variables["params"]["scale"]) + np.asarray(variables["params"]["bias"])
    np.testing.assert_allclose(out.reshape(-1, 2), expected, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics(batch_norm):
    variables, x = batch_norm
    params = variables["params"]
    variables = {"params": params, "batch_stats": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 9.0])}}
    out = BatchNorm().apply(variables, x, train=False)
    normed = (x - jnp.array([1.0, 2.0])[None, None, None]) / jnp.array([2.0, 3.0])[None, None, None]
    expected = normed * params["scale"][None, None, None] + params["bias"][None, None, None]
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(BatchNorm().apply(variables, x[:1], train=False), out[:1], atol=1e-6)


def test_statistics_of_a_sharded_batch_are_global(getkey):
    """Every device has other images: only global statistics give one device's result."""
    images = jax.random.normal(getkey(), (8, 32, 32, 3)) * jnp.arange(1.0, 9.0)[:, None, None, None]
    model = PatchDiscriminator(8, 2)
    variables = jax.jit(functools.partial(model.init, train=True))(getkey(), images)
    forward = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    rows = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), P("data"))
    alone, together = forward(images), forward(jax.device_put(images, rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, together)
    assert np.abs(forward(images[:1])[0] - alone[0][:1]).max() > 1e-2


def test_logits_of_bfloat16_are_float32(getkey):
    images = jax.random.normal(getkey(), (2, 32, 32, 3))
    wide, narrow = PatchDiscriminator(8, 2), PatchDiscriminator(8, 2, dtype=jnp.bfloat16)
    variables = jax.jit(functools.partial(wide.init, train=True))(getkey(), images)

    def judge(model):
        return jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)

    (out, changed), (reference, _) = judge(narrow), judge(wide)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype(jnp.float32)}
    assert np.abs(out - reference).max() < 0.1 * np.abs(reference).max()


# ActNorm


def test_act_norm_is_born_so_that_its_first_batch_comes_out_normalised(getkey):
    x = 5.0 + 3.0 * jax.random.normal(getkey(), (4, 6, 6, 3))
    out, variables = ActNorm().init_with_output(getkey(), x, train=True)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(out.std((0, 1, 2), ddof=1), 1.0, atol=1e-4)
    again = [ActNorm().apply(variables, 2.0 * x, train=train) for train in (True, False)]
    np.testing.assert_array_equal(again[0], again[1])
    scale, loc = variables["params"]["scale"], variables["params"]["loc"]
    np.testing.assert_allclose(again[0], (2.0 * x + loc[None, None, None]) * scale[None, None, None], rtol=1e-5)


# patch_v2


@pytest.mark.parametrize(("stages", "millions"), [(4, 7.43), (3, 1.91)])
def test_patch_v2_has_the_published_number_of_parameters(stages, millions):
    shapes = jax.eval_shape(PatchDiscriminatorV2(128, stages).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("side", "stages", "logits"), [(64, 4, 4), (64, 2, 16), (64, 1, 16), (40, 3, 5), (48, 1, 24)])
def test_patch_v2_has_16_rows_of_logits_where_16_divides_the_map(side, stages, logits):
    module = PatchDiscriminatorV2(32, stages)
    out = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, side, side, 3)))[0]
    assert (out.shape, out.dtype) == ((2, logits, logits), jnp.float32)


def test_patch_v2_does_not_mix_images(getkey):
    module, images = PatchDiscriminatorV2(32, 2), jax.random.normal(getkey(), (3, 16, 16, 3))
    variables = module.init(getkey(), images)
    assert variables.keys() == {"params"}, "no running statistics"
    whole, alone = (jax.jit(module.apply)(variables, x) for x in (images, images[1:2]))
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2)])
def test_blur_is_a_convolution_with_the_filter_at_stride_2(getkey, shape):
    x, line = jax.random.normal(getkey(), shape), np.array([1.0, 3.0, 3.0, 1.0])
    padded, kernel = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0))), np.outer(line, line) / 64
    rows, columns = shape[1] // 2, shape[2] // 2
    expected = np.zeros((shape[0], rows, columns, shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            expected[:, i, j] = np.einsum("bhwc,hw->bc", patch, kernel)
    np.testing.assert_allclose(blur(x), expected, atol=1e-6)


def test_a_width_without_whole_groups_is_refused():
    with pytest.raises(ValueError, match=r"multiple of the 32 groups of its norm; got 40\. Set it to 64"):
        PatchDiscriminatorV2(40).check()
