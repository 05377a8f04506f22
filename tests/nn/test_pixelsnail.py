"""PixelSNAIL: what it may see, and that it is a distribution over grids of codes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

from vqgan_jax.nn.pixelsnail import ABOVE, CORNER, LEFT, PixelSNAIL, strictly_causal_attention


@functools.cache
def model(grid: tuple[int, int], vocab: int):
    """A network with a class in front, far from uniform, and its parameters."""
    module = PixelSNAIL(
        depth=2, num_res_blocks=1, width=8, num_heads=2, dropout=0.5, vocab_size=vocab, extra_vocab=3, grid=grid,
        dtype="float32",
    )  # fmt: skip
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return module, untrained.randomised(shapes, 0.5)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, tokens):
    return module.apply({"params": params}, tokens)


def test_no_logit_sees_its_own_code_or_a_later_one():
    """By gradients: of each code's logits at the row of the embedding of each token, of which no two are alike."""
    module, params = model((3, 4), 12)
    tokens = jnp.append(jnp.array([12]), jax.random.permutation(jax.random.key(0), 12)[:-1])

    @jax.jit
    def logits(embedding):
        return module.apply({"params": params | {"embedding": embedding}}, tokens[None])[0].sum(-1)

    seen = np.abs(jax.jacobian(logits)(params["embedding"])).max(-1)[:, tokens]
    np.testing.assert_array_equal(seen > 0, np.tri(12, dtype=bool))


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (ABOVE, [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]),
        (LEFT, [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]),
        (CORNER, [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]),
    ],
)
def test_a_convolution_sees_the_neighbours_that_its_name_says(conv, expected):
    """Of the position in the middle of the second row."""
    module = conv(1, dtype="float32")
    image = jnp.ones((1, 3, 5, 1))
    variables = module.init(jax.random.key(0), image)
    seen = jax.grad(lambda image: module.apply(variables, image)[0, 1, 2, 0])(image)[0, ..., 0]
    np.testing.assert_array_equal(seen != 0, np.array([*expected, [0] * 5], bool))


def test_the_probabilities_of_all_grids_of_a_class_sum_to_one():
    module, params = model((2, 2), 3)
    grids = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    for label in (3, 5):
        tokens = np.concatenate([np.full((len(grids), 1), label, np.int32), grids[:, :-1]], axis=1)
        log_p = jax.nn.log_softmax(apply(module, params, tokens))
        likelihood = np.take_along_axis(np.asarray(log_p, np.float64), grids[..., None], axis=-1).sum((1, 2))
        assert np.exp(likelihood).sum() == pytest.approx(1.0, abs=1e-5)
        assert np.exp(likelihood).max() > 2 / len(grids)  # not the uniform distribution, which would sum to 1 anyway


@pytest.mark.slow
def test_a_shorter_input_has_the_first_logits_of_a_longer_one():
    module, params = model((3, 4), 12)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 12)
    whole = apply(module, params, tokens)
    for length in (1, 2, 7):
        np.testing.assert_allclose(apply(module, params, tokens[:, :length]), whole[:, :length], atol=1e-5)
    with pytest.raises(ValueError, match="at most 12 tokens; got 13"):
        module.apply({"params": params}, jnp.zeros((1, 13), jnp.int32))


def test_attention_is_the_mean_of_values_before_by_hand():
    q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (1, 4, 2, 3))) for i in range(3))
    expected = np.zeros_like(v)
    for t, head in itertools.product(range(1, 4), range(2)):
        weights = np.exp(k[0, :t, head] @ q[0, t, head] / 3**0.5)
        expected[0, t, head] = weights @ v[0, :t, head] / weights.sum()
    np.testing.assert_allclose(strictly_causal_attention(*map(jnp.asarray, (q, k, v))), expected, atol=1e-6)


@pytest.mark.slow
def test_a_fresh_network_is_as_good_as_guessing():
    module, _ = model((3, 4), 12)
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 12)
    logits = apply(module, jax.jit(module.init)(jax.random.key(0), tokens)["params"], tokens)
    assert float(jnp.abs(logits).max()) < 0.5


@pytest.mark.parametrize(("changes", "name"), [({"order": "spiral_out"}, "'spiral_out'"), ({"width": 36}, "40")])
def test_what_does_not_fit_is_named(changes, name):
    with pytest.raises(ValueError, match=name):
        PixelSNAIL(**{"width": 40, "num_heads": 4} | changes).check()
