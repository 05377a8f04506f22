import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vqgan_jax.nn import codebooks
from vqgan_jax.nn.codebooks import kmeans, nearest, unit
from vqgan_jax.nn.quantizer import FSQ, CodebookStats, GumbelQuantizer, VectorQuantizer


def bound(codebook, **fields):
    """A quantizer with this codebook, as a function of latents."""
    quantizer = VectorQuantizer(*codebook.shape, **fields)
    return lambda latents, codebook=codebook: quantizer.apply({"params": {"codebook": codebook}}, latents)


def over_eight(*before):
    """The sharding of rows over all devices, behind axes that are whole."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, P(*before, "data"))


def refresh(quantizer, codebook, *rest):
    params, stats = quantizer.refresh({"codebook": codebook}, *rest)
    return params["codebook"], stats


# The nearest code


def test_of_two_codes_equally_near_the_first_wins():
    codebook, latents = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(nearest(latents, codebook), [0, 1])
    np.testing.assert_array_equal(nearest(latents, codebook[::-1]), [0, 0])


def test_nearest_equals_brute_force_in_float64(getkey):
    latents, codebook = jax.random.normal(getkey(), (6, 50, 8)), jax.random.normal(getkey(), (64, 8))
    z, e = np.asarray(latents, np.float64), np.asarray(codebook, np.float64)
    expected = np.square(z[:, :, None] - e).sum(-1).argmin(-1)
    np.testing.assert_array_equal(nearest(latents, codebook), expected)


def test_nearest_is_not_fooled_by_long_codes():
    """Without the term |e|^2 / 2 the longest code in the latent's direction would win."""
    assert nearest(jnp.array([[1.0, 0.0]]), jnp.array([[100.0, 0.0], [0.9, 0.1]]))[0] == 1


# A large codebook, in parts


@pytest.fixture
def searched_in(monkeypatch):
    """The nearest codes, searched in parts of so many codes."""

    def search(size, latents, codebook):
        monkeypatch.setattr(codebooks, "DISTANCE_BYTES", 4 * size)
        return jax.jit(lambda *arrays: nearest(*arrays))(latents, codebook)  # of its own: the size is no argument

    return search


@pytest.mark.parametrize("size", [1, 7, 64, 100, 299])
def test_a_codebook_searched_in_parts_gives_the_same_codes_ties_and_nans_included(searched_in, getkey, size):
    latents, codebook = jax.random.normal(getkey(), (3, 5, 6, 8)), jax.random.normal(getkey(), (300, 8))
    codebook = codebook.at[150:].set(codebook[:150])  # each code twice
    latents = latents.at[1, 2, 3].set(jnp.nan)
    whole = searched_in(300, latents, codebook)
    np.testing.assert_array_equal(searched_in(size, latents, codebook), whole)
    assert whole.dtype == jnp.int32
    assert whole.max() < 150
    broken = codebook.at[170].set(jnp.nan)
    np.testing.assert_array_equal(searched_in(size, latents, broken), searched_in(300, latents, broken))


def test_latents_on_eight_devices_stay_there_while_the_codebook_is_searched_in_parts(searched_in, getkey):
    latents, codebook = jax.random.normal(getkey(), (64, 4, 4, 8)), jax.random.normal(getkey(), (100, 8))
    spread = jax.device_put(latents, over_eight())
    whole = searched_in(100, latents, codebook)
    np.testing.assert_array_equal(searched_in(30, spread, codebook), whole)
    text = jax.jit(lambda *arrays: nearest(*arrays)).lower(spread, codebook).compile().as_text()
    assert "f32[128,25]" in text  # distances of an eighth of 1,024 latents to a quarter of the codes
    assert not {name for name in ("all-gather", "all-reduce", "all-to-all") if name in text}


