"""Filters and guidance by hand; the loop over positions by a chain of which everything is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.sampling import SCHEDULES, Settings, check, draw, filtered, generate, guidance_scale, keep_top_k

V, T = 6, 12  # tokens of the chain, and how many are drawn


def probabilities(logits):
    """Of one row, rounded so that one may write them down."""
    return np.round(np.asarray(jax.nn.softmax(logits, axis=-1), np.float64), 5).tolist()


def survivors(probs, **settings):
    """Probabilities of the filtered distribution of one row of probabilities."""
    return probabilities(filtered(jnp.log(jnp.array([probs])), Settings(**settings))[0])


# Filters


def test_the_defaults_change_nothing():
    assert survivors([0.5, 0.3, 0.2]) == [0.5, 0.3, 0.2]


def test_top_k_keeps_what_ties_with_the_smallest_it_keeps():
    assert probabilities(keep_top_k(jnp.array([[1.0, 2.0, 2.0, 0.0]]), 1)[0]) == [0.0, 0.5, 0.5, 0.0]
    assert survivors([0.1, 0.4, 0.1, 0.4], top_k=3) == [0.1, 0.4, 0.1, 0.4]
    assert survivors([0.1, 0.4, 0.1, 0.4], top_k=2) == [0.0, 0.5, 0.0, 0.5]


def test_top_k_of_the_whole_vocabulary_keeps_all():
    assert survivors([0.5, 0.3, 0.2], top_k=3) == [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [0.0, 1.0, 0.0]),  # the likeliest always stays
        (0.45, [0.0, 1.0, 0.0]),
        (0.6, [0.375, 0.625, 0.0]),  # the token that crosses p stays
        (0.81, [0.3, 0.5, 0.2]),
        (1.0, [0.3, 0.5, 0.2]),
    ],
)
def test_top_p_by_hand(p, expected):
    assert survivors([0.3, 0.5, 0.2], top_p=p) == expected


def test_top_p_of_one_keeps_what_is_below_rounding():
    logits = jnp.array([[50.0, 0.0, -50.0, -80.0]])
    np.testing.assert_array_equal(filtered(logits, Settings(top_p=1.0)), logits)


def test_temperature_is_a_power_of_the_probabilities():
    assert survivors([0.4, 0.3, 0.2, 0.1], temperature=0.5) == [0.53333, 0.3, 0.13333, 0.03333]


def test_the_order_is_temperature_then_top_k_then_top_p_of_what_is_left():
    probs = [0.4, 0.3, 0.2, 0.1]
    assert survivors(probs, top_p=0.5) == [0.57143, 0.42857, 0.0, 0.0]
    assert survivors(probs, top_p=0.5, top_k=2) == [1.0, 0.0, 0.0, 0.0]  # four sevenths are before the second
    assert survivors(probs, top_p=0.5, temperature=0.5) == [1.0, 0.0, 0.0, 0.0]  # eight fifteenths are
    assert survivors(probs, top_p=0.35, temperature=2.0) == [0.53590, 0.46410, 0.0, 0.0]  # 0.325 of four roots is


def test_rows_are_filtered_each_by_itself():
    rows = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9], [0.2, 0.5, 0.3]]))
    together = filtered(rows, Settings(top_k=2, top_p=0.6))
    for i in range(3):
        np.testing.assert_array_equal(filtered(rows[i : i + 1], Settings(top_k=2, top_p=0.6))[0], together[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": V + 1}, r"`top_k` must be in 1 \.\. 6, the vocabulary; got 7"),
        ({"top_k": 0}, r"`top_k` must be in 1 \.\. 6"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\]; got 0.0"),
        ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\]; got 1.5"),
        ({"temperature": 0.0}, r"`temperature` must be above 0; got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be above 0"),
        ({"power": -1.0}, "`power` must be 0 or more"),
        ({"guidance": -0.5}, "`guidance` must be 0 or more"),
        ({"schedule": "sine"}, "`schedule` must be one of constant, linear, cosine; got 'sine'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check(Settings(**settings), V)


def test_settings_at_the_edge_of_their_range_pass():
    for settings in ({"top_k": V}, {"top_k": 1}, {"top_p": 1.0}, {"guidance": 0.0}, {"schedule": "cosine"}):
        assert check(Settings(**settings), V) is None


# Guidance


def test_guidance_schedules_by_hand():
    """At positions 0, 2 and 4 of 8, of scale 5."""
    half, eighth = 2.0, 4 * (1 - np.sqrt(0.5)) / 2  # of cos(pi / 2) and cos(pi / 4)
    for schedule, power, expected in (
        ("constant", 1.0, [5.0, 5.0, 5.0]),
        ("linear", 1.0, [1.0, 2.0, 3.0]),
        ("cosine", 1.0, [1.0, 1 + eighth, 1 + half]),
        ("cosine", 2.0, [1.0, 1 + 4 * (1 - np.cos(np.pi / 16)) / 2, 1 + eighth]),
        ("cosine", 0.5, [1.0, 1 + half, 1 + 4 * (1 - np.cos(np.pi * np.sqrt(0.5))) / 2]),
    ):
        settings = Settings(guidance=5.0, schedule=schedule, power=power)
        scales = [guidance_scale(settings, jnp.array(i), 8) for i in (0, 2, 4)]
        np.testing.assert_allclose(scales, expected, rtol=1e-6, err_msg=f"{schedule} {power}")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_scale_of_one_is_one_at_every_position(schedule):
    scales = [guidance_scale(Settings(guidance=1.0, schedule=schedule), jnp.array(i), T) for i in range(T)]
    assert scales == [1.0] * T


# The loop: a chain in which each token depends on the two before it, by one of two tables


def tables():
    """Logits of what follows: which table (with its condition, without), token before last, last token, token."""
    return np.random.default_rng(0).normal(size=(2, V, V, V)).astype(np.float32) * 2


def start(which):
    """The first token follows two zeros."""
    which = jnp.asarray(which)
    return jnp.asarray(tables())[which, 0, 0], (which, jnp.zeros(len(which), jnp.int32))


def step(cache, tokens, k):
    del k
    which, last = cache
    return jnp.asarray(tables())[which, last, tokens], (which, tokens)


@jax.jit
def chain(prompt, prompt_length, keys, settings):
    """Rows of the chain with its condition; with guidance also the half that goes without."""
    which = [0] * len(prompt) + [1] * len(prompt) * (settings.guidance is not None)
    known = jnp.broadcast_to(jnp.arange(T)[None] < jnp.reshape(prompt_length, (-1, 1)), prompt.shape)
    return generate(step, start(which), prompt, known, keys, settings)


def followed(prompt, lengths, scale=lambda k: 1.0):
    """The likeliest tokens, one by one, in NumPy."""
    table, out = tables(), []
    for row, length in zip(np.asarray(prompt), lengths, strict=True):
        tokens = [0, 0]
        for k in range(T):
            cond, null = table[:, tokens[-2], tokens[-1]]
            tokens.append(int(row[k]) if k < length else int(np.argmax(null + np.float32(scale(k)) * (cond - null))))
        out.append(tokens[2:])
    return np.array(out)


@pytest.fixture(scope="module")
def prompt():
    return jax.random.randint(jax.random.key(1), (8, T), 0, V)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(2), 8)


GREEDY, DRAWN = Settings(greedy=True), Settings(temperature=3.0, top_k=4)


@pytest.mark.parametrize("length", [0, 1, 5, T - 1, T])
def test_greedy_follows_the_chain_from_the_prompt(prompt, keys, length):
    tokens = chain(prompt, jnp.asarray(length), keys, GREEDY)
    np.testing.assert_array_equal(tokens, followed(prompt, [length] * 8))


def test_each_row_may_have_a_prompt_of_its_own_length(prompt, keys):
    lengths = np.array([0, 1, 2, 3, 7, 10, T - 1, T])
    tokens = chain(prompt, jnp.asarray(lengths), keys, GREEDY)
    np.testing.assert_array_equal(tokens, followed(prompt, lengths))
    drawn = chain(prompt, jnp.asarray(lengths), keys, DRAWN)
    for row, given, length in zip(drawn, prompt, lengths, strict=True):
        np.testing.assert_array_equal(row[:length], given[:length])


def test_what_stands_behind_the_prompt_does_not_matter(prompt, keys):
    drawn = chain(prompt, jnp.asarray(5), keys, DRAWN)
    np.testing.assert_array_equal(chain(prompt.at[:, 5:].set(0), jnp.asarray(5), keys, DRAWN), drawn)
    assert (drawn[:, 5:] != prompt[:, 5:]).any()


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_row_is_the_same_in_any_batch(prompt, keys, guidance):
    settings = DRAWN.replace(guidance=guidance)
    rows = chain(prompt, jnp.asarray(3), keys, settings)
    assert len(np.unique(rows[:, 3:], axis=0)) == 8  # its key is its own
    for first, last in ((0, 1), (7, 8), (2, 5)):
        alone = chain(prompt[first:last], jnp.asarray(3), keys[first:last], settings)
        np.testing.assert_array_equal(alone, rows[first:last])


def test_numbers_change_without_a_new_compilation(prompt, keys):
    before = chain._cache_size()
    results = [
        chain(prompt, jnp.asarray(length), keys, Settings(temperature, top_p, guidance, power, top_k=3))
        for length, temperature, top_p, guidance, power in (
            (0, 1.0, 1.0, 1.0, 1.0), (5, 2.0, 0.5, 3.0, 2.0), (T, 0.5, 0.9, 0.0, 0.5),
        )
    ]  # fmt: skip
    assert chain._cache_size() == before + 1
    assert len({result.tobytes() for result in map(np.asarray, results)}) == 3


def test_guidance_of_one_is_none(prompt, keys):
    plain = chain(prompt, jnp.asarray(2), keys, DRAWN)
    np.testing.assert_array_equal(chain(prompt, jnp.asarray(2), keys, DRAWN.replace(guidance=1.0)), plain)


@pytest.mark.parametrize(
    ("guidance", "schedule", "scale"),
    [
        (0.0, "constant", lambda k: 0.0),  # as without a condition
        (3.0, "constant", lambda k: 3.0),
        (3.0, "linear", lambda k: 1 + 2 * k / T),
        (3.0, "cosine", lambda k: 2 - np.cos(np.pi * (k / T) ** 2)),
    ],
)
def test_guidance_leads_the_chain_away_from_its_other_half(prompt, keys, guidance, schedule, scale):
    settings = Settings(greedy=True, guidance=guidance, schedule=schedule, power=2.0)
    expected = followed(prompt, [2] * 8, scale)
    np.testing.assert_array_equal(chain(prompt, jnp.asarray(2), keys, settings), expected)
    assert (expected != followed(prompt, [2] * 8)).any()


# Frequencies


def chi_square(counts, probs):
    """Pearson's statistic; tokens that cannot come must not have come."""
    counts, expected = counts[probs > 0], counts.sum() * probs[probs > 0]
    return float(np.sum((counts - expected) ** 2 / expected))


