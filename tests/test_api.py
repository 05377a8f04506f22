"""The verbs for Python users: equal under the caller's own jit, and clear about what they cannot take."""

import dataclasses
import inspect
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax import api


@pytest.fixture(scope="module")
def tokenizer():
    return untrained.tokenizer()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)


def test_pixels_and_floats_have_the_same_codes_inside_and_outside_of_jit(tokenizer, images):
    indices = vq.encode(tokenizer, images)
    assert (indices.shape, indices.dtype) == ((2, 4, 6), jnp.int32)
    np.testing.assert_array_equal(vq.encode(tokenizer, jnp.float32(images) / 127.5 - 1), indices)
    np.testing.assert_array_equal(jax.jit(vq.encode)(tokenizer, images), indices)
    recon = vq.decode(tokenizer, indices)
    assert recon.shape == images.shape
    np.testing.assert_allclose(jax.jit(vq.decode)(tokenizer, indices), recon, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :7], "height must be a multiple of the downsample factor 2; got 7. Resize or pad to 8"),
        (lambda x: x[..., :1], r"must have shape \(b, H, W, 3\)"),
        (lambda x: x.astype(np.int32), "must be uint8 or float"),
        (lambda x: x.astype(np.float32), r"must be in \[-1, 1\]; got values in"),
    ],
)
def test_images_that_do_not_fit_are_refused(tokenizer, images, change, message):
    with pytest.raises(ValueError, match=message):
        vq.encode(tokenizer, change(images))


def test_an_index_outside_the_codebook_is_refused_on_the_host_and_nan_on_a_device(tokenizer):
    bad = np.zeros((2, 4, 4), np.int32)
    bad[1, 0, 0] = 16
    with pytest.raises(ValueError, match=r"must be in \[0, 16\); got values in \[0, 16\]"):
        vq.decode(tokenizer, bad)
    for decode in (vq.decode, jax.jit(vq.decode)):
        finite = jnp.isfinite(decode(tokenizer, jnp.asarray(bad))).all((1, 2, 3))
        np.testing.assert_array_equal(finite, [True, False])


def test_the_codes_of_indices_are_rows_of_the_codebook(tokenizer):
    indices = np.arange(12).reshape(2, 2, 3) % 5
    codebook = np.asarray(tokenizer.params["quantizer"]["codebook"])
    rows = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)  # this one's codes are of unit length
    for embed in (vq.embed, jax.jit(vq.embed)):
        codes = embed(tokenizer, jnp.asarray(indices).at[0, 0, 0].set(-1).at[1, 1, 1].set(16))
        assert (codes.shape, codes.dtype) == ((2, 2, 3, 4), jnp.float32)
        known = np.isfinite(codes).all(-1)
        assert np.argwhere(~known).tolist() == [[0, 0, 0], [1, 1, 1]]
        np.testing.assert_allclose(codes[known], rows[indices[known]], rtol=1e-5)
    with pytest.raises(ValueError, match=r"must be in \[0, 16\); got values in \[0, 16\]"):
        vq.embed(tokenizer, np.where(indices == 4, 16, indices))


def test_everything_public_is_typed():
    for name in vq.__all__:
        public = getattr(vq, name)
        signature = inspect.signature(public)
        types = [parameter.annotation for parameter in signature.parameters.values()]
        types += [] if inspect.isclass(public) else [signature.return_annotation]
        assert inspect.Signature.empty not in types, name
    assert Path(vq.__file__).with_name("py.typed").is_file()


@pytest.fixture
def nobody_waits(monkeypatch):
    """No value of an array on a device can be looked at."""

    def refused(*_):
        pytest.fail("a value was taken from the device")

    for name in ("__bool__", "__int__", "__float__", "__index__", "__array__", "item", "tolist"):
        monkeypatch.setattr(type(jnp.zeros(())), name, refused)