def test_searching_in_parts_leaves_value_and_gradients_as_they_are(monkeypatch, getkey):
    latents, codebook = jax.random.normal(getkey(), (50, 4)), jax.random.normal(getkey(), (64, 4))

    def loss(latents, codebook):
        out = bound(codebook)(latents)
        return jnp.square(out.codes).sum() + jnp.sin(out.quantized).sum()

    whole = jax.value_and_grad(loss, argnums=(0, 1))(latents, codebook)
    monkeypatch.setattr(codebooks, "DISTANCE_BYTES", 4 * 20)
    jax.tree.map(np.testing.assert_array_equal, jax.value_and_grad(loss, argnums=(0, 1))(latents, codebook), whole)


def test_a_codebook_that_fits_is_searched_at_once():
    lowered = lambda k: jax.jit(nearest).lower(jnp.zeros((16, 8)), jnp.zeros((k, 8))).as_text()
    assert "while" not in lowered(1024)
    assert "while" in lowered(1025)


# Gradients


@pytest.mark.parametrize("ema", [False, True])
def test_straight_through_passes_the_gradient_unchanged(getkey, ema):
    quantizer = bound(jax.random.normal(getkey(), (16, 4)), ema=ema)
    latents, cotangent = jax.random.normal(getkey(), (2, 3, 3, 4)), jax.random.normal(getkey(), (2, 3, 3, 4))
    quantized, vjp = jax.vjp(lambda z: quantizer(z).quantized, latents)
    np.testing.assert_array_equal(vjp(cotangent)[0], cotangent)
    np.testing.assert_allclose(quantized, quantizer(latents).codes, atol=1e-6)


def test_codes_pull_only_on_the_codes_that_were_chosen():
    codebook, latents = jnp.array([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]), jnp.array([[4.0, 5.0], [5.0, 6.0], [0.0, 1.0]])
    quantizer = bound(codebook)
    gradient = jax.grad(lambda e: quantizer(latents, e).codes.sum())(codebook)
    np.testing.assert_array_equal(gradient, [[1, 1], [2, 2], [0, 0]])
    assert not jax.grad(lambda z: quantizer(z).codes.sum())(latents).any()


def test_the_decoders_gradient_does_not_reach_the_codebook(getkey):
    codebook, latents = jax.random.normal(getkey(), (8, 4)), jax.random.normal(getkey(), (20, 4))
    quantizer = bound(codebook)
    assert not jax.grad(lambda e: quantizer(latents, e).quantized.sum())(codebook).any()


def test_with_ema_the_codebook_gets_no_gradient_at_all(getkey):
    codebook, latents = jax.random.normal(getkey(), (8, 4)), jax.random.normal(getkey(), (20, 4))

    def total(e, ema):
        out = bound(codebook, ema=ema)(latents, e)
        return jnp.square(out.codes).sum() + jnp.square(out.quantized).sum()

    (value, gradient), (same, nothing) = (jax.value_and_grad(total)(codebook, ema) for ema in (False, True))
    assert value == same
    assert gradient.any()
    assert not nothing.any()


# Codes and latents of unit length


def test_the_gradient_passes_the_division_by_the_length(getkey):
    """d(e/|e|) is the part of the cotangent orthogonal to e, over |e|."""
    codebook, latents = 3.0 * jax.random.normal(getkey(), (1, 8)), jax.random.normal(getkey(), (1, 8))
    quantizer, cotangent = bound(codebook, unit_length=True), jax.random.normal(getkey(), (1, 8))

    def tangential(x):
        return (cotangent - unit(x) * jnp.sum(unit(x) * cotangent)) / jnp.linalg.norm(x)

    by_codebook = jax.vjp(lambda e: quantizer(latents, e).codes, codebook)[1](cotangent)[0]
    by_latents = jax.vjp(lambda z: quantizer(z).quantized, latents)[1](cotangent)[0]
    np.testing.assert_allclose(by_codebook, tangential(codebook), atol=1e-6)
    np.testing.assert_allclose(by_latents, tangential(latents), atol=1e-6)


def test_lengths_of_latents_and_codes_do_not_matter(getkey):
    codebook, latents = jax.random.normal(getkey(), (16, 8)), jax.random.normal(getkey(), (40, 8))
    one = bound(codebook, unit_length=True)(latents)
    other = bound(codebook * jnp.arange(1.0, 17.0)[:, None], unit_length=True)(7.0 * latents)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.quantized, other.quantized, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(one.quantized, axis=-1), 1.0, atol=1e-5)


