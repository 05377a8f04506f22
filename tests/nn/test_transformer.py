"""The transformer: what it may see, that the cache changes nothing, and that its switches do what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.convert.infer import GPT as UPSTREAM
from vqgan_jax.nn import transformer
from vqgan_jax.nn.block import Block, rotate
from vqgan_jax.nn.forms import PartCache, WideCache
from vqgan_jax.nn.network import PriorNetwork
from vqgan_jax.nn.transformer import Cache, Transformer, causal_mask

LENGTH, VOCAB = 16, 20
GRID = tuple((i // 4, i % 4) for i in range(LENGTH))
VARIANTS = {
    "gpt": {},
    "prefix": {"bidirectional_prefix": 5},
    "llama": {
        "norm": "rms",
        "mlp": "swiglu",
        "positions": "rope2d",
        "coordinates": GRID,
        "qk_norm": True,
        "bias": False,
    },
}
VARIANTS["adaln"] = VARIANTS["llama"] | {"adaln": True}
VARIANTS["target"] = {"positions": "learned_target"}
VARIANTS["blank"] = VARIANTS["llama"] | {"positions": "rope2d_blank", "coordinates": (None, *GRID[1:]), "num_heads": 2}
PUBLISHED = {  # layers, width, heads, vocabulary, positions
    304_932_864: (24, 1024, 16, 1024, 512),
    801_798_400: (24, 1664, 16, 1024, 256),
    1_410_640_896: (48, 1536, 16, 16384, 256),
    975_876_352: (40, 1408, 16, 8192, 348),
    1_045_638_144: (36, 1536, 16, 8192, 348),
}


@functools.cache
def model(variant: str, **changes):
    fields = UPSTREAM | {"depth": 3, "width": 32, "num_heads": 4} | VARIANTS[variant] | changes
    module = Transformer(max_len=LENGTH, vocab_size=VOCAB, **fields)

    @jax.jit
    def init():
        params = module.init(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, noisy)

    return module, init()


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, tokens):
    return module.apply({"params": params}, tokens)


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(2), (2, LENGTH), 0, VOCAB)


@pytest.mark.parametrize(("count", "shape"), PUBLISHED.items())
def test_published_parameter_counts(count, shape):
    depth, width, heads, vocab, positions = shape
    module = Transformer(depth, width, heads, max_len=positions, vocab_size=vocab, **UPSTREAM)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


FEW = ("gpt", "prefix", "target")
MANY = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in FEW]


@pytest.mark.parametrize("variant", [*FEW, *MANY])
def test_no_logit_sees_a_later_token(variant, tokens):
    """By gradients: of each position's logits at each position's embedding."""
    module, params = model(variant)

    @jax.jit
    def logits(shift):
        embedded = functools.partial(module.apply, {"params": params})
        x = embedded(tokens[:1], method="embed") + shift[None]
        rotations = module.rotations(0, LENGTH)
        mask, condition = causal_mask(LENGTH, module.bidirectional_prefix), embedded(tokens[:1], method="condition")
        for layer in module.prepare(params).layers:
            x, _ = Block(**module.block_fields).apply({"params": layer}, x, mask, rotations, False, condition)
        return embedded(x, method="readout")[0]

    zero = jnp.zeros((LENGTH, 32))
    np.testing.assert_allclose(logits(zero), apply(module, params, tokens[:1])[0], atol=2e-6)
    seen = np.abs(jax.jit(jax.jacobian(lambda shift: logits(shift).sum(-1)))(zero)).max(-1)
    np.testing.assert_array_equal(seen > 0, np.asarray(causal_mask(LENGTH, module.bidirectional_prefix)))


def stepped(network, params, tokens, prefix, places=None):
    """Logits of every position from the last of the prefix on, token by token."""
    weights = network.prepare(params)
    step = jax.jit(network.step, donate_argnums=1)
    logits, cache = jax.jit(network.prefill, static_argnums=2)(weights, tokens[:, :prefix], LENGTH, places)
    found = [logits]
    for position in range(prefix, LENGTH):
        logits, cache = step(weights, cache, tokens[:, position], jnp.asarray(position))
        found.append(logits)
    assert step._cache_size() == 1
    return jnp.stack(found, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("prefix", "cache", "few"), [(5, Cache, 32), (9, PartCache, 32), (9, WideCache, 32), (5, WideCache, 1)]
)
def test_the_cached_step_is_the_full_forward_at_every_position(variant, prefix, cache, few, tokens, monkeypatch):
    monkeypatch.setattr(transformer, "FEW", few)
    module, params = model(variant)
    found = stepped(module.clone(cache=cache), params, tokens, prefix)
    np.testing.assert_allclose(found, apply(module, params, tokens)[:, prefix - 1 :], atol=1e-5)


class Recomputed(Transformer):
    """With the steps of a network that keeps nothing."""

    prepare, prefill, step = PriorNetwork.prepare, PriorNetwork.prefill, PriorNetwork.step


@pytest.mark.slow
def test_a_network_that_keeps_nothing_has_the_same_steps(tokens):
    module, params = model("llama")
    fields = UPSTREAM | {"depth": 3, "width": 32, "num_heads": 4} | VARIANTS["llama"]
    again = Recomputed(max_len=LENGTH, vocab_size=VOCAB, **fields)
    places = jnp.asarray([GRID[:3], [(2, 7), (0, -1), (3, 3)]], jnp.float32)
    found = (stepped(network, params, tokens, 5, places) for network in (module, again))
    np.testing.assert_allclose(*found, atol=1e-5)
    last = (
        network.prefill(network.prepare(params), tokens, LENGTH, None, jnp.asarray(8))[0] for network in (module, again)
    )
    np.testing.assert_allclose(*last, atol=1e-5)


def test_the_first_positions_may_stand_elsewhere_in_each_example(tokens):
    """Where `coordinates` has them nothing changes; elsewhere it is a model of other coordinates, also with a cache."""
    module, params = model("llama")
    elsewhere = [(2, 7), (0, -1), (3, 3)]
    moved, _ = model("llama", coordinates=(*elsewhere, *GRID[3:]))
    both = jnp.asarray([GRID[:3], elsewhere], jnp.float32)
    found = jax.jit(lambda params, tokens, places: module.apply({"params": params}, tokens, places=places))(
        params, tokens, both
    )
    np.testing.assert_allclose(found[0], apply(module, params, tokens)[0], atol=1e-5)
    np.testing.assert_allclose(found[1], apply(moved, params, tokens)[1], atol=1e-5)
    assert np.abs(found[1] - apply(module, params, tokens)[1]).max() > 1e-3
    np.testing.assert_allclose(stepped(module, params, tokens, 5, both), found[:, 4:], atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "remat"),
    [("gpt", "full"), *(pytest.param(name, "dots", marks=pytest.mark.slow) for name in ("gpt", "adaln"))],
)
def test_remat_changes_no_gradient(variant, remat, tokens):
    def gradient(module, params):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(module.apply({"params": p}, tokens)))))(params)

    plain, params = model(variant)
    again, _ = model(variant, remat=remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        *(gradient(m, params) for m in (plain, again)),
    )


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in range(2))
    turned = lambda x, angle: rotate(x, jnp.stack([jnp.cos(angle), jnp.sin(angle)])[None, None])
    angle = jnp.asarray([0.3, 0.7, 0.1, 2.0])
    np.testing.assert_allclose(jnp.linalg.norm(turned(q, angle)), jnp.linalg.norm(q), rtol=1e-6)
    products = [jnp.sum(turned(q, s + angle) * turned(k, s + 2 * angle)) for s in (0.0, 5.0)]
    np.testing.assert_allclose(*products, rtol=1e-5)


def test_half_of_the_pairs_turn_by_the_row_and_half_by_the_column():
    rotations = model("llama")[0].rotations(0, LENGTH)
    assert rotations.shape == (1, LENGTH, 2, 4)
    angles = np.array([2.0, 2.0 / 100, 3.0, 3.0 / 100])
    np.testing.assert_allclose(rotations[0, 4 * 2 + 3], [np.cos(angles), np.sin(angles)], rtol=1e-6)


def test_a_blank_position_gives_every_query_the_logit_zero_and_asks_for_nothing():
    """Then all of what it sees counts alike for it, and its key is one like any zero."""
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, 2, 16))
    turned = rotate(x, model("blank")[0].rotations(0, LENGTH))
    np.testing.assert_array_equal(turned[:, 0], 0.0)
    np.testing.assert_array_equal(turned[:, 1:], rotate(x, model("llama", num_heads=2)[0].rotations(0, LENGTH))[:, 1:])


def test_a_token_reads_its_own_position_and_that_of_its_target(tokens):
    """By gradients: of each position's embedding at every row of both tables, in the own order and in another."""
    module, params = model("target")
    at = jax.random.permutation(jax.random.key(5), LENGTH + 1)
    for order in (None, at[None]):
        embed = lambda tables, order=order: module.apply(
            {"params": params | tables}, tokens[:1], at=order, method="embed"
        )[0].sum(-1)
        read = jax.jacobian(embed)({name: params[name] for name in ("positions", "targets")})
        expected = np.eye(LENGTH + 1)[np.arange(LENGTH + 1) if order is None else at]
        np.testing.assert_array_equal(read["positions"].any(-1), expected[:-1])
        np.testing.assert_array_equal(read["targets"].any(-1), expected[1:])


