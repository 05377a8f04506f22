"""The sliding window, token for token against upstream's rule written plainly: one whole forward for every code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from untrained import randomised

from vqgan_jax import prior as priors
from vqgan_jax.conditions.label import Unconditional
from vqgan_jax.convert.infer import GPT as UPSTREAM
from vqgan_jax.nn.transformer import Transformer
from vqgan_jax.prior import CodePrior
from vqgan_jax.sampling import Settings

VOCAB, WINDOW, BATCH = 24, (4, 4), 2
# Compiling takes most of the time here: this halves it.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
GREEDY, DRAWN = Settings(greedy=True), Settings(temperature=1.5)


@dataclasses.dataclass(frozen=True)
class Tokens(Unconditional):
    """A condition of so many tokens; the last of its vocabulary is the null token."""

    count: int

    @property
    def length(self):
        return self.count

    @property
    def num_values(self):
        return 7


def prior(length, **fields):
    """With as many condition tokens, in rows of the embedding behind the codes'."""
    fields = UPSTREAM | {"max_len": length + 15, "vocab_size": VOCAB, "extra_vocab": 7} | fields
    module = Transformer(2, 32, 4, **fields)
    return CodePrior(module, Tokens(count=length), WINDOW, "raster")


CLASS = prior(1)
MAP = prior(16)  # a token for each code
ROPE = prior(
    3,
    positions="rope2d",
    coordinates=((0, 0),) * 3 + tuple((k // 4, k % 4) for k in range(15)),
    bidirectional_prefix=3,
    qk_norm=True,
)


@functools.cache
def parameters(model):
    init = lambda: model.network.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return randomised(jax.eval_shape(init), 0.3)


def condition(model, grid, seed=5):
    """Tokens of each image; of `MAP` one for each place in the grid."""
    shape = grid if model is MAP else (model.condition.length,)
    return jax.random.randint(jax.random.key(seed), (BATCH, *shape), 0, 6)


def prefix_at(tokens):
    """Of each image's tokens: all of them, or those in the window."""

    def at(row, column):
        if tokens.ndim == 2:
            return tokens
        return jax.lax.dynamic_slice(tokens, (0, row, column), (len(tokens), *WINDOW)).reshape(-1, 16)

    return at


@functools.cache
def sampler(model, grid, rule, stride):
    @fast_jit
    def sample(params, tokens, keys, settings, prompt, known):
        return priors.sample_larger(
            model, params, prefix_at(tokens), grid, keys, settings, prompt, known, rule=rule, stride=stride
        )

    return sample


@functools.partial(fast_jit, static_argnums=0)
def forward(module, params, sequence):
    return module.apply({"params": params}, sequence)


@fast_jit
def choose(logits, keys, k, settings):
    """Greedy or drawn, as the settings say."""
    if settings.greedy:
        return jnp.argmax(logits, axis=-1)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
    return jax.vmap(jax.random.categorical)(keys, logits / settings.temperature)


def start(p, length, window, rule):
    """Upstream's branches, of the middle in the window's second half; for scenes it is in the first."""
    left = window // 2 if rule == "center" else window // 2 - 1
    if p <= left:
        return 0
    if length - p < window - left:
        return length - window
    return p - left


def restated(model, grid, rule, stride, params, tokens, keys, settings, prompt, known):
    """No cache, no runs: for each code a whole forward of its window. Codes not drawn yet are other junk."""
    (height, width), (h, w), s = grid, WINDOW, model.condition.length
    prompt, known, tokens = np.asarray(prompt), np.asarray(known), np.asarray(tokens)
    codes = np.random.default_rng(0).integers(0, VOCAB, prompt.shape)
    for k in range(height * width):
        i, j = divmod(k, width)
        top, left = (start(p // stride * stride, side, part, rule) for p, side, part in ((i, height, h), (j, width, w)))
        c = tokens if tokens.ndim == 2 else tokens[:, top : top + h, left : left + w].reshape(BATCH, -1)
        z = codes[:, top : top + h, left : left + w].reshape(BATCH, -1)
        logits = lambda c, z=z, at=s + (i - top) * w + (j - left) - 1: forward(
            model.network, params, jnp.asarray(np.concatenate([c + VOCAB, z], axis=1)[:, :-1])
        )[:, at]
        guided = logits(c)
        if settings.guidance is not None:
            assert settings.schedule == "linear"
            null = logits(np.full_like(c, 6))
            guided = null + (1 + (settings.guidance - 1) * k / (height * width)) * (guided - null)
        drawn = np.asarray(choose(guided, keys, k, settings))
        codes[:, i, j] = np.where(known[:, i, j], prompt[:, i, j], drawn)
    return codes


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(2), BATCH)


def given(grid, share=0.0):
    """Codes, and which of them are known: scattered."""
    prompt = jax.random.randint(jax.random.key(3), (BATCH, *grid), 0, VOCAB)
    return prompt, jax.random.uniform(jax.random.key(4), prompt.shape) < share


# Where the window is


def test_origins_are_upstreams():
    """Of the paper's window of 16 codes."""
    center = [0] * 9 + list(range(1, 26)) + [26] * 8
    np.testing.assert_array_equal(priors.origins(42, 16, "center"), center)
    scene = [0] * 8 + list(range(1, 16)) + [16] * 9
    np.testing.assert_array_equal(priors.origins(32, 16, "scene"), scene)
    for rule in priors.RULES:
        for length, window in ((4, 4), (5, 4), (7, 4), (9, 6), (40, 16)):
            expected = [start(p, length, window, rule) for p in range(length)]
            np.testing.assert_array_equal(priors.origins(length, window, rule), expected)


def test_a_stride_moves_the_window_less_often_and_never_past_its_codes():
    np.testing.assert_array_equal(priors.origins(12, 4, "center", 2), [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8])
    for rule in priors.RULES:
        for window in (2, 3, 4, 7, 16):
            for stride in range(1, window // 2 + 1):
                for length in range(window, 3 * window):
                    origin = priors.origins(length, window, rule, stride)
                    local = np.arange(length) - origin
                    assert local.min() >= 0
                    assert local.max() < window
                    assert origin[0] == 0
                    assert origin[-1] == length - window


@pytest.mark.parametrize("rule", priors.RULES)
@pytest.mark.parametrize("grid", [(4, 4), (7, 9), (9, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_runs_are_every_code_once_in_order_and_in_a_window_that_stands(grid, rule, stride):
    found, seen = priors.runs(grid, WINDOW, rule, stride), []
    for first, count, row, column, before in zip(*found, strict=True):
        i, j = np.divmod(np.arange(first, first + count), grid[1])
        np.testing.assert_array_equal(priors.origins(grid[0], 4, rule, stride)[i], row)
        np.testing.assert_array_equal(priors.origins(grid[1], 4, rule, stride)[j], column)
        np.testing.assert_array_equal((i - row) * 4 + j - column, before + np.arange(count))
        seen.append(i * grid[1] + j)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(grid[0] * grid[1]))
    origin = list(zip(found.row, found.column, strict=True))
    assert all(a != b for a, b in zip(origin[1:], origin[:-1], strict=True))  # none could be longer


def test_a_window_as_wide_as_the_grid_stands_for_whole_rows():
    np.testing.assert_array_equal(priors.runs((4, 4), WINDOW, "center").count, [16])
    np.testing.assert_array_equal(priors.runs((7, 4), WINDOW, "center").count, [12, 4, 4, 8])
    np.testing.assert_array_equal(priors.runs((16, 64), (16, 16), "center", 8).count[:7], [16, 8, 8, 8, 8, 8, 8])


def test_refills_are_no_longer_than_they_must_be():
    assert priors.buckets(np.array([0])) == [0]
    assert priors.buckets(np.array([0, 8, 8, 8, 8, 15])) == [8, 15]
    before = priors.runs((16, 64), (16, 16), "center").before
    assert before.max() == 248  # of 255: the last rows need almost the whole window
    before = priors.runs((64, 64), (16, 16), "center").before
    assert priors.buckets(before) == [136, 248]  # s + 8 * 16 + 8 inside


# Token for token

CASES = {  # prior, grid, rule, stride, settings, share of known codes
    "class": (CLASS, (7, 9), "center", 1, DRAWN, 0.2),
    "map, guided": (MAP, (6, 7), "scene", 1, GREEDY.replace(guidance=2.0, schedule="linear"), 0.0),
    "rotary, both ways, stride": (ROPE, (7, 9), "scene", 2, DRAWN, 0.2),
    "narrow, stride": (CLASS, (9, 4), "center", 2, DRAWN, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_a_whole_forward_for_each(case, keys):
    model, grid, rule, stride, settings, share = CASES[case]
    params, tokens, (prompt, known) = parameters(model), condition(model, grid), given(grid, share)
    say = (prompt, known) if share else (None, None)
    codes = sampler(model, grid, rule, stride)(params, tokens, keys, settings, *say)
    expected = restated(model, grid, rule, stride, params, tokens, keys, settings, prompt, known)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == jnp.int32
    assert min(len(np.unique(row)) for row in codes) > 4  # or agreeing would be easy
    other = "scene" if rule == "center" else "center"
    moved = restated(model, grid, other, stride, params, tokens, keys, settings, prompt, known)
    assert (moved != expected).any()  # the rule matters


def test_the_priors_own_grid_is_sampled_as_the_prior_does(keys):
    settings = DRAWN.replace(guidance=3.0)
    params, tokens, (prompt, known) = parameters(MAP), condition(MAP, WINDOW), given(WINDOW, 0.2)
    codes = sampler(MAP, WINDOW, "center", 1)(params, tokens, keys, settings, prompt, known)
    sample = fast_jit(functools.partial(priors.sample, MAP))
    whole = sample(params, tokens.reshape(BATCH, -1), keys, settings, prompt, known)
    np.testing.assert_array_equal(codes, whole)


# What callers count on


@pytest.fixture(scope="module")
def large():
    """The sampler of the case "class", and its arguments."""
    grid = (7, 9)
    return sampler(CLASS, grid, "center", 1), (parameters(CLASS), condition(CLASS, grid)), given(grid, 0.2)


def test_values_change_without_a_new_compilation(large, keys):
    sample, (params, tokens), (prompt, known) = large
    sample(params, tokens, keys, DRAWN, prompt, known)
    before = sample._cache_size()
    changed = [
        sample(params, tokens, keys, DRAWN.replace(temperature=0.5), prompt, known),
        sample(params, tokens + 1, keys, DRAWN, prompt, ~known),
        sample(jax.tree.map(lambda leaf: 0.9 * leaf, params), tokens, keys, DRAWN, prompt, known),
    ]
    assert sample._cache_size() == before
    assert len({np.asarray(codes).tobytes() for codes in changed}) == 3


def test_rows_do_not_know_each_other(large, keys):
    sample, (params, tokens), (prompt, known) = large
    codes = sample(params, tokens, keys, DRAWN, prompt, known)
    swap = lambda rows: rows[::-1]
    swapped = sample(params, swap(tokens), swap(keys), DRAWN, swap(prompt), swap(known))
    np.testing.assert_array_equal(swap(swapped), codes)
    other = sample(params, tokens.at[1].set(0), keys.at[1].set(keys[0]), DRAWN, prompt.at[1].set(0), known)
    np.testing.assert_array_equal(other[0], codes[0])
    assert (other[1] != codes[1]).any()


def test_given_codes_stay_and_what_is_said_of_others_does_not_matter(large, keys):
    sample, (params, tokens), (prompt, known) = large
    codes = sample(params, tokens, keys, DRAWN, prompt, known)
    np.testing.assert_array_equal(codes[known], prompt[known])
    without = jnp.where(known, prompt, 0)
    np.testing.assert_array_equal(sample(params, tokens, keys, DRAWN, without, known), codes)


def test_a_few_rows_at_a_time_are_the_whole(large, keys):
    sample, (params, tokens), (prompt, known) = large
    whole = sample(params, tokens, keys, DRAWN, prompt, known)
    codes, row = prompt, jnp.arange(7)[None, :, None]
    for first in (0, 3, 6):
        codes = sample(params, tokens, keys, DRAWN, codes, known | (row < first) | (row >= first + 3))
    np.testing.assert_array_equal(codes, whole)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (dataclasses.replace(CLASS, order="spiral_in"), {}, "whose order is 'raster'; this one's is 'spiral_in'"),
        (CLASS, {"grid": (7, 3)}, "at least the 4 codes .* got 3. Sample a larger one and crop it"),
        (CLASS, {"grid": (3, 7)}, "at least the 4 codes .* got 3"),
        (CLASS, {"rule": "middle"}, "`rule` must be one of center, scene; got 'middle'"),
        (CLASS, {"stride": 3}, r"`stride` must be in 1 \.\. 2, half the window; got 3"),
        (CLASS, {"stride": 0}, r"`stride` must be in 1 \.\. 2"),
    ],
)
def test_what_cannot_be_is_said(model, arguments, message, keys):
    at = prefix_at(condition(CLASS, WINDOW))
    grid = arguments.pop("grid", (7, 9))
    with pytest.raises(ValueError, match=message):
        priors.sample_larger(model, {}, at, grid, keys, GREEDY, **arguments)