def test_the_nearest_code_of_unit_length_has_the_largest_cosine(getkey):
    codebook, latents = jax.random.normal(getkey(), (16, 8)), jax.random.normal(getkey(), (40, 8))
    cosine = np.asarray(latents, np.float64) @ np.asarray(unit(codebook), np.float64).T
    np.testing.assert_array_equal(bound(codebook, unit_length=True)(latents).indices, cosine.argmax(-1))


@pytest.mark.parametrize("unit_length", [False, True])
def test_lookup_gives_what_the_decoder_saw_in_training(getkey, unit_length):
    params = {"params": {"codebook": 5.0 * jax.random.normal(getkey(), (16, 8))}}
    quantizer = VectorQuantizer(16, 8, unit_length=unit_length)
    out = quantizer.apply(params, jax.random.normal(getkey(), (2, 3, 3, 8)))
    codes = quantizer.apply(params, out.indices, method="lookup")
    np.testing.assert_allclose(codes, out.quantized, atol=1e-5)
    assert np.allclose(jnp.linalg.norm(codes, axis=-1), 1.0, atol=1e-5) == unit_length


def test_unit_is_finite_at_zero():
    assert not unit(jnp.zeros(4)).any()
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros(4))).all()


def test_bfloat16_latents_are_compared_in_float32(getkey):
    codebook, latents = jax.random.normal(getkey(), (16, 4)), jax.random.normal(getkey(), (50, 4)).astype(jnp.bfloat16)
    out, wide = bound(codebook)(latents), bound(codebook)(latents.astype(jnp.float32))
    assert out.quantized.dtype == jnp.float32
    np.testing.assert_array_equal(out.indices, wide.indices)


# Running averages: EMA and revival


def test_refresh_of_an_ema_codebook_equals_the_hand_computation():
    quantizer = VectorQuantizer(2, 2, ema=True, decay=0.5)
    stats = CodebookStats(jnp.array([2.0, 2.0]), jnp.array([[2.0, 0.0], [0.0, 4.0]]))
    latents, indices = jnp.array([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]), jnp.array([0, 0, 1])
    codebook, stats = refresh(quantizer, jnp.full((2, 2), 9.0), stats, latents, indices, jax.random.key(0))
    np.testing.assert_allclose(stats.hits, [2.0, 1.5], rtol=1e-6)
    np.testing.assert_allclose(stats.sums, [[3.0, 1.0], [0.0, 3.0]], rtol=1e-6)
    smoothed = (np.array([2.0, 1.5]) + 1e-5) / (3.5 + 2e-5) * 3.5
    np.testing.assert_allclose(codebook, np.array([[3.0, 1.0], [0.0, 3.0]]) / smoothed[:, None], rtol=1e-6)
    np.testing.assert_allclose(codebook, [[1.5, 0.5], [0.0, 2.0]], atol=1e-4)


def test_an_ema_codebook_converges_to_the_means_of_its_latents(getkey):
    quantizer = VectorQuantizer(2, 3, ema=True, decay=0.9)
    latents, indices = jax.random.normal(getkey(), (10, 3)), jnp.arange(10) % 2
    codebook = jnp.zeros((2, 3))
    stats = quantizer.initial_stats({"codebook": codebook}, 10)
    for _ in range(200):
        codebook, stats = refresh(quantizer, codebook, stats, latents, indices, getkey())
    np.testing.assert_allclose(codebook, jnp.stack([latents[::2].mean(0), latents[1::2].mean(0)]), atol=1e-4)


def test_initial_averages_reproduce_the_codebook_that_they_start_from(getkey):
    """A step whose latents are the codes themselves, each hit alike, changes nothing."""
    codebook = jax.random.normal(getkey(), (8, 3))
    quantizer = VectorQuantizer(8, 3, ema=True, revive_below=0.5)
    stats = quantizer.initial_stats({"codebook": codebook}, 8)
    after, new = refresh(quantizer, codebook, stats, codebook, jnp.arange(8), getkey())
    np.testing.assert_allclose(after, codebook, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new.hits, stats.hits, rtol=1e-6)