def test_no_verb_waits_for_the_device(tokenizer, prior, images, nobody_waits):
    vq.encode(tokenizer, jnp.float32(images) / 127.5 - 1)
    indices, labels = jnp.zeros((2, 4, 4), jnp.int32), jnp.asarray([0, 1])
    vq.to_uint8(vq.decode(tokenizer, indices))
    options = {"prompt": indices, "prompt_length": jnp.asarray(3), "temperature": jnp.asarray(0.9)}
    vq.sample(prior, jax.random.key(0), labels=labels, **options)
    vq.log_likelihood(prior, indices, labels=labels)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        vq.load_tokenizer(tmp_path)


# Priors


@pytest.fixture(scope="module")
def prior():
    """Of 4 x 4 codes in the order `spiral_out`, which is not its own inverse."""
    return untrained.prior()


@pytest.fixture(scope="module")
def drawn(prior):
    """Six images of their own classes."""
    return vq.sample_indices(prior, jax.random.key(0), labels=LABELS)


LABELS = np.array([0, 1, 2, 3, 4, 4], np.int32)
BAD = np.array([False, True, True, False, False, False])  # the second label is too large, the third negative
SPIRAL = np.array([9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15])


def test_samples_are_codes_of_the_prior_and_decode_to_images(prior, drawn):
    assert (drawn.shape, drawn.dtype) == ((6, 4, 4), jnp.int32)
    assert ((drawn >= 0) & (drawn < 16)).all()
    assert len(np.unique(np.reshape(drawn, (6, -1)), axis=0)) == 6
    images = vq.sample(prior, jax.random.key(0), labels=LABELS)
    np.testing.assert_array_equal(images, vq.decode(prior.tokenizer, drawn))


def test_samples_are_the_same_under_the_callers_jit(prior, drawn):
    inside = jax.jit(lambda prior, key, labels: vq.sample_indices(prior, key, labels=labels))
    np.testing.assert_array_equal(inside(prior, jax.random.key(0), LABELS), drawn)