def test_tokens_come_as_often_as_their_probabilities_say():
    """Of 50,000 draws; below the 99.9th percentile of 4 degrees of freedom."""
    logits = jnp.log(jnp.array([0.3, 0.25, 0.2, 0.15, 0.07, 0.03]))
    settings = Settings(temperature=1.5, top_k=5, top_p=0.999)
    keys, probs = jax.random.split(jax.random.key(0), 50_000), np.array([0.3, 0.25, 0.2, 0.15, 0.07, 0.0]) ** (1 / 1.5)
    tokens = jax.jit(lambda keys: draw(jnp.broadcast_to(logits, (len(keys), V)), keys, settings))(keys)
    counts = np.bincount(tokens, minlength=V)
    assert counts[-1] == 0
    assert chi_square(counts, probs / probs.sum()) < 18.5


def test_the_chain_is_drawn_as_its_table_says():
    """Each row of the table by itself, so draws are independent of those before; 5 degrees of freedom each."""
    rows = 4_000
    keys, empty = jax.random.split(jax.random.key(3), rows), jnp.zeros((rows, T), jnp.int32)
    tokens = np.asarray(chain(empty, jnp.asarray(0), keys, Settings(temperature=2.0)))
    triples = np.lib.stride_tricks.sliding_window_view(tokens, 3, axis=1).reshape(-1, 3)
    counts = np.zeros((V, V, V))
    np.add.at(counts, tuple(triples.T), 1)
    assert counts.sum() == rows * (T - 2)
    expected = np.asarray(jax.nn.softmax(jnp.asarray(tables()[0]) / 2.0, axis=-1))
    statistics = [chi_square(counts[i, j], expected[i, j]) for i in range(V) for j in range(V)]
    assert max(statistics) < 27  # of 36: one in a thousand
    assert 4 < np.mean(statistics) < 6  # 5 is the mean; less would be draws that know of each other
    first = chi_square(np.bincount(tokens[:, 0], minlength=V), np.asarray(jax.nn.softmax(start([0])[0][0] / 2.0)))
    assert first < 20.5


def test_no_two_positions_or_rows_share_their_chance():
    """Every token is drawn from the same distribution: neighbours in a row and in the batch agree only by chance."""
    uniform = functools.partial(jnp.zeros, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(4), 1_000)
    flat = lambda cache, tokens, k: (uniform((len(tokens), V)), cache)
    draws = jax.jit(
        lambda keys: generate(
            flat,
            (uniform((len(keys), V)), ()),
            jnp.zeros((len(keys), T), int),
            jnp.zeros((len(keys), T), bool),
            keys,
            Settings(),
        )
    )
    tokens = np.asarray(draws(keys))
    for first, second in ((tokens[:, 1:], tokens[:, :-1]), (tokens[1:], tokens[:-1])):
        share, deviation = np.mean(first == second), np.sqrt(1 / V * (1 - 1 / V) / first.size)
        assert abs(share - 1 / V) < 4 * deviation