def test_without_ema_and_revival_refresh_keeps_the_codebook(getkey):
    quantizer, codebook = VectorQuantizer(4, 2), jax.random.normal(getkey(), (4, 2))
    stats = CodebookStats(jnp.zeros(4), jnp.zeros((4, 2)))
    after, _ = refresh(quantizer, codebook, stats, jnp.ones((5, 2)), jnp.zeros(5, jnp.int32), getkey())
    np.testing.assert_array_equal(after, codebook)
    kept = lambda **fields: VectorQuantizer(4, 2, **fields).initial_stats({"codebook": codebook}, 5) is not None
    assert (kept(), kept(ema=True), kept(revive_below=0.1)) == (False, True, True)


@pytest.fixture
def half_dead(getkey):
    """Codes 1 and 3 have no hits; a uniform code would have 2, and 1 is the least."""
    quantizer = VectorQuantizer(4, 2, decay=0.9, revive_below=0.5)
    codebook, latents = jax.random.normal(getkey(), (4, 2)), 10.0 + jax.random.normal(getkey(), (8, 2))
    stats = CodebookStats(jnp.array([10.0, 0.01, 5.0, 0.0]), jnp.ones((4, 2)))
    indices = jnp.array([0, 0, 0, 0, 2, 2, 2, 2])
    return quantizer, codebook, stats, latents, indices


def test_dead_codes_become_latents_of_the_batch_with_fresh_averages(half_dead, getkey):
    quantizer, codebook, stats, latents, indices = half_dead
    after, new = refresh(quantizer, codebook, stats, latents, indices, getkey())
    for dead in (1, 3):
        assert (np.asarray(after)[dead] == np.asarray(latents)).all(-1).any()
        assert new.hits[dead] == 2.0
        np.testing.assert_allclose(new.sums[dead], 2.0 * after[dead], rtol=1e-6)


def test_live_codes_are_untouched_by_a_revival(half_dead, getkey):
    quantizer, codebook, stats, latents, indices = half_dead
    after, new = refresh(quantizer, codebook, stats, latents, indices, getkey())
    live = jnp.array([0, 2])
    np.testing.assert_array_equal(after[live], codebook[live])
    np.testing.assert_allclose(new.hits[live], [0.9 * 10 + 0.4, 0.9 * 5 + 0.4], rtol=1e-6)


@pytest.mark.parametrize("ema", [False, True])
def test_a_revived_code_survives_the_next_step_without_a_hit(half_dead, getkey, ema):
    quantizer, codebook, stats, latents, indices = half_dead
    quantizer = quantizer.clone(ema=ema)
    revived, stats = refresh(quantizer, codebook, stats, latents, indices, getkey())
    after, _ = refresh(quantizer, revived, stats, -latents, indices, getkey())
    np.testing.assert_allclose(after[jnp.array([1, 3])], revived[jnp.array([1, 3])], rtol=1e-4)


def test_a_code_that_stays_without_hits_dies_when_the_arithmetic_says_so(getkey):
    """From its uniform share, decay 0.5 and threshold 0.2: 1/2, 1/4, 1/8 is below at the third step."""
    quantizer = VectorQuantizer(2, 2, decay=0.5, revive_below=0.2)
    codebook, latents = jnp.array([[0.0, 0.0], [5.0, 5.0]]), jnp.full((4, 2), -3.0)
    stats = quantizer.initial_stats({"codebook": codebook}, 4)
    moved = []
    for _ in range(3):
        codebook, stats = refresh(quantizer, codebook, stats, latents, jnp.zeros(4, jnp.int32), getkey())
        moved.append(bool(codebook[1, 0] == -3.0))
    assert moved == [False, False, True]