def test_an_image_is_its_key_and_its_label(prior, drawn):
    """One key for all is the number folded in; a key for each is that key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(6))
    np.testing.assert_array_equal(vq.sample_indices(prior, keys, labels=LABELS), drawn)
    two = np.array([4, 1])
    np.testing.assert_array_equal(vq.sample_indices(prior, keys[two], labels=LABELS[two]), drawn[two])


def test_a_completion_keeps_the_first_tokens_of_the_priors_order(prior):
    """Six of the spiral: the four in the middle, and two below them."""
    prompt = np.random.default_rng(0).integers(0, 16, (6, 4, 4), dtype=np.int32)
    complete = lambda prompt, length: np.asarray(
        vq.sample_indices(prior, jax.random.key(1), labels=LABELS, prompt=prompt, prompt_length=length)
    )
    kept = np.isin(np.arange(16), SPIRAL[:6]).reshape(4, 4)
    six = complete(prompt, 6)
    np.testing.assert_array_equal(six[:, kept], prompt[:, kept])
    assert (six[:, ~kept] != prompt[:, ~kept]).any(axis=1).all()
    np.testing.assert_array_equal(complete(np.where(kept, prompt, 0), 6), six)  # the rest is not looked at
    np.testing.assert_array_equal(complete(prompt, 16), prompt)
    np.testing.assert_array_equal(complete(prompt, None), complete(prompt, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "condition is 'class': it needs `labels`, the class of each image; none were given"),
        ({"labels": np.array([0, 5])}, r"`labels` must be in \[0, 5\); got values in \[0, 5\]"),
        ({"labels": np.array([-1, 0])}, r"got values in \[-1, 0\]"),
        ({"labels": np.array([0, 1]), "count": 3}, "`labels` must be as many as the images, 3; got 2"),
        ({"prompt": np.zeros((2, 4, 3), int)}, r"integers of shape \(2, 4, 4\); got int32 of shape \(2, 4, 3\)"),
        ({"prompt": np.full((2, 4, 4), 16)}, r"`codes` must be in \[0, 16\)"),
        ({"prompt": np.zeros((2, 4, 4), int), "prompt_length": 17}, r"`prompt_length` must be in 0 \.\. 16"),
        ({"prompt": np.zeros((2, 4, 4), int), "prompt_length": -1}, r"`prompt_length` must be in 0 \.\. 16"),
        ({"top_k": 17}, r"`top_k` must be in 1 \.\. 16, the vocabulary; got 17"),
        ({"top_p": 0.0}, "`top_p` must be"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"guidance": 2.0, "schedule": "none"}, "`schedule` must be one of"),
    ],
)
def test_samples_that_cannot_be_are_refused(prior, options, message):
    options = {"labels": np.array([0, 1])} | options if options else {}
    with pytest.raises(ValueError, match=message):
        vq.sample(prior, jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), r"`labels` must be integers of shape \(b,\), .* got float32 of shape \(2,\)"),
        (np.array([[0], [1]]), r"`labels` must be integers of shape \(b,\), .* got int32 of shape \(2, 1\)"),
        (np.array([0, 1, 2]), "`labels` must be as many as the images, 2; got 3"),
    ],
)
def test_labels_of_another_kind_are_refused(prior, labels, message):
    """Which in these tests the types of the verbs themselves would refuse before."""
    with pytest.raises(ValueError, match=message):
        api.prefix(prior, labels=labels, condition=None, count=2, size=None)


def test_what_is_out_of_range_on_a_device_shows_in_its_own_row(prior, drawn):
    labels = jnp.asarray([0, 5, -1, 3, 4, 4])
    np.testing.assert_array_equal(
        vq.sample_indices(prior, jax.random.key(0), labels=labels), np.where(BAD[:, None, None], -1, drawn)
    )
    images = vq.sample(prior, jax.random.key(0), labels=labels)
    np.testing.assert_array_equal(jnp.isnan(images).all((1, 2, 3)), BAD)
    codes = jnp.asarray(drawn).at[0, 0, 0].set(16)
    nats, right = vq.log_likelihood(prior, codes, labels=labels), vq.log_likelihood(prior, drawn, labels=LABELS)
    np.testing.assert_array_equal(nats, np.where([True, True, True, False, False, False], np.nan, right))
    prompt = vq.sample(prior, jax.random.key(0), labels=LABELS, prompt=codes, prompt_length=16)
    np.testing.assert_array_equal(jnp.isnan(prompt).all((1, 2, 3)), [True, *[False] * 5])


def test_keys_must_be_one_or_as_many_as_the_images(prior):
    with pytest.raises(ValueError, match=r"one for each of 2 images; got \(3,\)"):
        vq.sample(prior, jax.random.split(jax.random.key(0), 3), labels=np.array([0, 1]))


def test_guidance_needs_a_prior_that_knows_the_null_class():
    with pytest.raises(ValueError, match=r"condition\.drop above 0"):
        vq.sample(untrained.prior(drop=0.0), jax.random.key(0), labels=np.array([0]), guidance=2.0)


def test_guidance_leads_to_codes_that_the_class_explains_better(prior):
    """How much likelier the label makes its image, in nats, than the null class, which stands behind the last."""
    labels = np.tile(np.arange(5, dtype=np.int32), 16)
    null = dataclasses.replace(prior.module.condition, num_classes=6, drop=0.0)
    blind = dataclasses.replace(prior, module=dataclasses.replace(prior.module, condition=null))
    gain = []
    for guidance in (1.0, 4.0):
        codes = vq.sample_indices(prior, jax.random.key(0), labels=labels, guidance=guidance)
        known, unknown = (vq.log_likelihood(p, codes, labels=c) for p, c in ((prior, labels), (blind, 0 * labels + 5)))
        gain.append(float(jnp.mean(known - unknown)))
    assert gain[1] > gain[0] + 1 > 1


def test_an_unconditional_prior_wants_a_count_and_no_labels():
    prior = untrained.prior("unconditional", drop=0.0)
    for options, message in (
        ({}, "needs `count`, the number of images; got None"),
        ({"count": 0}, "got 0"),
        ({"labels": np.array([0]), "count": 1}, "the condition of this one is 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            vq.sample(prior, jax.random.key(0), **options)
    assert vq.sample_indices(prior, jax.random.key(0), count=3).shape == (3, 4, 4)


# Likelihood


def test_a_likelihood_is_the_product_of_what_the_sampler_draws_from(prior, drawn):
    """Token by token through the sampler's cache."""
    tokens = jnp.reshape(drawn, (6, 16))[:, SPIRAL]

    @jax.jit
    def stepwise(params, tokens):
        network = prior.module.network
        weights = network.prepare(params)
        prefix = prior.module.prefix(jnp.asarray(LABELS)[:, None])
        first = network.prefill(weights, prefix, 16)

        def body(carry, k):
            logits, cache = carry
            token = tokens[:, k]
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
            return network.step(weights, cache, token, 1 + k), log_p

        (logits, _), log_p = jax.lax.scan(body, first, jnp.arange(15))
        last = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 15:], axis=1)[:, 0]
        return log_p.sum(0) + last

    nats = vq.log_likelihood(prior, drawn, labels=LABELS)
    np.testing.assert_allclose(nats, stepwise(prior.params, tokens), rtol=1e-5)
    assert np.ptp(nats) > 1