@pytest.mark.slow
def test_a_modulated_block_is_a_plain_one_of_other_norms_and_kernels():
    """Under each condition: a shift and a scale go into the norm in front of a branch, a gate into its last kernel."""
    module, params = model("gpt", adaln=True)
    layer, mask = jax.tree.map(np.asarray, module.prepare(params).layers[0]), causal_mask(5)
    x, condition = jax.random.normal(jax.random.key(3), (2, 5, 32)), jax.random.normal(jax.random.key(4), (2, 32))

    def run(adaln):
        block = Block(**module.block_fields | {"adaln": adaln})
        return jax.jit(lambda layer, *rest: block.apply({"params": layer}, rest[0], mask, None, False, *rest[1:])[0])

    modulated, plain = run(True), run(False)
    found = modulated(layer, x, condition)
    rows = np.einsum("bm,mkn->bkn", condition / (1 + np.exp(-condition)), layer["modulation"]["kernel"])
    for i, row in enumerate(rows + layer["modulation"]["bias"]):
        folded = dict(layer)
        for norm, last, (shift, scale, gate) in (("norm1", "proj", row[:3]), ("norm2", "down", row[3:])):
            folded[norm] = {name: leaf * (1 + scale) for name, leaf in layer[norm].items()}
            folded[norm]["bias"] = folded[norm]["bias"] + shift
            folded[last] = {name: leaf * gate for name, leaf in layer[last].items()}
        np.testing.assert_allclose(found[i : i + 1], plain(folded, x[i : i + 1]), atol=1e-5)
    assert np.abs(found - modulated(layer, x, condition[::-1])).max() > 0.1