def test_refresh_of_a_sharded_batch_equals_one_device(getkey):
    quantizer = VectorQuantizer(16, 4, ema=True, revive_below=0.5)
    codebook, latents = jax.random.normal(getkey(), (16, 4)), jax.random.normal(getkey(), (64, 4))
    indices, stats, key = nearest(latents, codebook) // 2, quantizer.initial_stats({"codebook": codebook}, 64), getkey()
    stats = stats._replace(hits=stats.hits.at[3].set(0.0).at[12].set(0.0))
    alone, alone_stats = jax.jit(functools.partial(refresh, quantizer))(codebook, stats, latents, indices, key)
    spread = jax.device_put((latents, indices), over_eight())
    assert len(spread[0].addressable_shards) == 8
    together, together_stats = jax.jit(functools.partial(refresh, quantizer))(codebook, stats, *spread, key)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together_stats.hits, alone_stats.hits, rtol=1e-6)
    np.testing.assert_allclose(together_stats.sums, alone_stats.sums, rtol=1e-5, atol=1e-6)


# k-means


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_recovers_planted_clusters(seed):
    planted = jnp.array([[-10.0, 3.0, 0.0], [10.0, -3.0, 5.0]])
    points = jnp.repeat(planted, 40, axis=0) + 0.5 * jax.random.normal(jax.random.key(seed), (80, 3))
    centres = kmeans(points[None], 2, jax.random.key(100 + seed))
    means = np.stack([points[:40].mean(0), points[40:].mean(0)])
    np.testing.assert_allclose(np.asarray(centres)[np.argsort(centres[:, 0])], means, atol=1e-4)


def test_kmeans_equals_lloyd_in_numpy_and_never_makes_it_worse(getkey):
    points, key = jax.random.normal(getkey(), (60, 2)), getkey()
    centres, errors = np.asarray(kmeans(points[None], 5, key, rounds=0), np.float64), []
    x = np.asarray(points, np.float64)
    for rounds in range(4):
        squares = np.square(x[:, None] - centres).sum(-1)
        errors.append(squares.min(-1).mean())
        np.testing.assert_allclose(kmeans(points[None], 5, key, rounds=rounds), centres, atol=1e-5)
        nearest_centre = squares.argmin(-1)
        centres = np.stack([x[nearest_centre == i].mean(0) for i in range(5)])
    assert errors == sorted(errors, reverse=True)


def test_kmeans_is_a_function_of_its_key(getkey):
    points, key = jax.random.normal(getkey(), (50, 2)), getkey()
    np.testing.assert_array_equal(kmeans(points[None], 5, key), kmeans(points[None], 5, key))
    assert not np.array_equal(kmeans(points[None], 5, key), kmeans(points[None], 5, getkey()))


def test_kmeans_of_fewer_points_than_centres_repeats_points(getkey):
    points = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    centres = np.asarray(kmeans(points[None], 8, getkey()))
    assert {tuple(c) for c in centres} == {tuple(p) for p in np.asarray(points)}


def test_kmeans_counts_the_points_of_all_sets_alike(getkey):
    points, key = jax.random.normal(getkey(), (4, 30, 3)), getkey()
    np.testing.assert_array_equal(kmeans(points, 7, key), kmeans(points.reshape(1, 120, 3), 7, key))


def test_kmeans_on_eight_devices_compares_each_point_where_it_is(getkey):
    points, key = jax.random.normal(getkey(), (3, 1024, 3)), getkey()
    start = jax.jit(kmeans, static_argnums=1)
    spread = jax.device_put(points, over_eight(None))
    np.testing.assert_allclose(start(spread, 7, key), start(points, 7, key), atol=1e-5)
    text = start.lower(spread, 7, key).compile().as_text()
    assert "f32[128,7]" in text
    assert "f32[1024,7]" not in text


# Gumbel


@pytest.fixture
def gumbel(getkey):
    """Three codes of two numbers; every position has the logits log(0.5), log(0.3), log(0.2)."""
    quantizer, latents = GumbelQuantizer(3, 2), jnp.zeros((1, 64, 64, 2))
    params = quantizer.init({"params": getkey()}, latents)["params"]
    params["logits"] = {"kernel": jnp.zeros((1, 1, 2, 3)), "bias": jnp.log(jnp.array([0.5, 0.3, 0.2]))}
    return quantizer, params, latents