def test_images_are_as_likely_as_their_codes(prior):
    images = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    codes = vq.encode(prior.tokenizer, images)
    nats = vq.log_likelihood(prior, images, labels=LABELS)
    np.testing.assert_array_equal(nats, vq.log_likelihood(prior, codes, labels=LABELS))
    inside = jax.jit(vq.log_likelihood)(prior, images, labels=LABELS)
    np.testing.assert_allclose(inside, nats, rtol=1e-5)


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        (np.zeros((2, 4, 5), np.int32), [0, 1], "trained on images of 8 pixels"),
        (np.zeros((2, 4, 4), np.float32), [0, 1], "must be integers"),
        (np.full((2, 4, 4), 16), [0, 1], r"`codes` must be in \[0, 16\)"),
        (np.zeros((2, 12, 12, 3), np.uint8), [0, 1], r"shape \(2, 4, 4\); got int32 of shape \(2, 6, 6\)"),
        (np.zeros((2, 4, 4), np.int32), [0, 9], r"`labels` must be in \[0, 5\)"),
    ],
)
def test_what_has_no_likelihood_is_refused(prior, codes, labels, message):
    with pytest.raises(ValueError, match=message):
        vq.log_likelihood(prior, codes, labels=np.array(labels))


@pytest.mark.parametrize("variant", ["base", "gpt"])
def test_all_images_together_have_probability_one_and_are_drawn_as_often_as_it_says(variant):
    """All 256 grids of 2 x 2 codes of 4, each by its likelihood; then 20,000 draws against it."""
    prior = untrained.prior(variant, codebook_size=4, side=2, classes=3)
    grids = np.array(list(itertools.product(range(4), repeat=4)), np.int32).reshape(-1, 2, 2)
    label = np.full(len(grids), 2, np.int32)
    probs = np.exp(np.float64(vq.log_likelihood(prior, grids, labels=label)))
    assert probs.sum() == pytest.approx(1.0, abs=1e-5)
    assert probs.max() > 3 / len(probs)  # it is far from uniform
    codes = vq.sample_indices(prior, jax.random.key(0), labels=np.full(20_000, 2, np.int32))
    counts = np.bincount(np.reshape(codes, (-1, 4)) @ np.array([64, 16, 4, 1]), minlength=256)
    usual = probs * 20_000 > 5
    statistic = np.sum((counts[usual] - 20_000 * probs[usual]) ** 2 / (20_000 * probs[usual]))
    assert abs(statistic - usual.sum()) < 4 * np.sqrt(2 * usual.sum())  # chi-square: as many as there are, 4 deviations
