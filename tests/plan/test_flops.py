import jax
import jax.numpy as jnp
import pytest
from plan_cases import PAGES, TOKENIZER, mesh_of

from vqgan_jax import cli
from vqgan_jax.nn.layers import upsample_convolve
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.plan import hlo, lowering


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def convolution(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_product_of_matrices():
    assert lowering.flops(lambda a, b: jnp.tanh(a @ b), shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    assert lowering.flops(lambda a, b: jnp.einsum("bts,bsd->btd", a, b), shape(2, 3, 5), shape(2, 5, 7)) == 2 * 2 * 105


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_two_backward_passes_are_equally_dear(stride):
    """2 k^2 c_in c_out h w each; the zeros that a stride's backward pass inserts are free."""
    x, kernel = shape(2, 8, 8, 3), shape(3, 3, 3, 5)
    one = 2 * 9 * 3 * 5 * (8 // stride) ** 2 * 2
    assert lowering.flops(lambda x, k: convolution(x, k, stride), x, kernel) == one
    loss = lambda x, k: jnp.sum(jnp.square(convolution(x, k, stride)))
    assert lowering.flops(jax.grad(loss, argnums=1), x, kernel) == 2 * one
    assert lowering.flops(jax.grad(loss, argnums=(0, 1)), x, kernel) == 3 * one


def test_a_scan_counts_every_round_and_dead_code_nothing():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, x @ x.T), x, kernels)[0]

    assert lowering.flops(jax.jit(layers), shape(4, 6), shape(9, 6, 6)) == 9 * 2 * 4 * 6 * 6


def test_of_branches_the_dearest_counts():
    function = lambda x, y: jax.lax.cond(x[0, 0] > 0, lambda x, y: x @ y, lambda x, y: y, x, y)
    assert lowering.flops(function, shape(6, 6), shape(6, 6)) == 2 * 6**3


def test_restated_functions_count_as_they_are_defined():
    doubled = jax.grad(lambda x, k: jnp.sum(jnp.square(upsample_convolve(x, k))), argnums=(0, 1))
    assert lowering.flops(doubled, shape(2, 8, 8, 3), shape(3, 3, 3, 5)) == 3 * 2 * 9 * 3 * 5 * 16 * 16 * 2

    images = shape(1, 32, 32, 3)
    params = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)

    def count(lpips):
        step = jax.grad(lambda y, params, x: lpips.apply(params, x, y).sum())
        return lowering.flops(step, images, params, images)

    assert count(LPIPS(dtype=jnp.bfloat16)) == pytest.approx(count(LPIPS()), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "flags", "tolerance"),
    [
        (PAGES["prior"], [], 1e-3),
        # The compiler leaves out what a kernel multiplies beyond an image's edge: 1 - (1 - 2 / (3 w))^2 at w pixels.
        (TOKENIZER, ["--config.data.image_size=64", "--config.data.resize=(64,64)"], 0.05),
    ],
)
def test_a_training_step_needs_what_the_cpu_compiler_counts(page, flags, tolerance, monkeypatch):
    """Of the compiled program its products only, in a loop as often as they run: the rest is no model FLOP."""
    monkeypatch.setattr(lowering, "RESTATED", {})
    config = cli.load_config(page, flags)
    function, arguments = lowering.call(config, mesh_of(1), "step")
    program = hlo.read(function.lower(*arguments).compile().as_text())
    assert lowering.flops(function, *arguments) == pytest.approx(program.flops(), rel=tolerance)


def test_a_layer_by_hand_and_by_the_cost_analysis():
    """Without a loop and with few other operations the compiler's own count is the same, up to these."""
    x, kernel = shape(64, 256), shape(256, 512)
    loss = jax.grad(lambda kernel, x: jnp.sum(jnp.tanh(x @ kernel)))
    counted = jax.jit(loss).lower(kernel, x).compile().cost_analysis()["flops"]
    assert lowering.flops(loss, kernel, x) == 2 * 2 * 64 * 256 * 512
    assert lowering.flops(loss, kernel, x) == pytest.approx(counted, rel=0.02)