def test_evaluation_takes_the_likeliest_code_without_noise(getkey):
    quantizer, latents = GumbelQuantizer(16, 4), jax.random.normal(getkey(), (2, 4, 4, 4))
    variables = quantizer.init({"params": getkey()}, latents)
    out = quantizer.apply(variables, latents)  # no PRNG is given: none is drawn from
    kernel, bias = variables["params"]["logits"]["kernel"][0, 0], variables["params"]["logits"]["bias"]
    np.testing.assert_array_equal(out.indices, jnp.argmax(latents @ kernel + bias[None, None, None], axis=-1))
    np.testing.assert_allclose(out.quantized, quantizer.apply(variables, out.indices, method="lookup"), atol=1e-5)


def test_training_draws_codes_from_their_distribution(gumbel, getkey):
    quantizer, params, latents = gumbel

    def draw(key):
        return quantizer.apply({"params": params}, latents, train=True, rngs={"gumbel": key}).indices

    key = getkey()
    frequencies = np.bincount(np.asarray(draw(key)).ravel(), minlength=3) / 64**2
    np.testing.assert_allclose(frequencies, [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_array_equal(draw(key), draw(key))
    assert (draw(key) != draw(getkey())).mean() > 0.3


def test_noisy_eval_draws_in_evaluation_too(gumbel, getkey):
    quantizer, params, latents = gumbel
    draw = jax.jit(lambda q, key: q.apply({"params": params}, latents, rngs={"gumbel": key}).indices, static_argnums=0)
    assert not draw(quantizer, getkey()).any()
    noisy = quantizer.clone(noisy_eval=True)
    assert (draw(noisy, getkey()) != draw(noisy, getkey())).mean() > 0.3


def test_the_temperature_shapes_the_gradient_and_not_the_choice(gumbel):
    """At uniform logits of two codes the gradient is (e0 - e1) / 4 over the temperature."""
    quantizer, latents = GumbelQuantizer(2, 1), jnp.zeros((1, 1, 1, 1))
    codebook, kernel = jnp.array([[3.0], [1.0]]), jnp.zeros((1, 1, 1, 2))

    def quantize(bias, temperature):
        params = {"logits": {"kernel": kernel, "bias": bias}, "codebook": codebook}
        cooled = quantizer.clone(temperature=(temperature, temperature, 1))
        return cooled.apply({"params": params}, latents).quantized.sum()

    for temperature in (2.0, 1.0, 0.25):
        value, gradient = jax.value_and_grad(quantize)(jnp.zeros(2), temperature)
        assert value == 3.0
        np.testing.assert_allclose(gradient, np.array([0.5, -0.5]) / temperature, rtol=1e-6)
    sure = [float(jnp.abs(jax.grad(quantize)(jnp.array([2.0, 0.0]), t)).max()) for t in (1.0, 0.1)]
    assert sure[1] < 1e-6 < sure[0], "a cold softmax is hard: a clear choice has no gradient any more"


def test_the_hard_choice_gives_every_code_a_share_of_the_gradient(gumbel):
    quantizer, params, latents = gumbel

    def total(codebook):
        return quantizer.apply({"params": params | {"codebook": codebook}}, latents).quantized[..., 0].sum()

    gradient = jax.grad(total)(params["codebook"])
    np.testing.assert_allclose(gradient, [[64**2, 0], [0, 0], [0, 0]], atol=0.1)


def test_kl_is_zero_for_uniform_logits_and_log_k_for_a_sure_choice(getkey):
    quantizer, latents = GumbelQuantizer(8, 2), jnp.zeros((1, 1, 1, 2))
    params = quantizer.init({"params": getkey()}, latents)["params"]

    def kl(bias):
        logits = {"kernel": jnp.zeros((1, 1, 2, 8)), "bias": bias}
        return quantizer.apply({"params": params | {"logits": logits}}, latents).terms["kl"]

    np.testing.assert_allclose(kl(jnp.full(8, 3.0)), 0.0, atol=1e-6)
    np.testing.assert_allclose(kl(100.0 * jnp.eye(8)[0]), np.log(8), rtol=1e-6)
    halves = jnp.where(jnp.arange(8) < 4, 0.0, -100.0)
    np.testing.assert_allclose(kl(halves), np.log(2), rtol=1e-6)


def test_the_temperature_goes_down_half_a_cosine(getkey):
    at = GumbelQuantizer(2, 1, temperature=(0.9, 0.1, 100)).temperature_at
    np.testing.assert_allclose([at(0), at(50), at(100), at(1000)], [0.9, 0.5, 0.1, 0.1], rtol=1e-6)


# Losses


@pytest.mark.parametrize("weights", [(1.0, 0.25), (0.25, 1.0)])
def test_the_loss_is_the_weighted_sum_of_its_terms(getkey, weights):
    codebook, latents = jax.random.normal(getkey(), (16, 4)), jax.random.normal(getkey(), (5, 4))
    out = bound(codebook, codebook_weight=weights[0], commitment_weight=weights[1])(latents)
    mean = np.square(np.asarray(latents - out.codes)).mean()
    np.testing.assert_allclose(list(out.terms.values()), [mean, mean], rtol=1e-6)
    np.testing.assert_allclose(out.loss, sum(weights) * mean, rtol=1e-6)


# Finite scalars


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 2), (7,), (2, 2, 2)])
def test_fsq_reaches_every_code_and_looks_it_up(levels):
    quantizer = FSQ(levels)
    indices = jnp.arange(quantizer.codebook_size)
    codes = quantizer.apply({}, indices, method="lookup")
    assert len(np.unique(codes, axis=0)) == quantizer.codebook_size
    assert np.abs(codes).max() == 1.0
    # A latent whose tanh lands on the point is quantized to it.
    half, width = np.array(levels) // 2, (np.array(levels) - 1) * 1.001 / 2
    offset = np.where(np.array(levels) % 2 == 0, 0.5, 0.0)
    latents = np.arctanh((np.asarray(codes) * half + offset) / width) - np.arctanh(offset / width)
    out = quantizer.apply({}, jnp.asarray(latents, jnp.float32))
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.quantized, codes, atol=1e-6)