def test_a_modulation_of_zeros_leaves_the_embeddings_as_they_are(tokens):
    """The blocks are the identity, whatever else is in them; so a fresh modulation is."""
    module, params = model("adaln")
    fresh = jax.jit(module.init)(jax.random.key(0), tokens)["params"]["layers"]["modulation"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(fresh))
    blind = {"params": params | {"layers": params["layers"] | {"modulation": fresh}}}
    expected = module.apply(blind, module.apply(blind, tokens, method="embed"), method="readout")
    np.testing.assert_allclose(apply(module, blind["params"], tokens), expected, atol=1e-6)


def test_a_modulation_needs_a_condition_of_one_token():
    with pytest.raises(ValueError, match=r"must be 'class' or 'none' for transformer.adaln.* this one has 2"):
        Transformer(adaln=True).bind(vocab_size=8, extra_vocab=3, prefix=[(0, 0), (0, 1)], codes=[(0, 0), (0, 1)])


@pytest.mark.parametrize("rate", ["dropout", "attn_dropout"])
def test_dropout_is_of_training_only(rate, tokens):
    module, params = model("gpt", **{rate: 0.5})
    plain = apply(model("gpt")[0], params, tokens)
    np.testing.assert_array_equal(apply(module, params, tokens), plain)
    rngs = lambda seed: {"dropout": jax.random.key(seed)}
    train = jax.jit(lambda seed: module.apply({"params": params}, tokens, train=True, rngs=rngs(seed)))
    assert np.abs(train(0) - plain).max() > 0.1
    assert np.abs(train(0) - train(1)).max() > 0.1


@pytest.mark.parametrize("rate", ["dropout", "attn_dropout"])
def test_attention_weights_have_a_rate_of_their_own(rate):
    """A sequence of one token: each head sees it with weight 1, of which `attn_dropout` makes 0 or 2 for all channels.

    `dropout` makes 0 or 2 of each channel of the branch. The MLP adds nothing here.
    """
    x, mask = jax.random.normal(jax.random.key(0), (64, 1, 8)), causal_mask(1)
    block, dropped = Block(8, 1), Block(8, 1, **{rate: 0.5})
    params = jax.jit(block.init, static_argnums=4)(jax.random.key(1), x, mask, None, False)["params"]
    params = jax.tree.map(lambda leaf: 10 * leaf, params)  # so that no factor is lost in rounding
    params["down"] = jax.tree.map(jnp.zeros_like, params["down"])

    @jax.jit
    def branches(params):
        run = lambda module, **rest: module.apply({"params": params}, x, mask, None, **rest)[0] - x
        return run(dropped, train=True, rngs={"dropout": jax.random.key(2)}), run(block, train=False)

    factors = np.round(np.divide(*branches(params)), 1)[:, 0]
    np.testing.assert_array_equal(np.unique(np.abs(factors)), [0, 2])
    assert 0.3 < np.mean(factors == 0) < 0.7
    assert (factors == factors[:, :1]).all() == (rate == "attn_dropout")


def test_bfloat16_keeps_logits_and_parameters_in_float32(tokens):
    module, params = model("llama", dtype=jnp.bfloat16)
    logits = apply(module, params, tokens)
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    exact = apply(model("llama")[0], params, tokens)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_an_input_longer_than_the_positions_is_an_error():
    module, params = model("gpt")
    with pytest.raises(ValueError, match="at most max_len 16 tokens; got 17"):
        module.apply({"params": params}, jnp.zeros((1, 17), jnp.int32))


def test_a_prefix_of_its_own_has_rows_behind_the_codes():
    module = Transformer(1, 32, 4, max_len=LENGTH, vocab_size=VOCAB, extra_vocab=3, **UPSTREAM)
    params = module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert params["embedding"].shape == (VOCAB + 3, 32)
    assert params["head"]["kernel"].shape == (32, VOCAB)