def test_the_first_channel_of_fsq_varies_fastest():
    codes = FSQ((3, 4)).apply({}, jnp.array([0, 1, 3]), method="lookup")
    np.testing.assert_allclose(codes, [[-1.0, -1.0], [0.0, -1.0], [-1.0, -0.5]])


def test_the_gradient_of_fsq_is_that_of_its_tanh(getkey):
    quantizer, latents = FSQ((8, 5)), jax.random.normal(getkey(), (20, 2))
    gradient = jax.grad(lambda z: quantizer.apply({}, z).quantized.sum())(latents)
    width, offset, half = np.array([7, 4]) * 1.001 / 2, np.array([0.5, 0.0]), np.array([4, 2])
    moved = np.asarray(latents) + np.arctanh(offset / width)
    np.testing.assert_allclose(gradient, width / half / np.square(np.cosh(moved)), rtol=1e-4)


def test_fsq_of_bfloat16_latents_counts_in_int32(getkey):
    latents = 3 * jax.random.normal(getkey(), (20_000, 4)).astype(jnp.bfloat16)
    out = FSQ((8, 5, 5, 5)).apply({}, latents)
    assert out.indices.dtype == jnp.int32
    assert len(np.unique(out.indices)) > 800
    assert (int(out.indices.min()), int(out.indices.max())) == (0, 999)


def test_fsq_has_nothing_to_learn():
    quantizer, latents = FSQ((4, 4)), jnp.zeros((2, 2))
    assert not quantizer.init(jax.random.key(0), latents)
    assert float(quantizer.apply({}, latents).loss) == 0.0
    assert quantizer.initial_stats({}, 2) is None
    for levels in ((4, 1), (1003, 5)):  # of 1,003 levels saturated latents would round to a level outside
        with pytest.raises(ValueError, match=rf"levels.*\({levels[0]}, {levels[1]}\)"):
            FSQ(levels).check()
