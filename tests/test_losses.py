import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import losses


def test_pixel_losses_by_hand():
    images, recon = jnp.array([0.0, 1.0, -0.5]), jnp.array([0.5, -1.0, -0.5])
    np.testing.assert_array_equal(losses.l1_loss(images, recon), [0.5, 2.0, 0.0])
    np.testing.assert_array_equal(losses.l2_loss(images, recon), [0.25, 4.0, 0.0])


# Discriminators


@pytest.mark.parametrize(
    ("name", "at_chance"), [("hinge", 1.0), ("vanilla", np.log(2)), ("non_saturating", 2 * np.log(2))]
)
def test_discriminator_losses_at_chance(name, at_chance):
    loss = losses.ADVERSARIAL[name].discriminator_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    np.testing.assert_allclose(loss, np.full((2, 3), at_chance), rtol=1e-6)
    if name == "hinge":
        assert (loss == 1.0).all()


def test_hinge_by_hand():
    """Half of (1 - 0.5) + (1 - 0.2)."""
    assert losses.hinge_discriminator_loss(jnp.array(0.5), jnp.array(-0.2)) == pytest.approx(0.65)


def test_hinge_has_no_gradient_beyond_its_margins():
    def gradient(real, fake):
        return jax.grad(losses.hinge_discriminator_loss, (0, 1))(jnp.array(real), jnp.array(fake))

    assert gradient(1.5, -1.5) == (0.0, 0.0)
    assert gradient(0.9, -0.9) == (-0.5, 0.5)


@pytest.mark.parametrize(("name", "scale"), [("vanilla", 0.5), ("non_saturating", 1.0)])
def test_cross_entropies_are_those_of_the_sigmoid(getkey, name, scale):
    real, fake = jax.random.normal(getkey(), (20,)), jax.random.normal(getkey(), (20,))
    p_real, p_fake = (1 / (1 + np.exp(-np.asarray(x, np.float64))) for x in (real, fake))
    expected = -scale * (np.log(p_real) + np.log(1 - p_fake))
    np.testing.assert_allclose(losses.ADVERSARIAL[name].discriminator_loss(real, fake), expected, rtol=1e-5)


@pytest.mark.parametrize("name", losses.ADVERSARIAL)
def test_both_sides_pull_the_logits_of_fakes_apart(name):
    """The generator wants them up, the discriminator down; both stay finite for sure discriminators."""
    game = losses.ADVERSARIAL[name]
    for logit in (-0.5, 0.0, 0.5):
        assert jax.grad(game.generator_loss)(jnp.array(logit)) < 0
        assert jax.grad(game.discriminator_loss, 1)(jnp.array(0.0), jnp.array(logit)) > 0
        assert jax.grad(game.discriminator_loss, 0)(jnp.array(logit), jnp.array(0.0)) < 0
    far = jnp.array([-1e4, 1e4])
    assert np.isfinite(game.discriminator_loss(far, far)).all()
    assert np.isfinite(game.generator_loss(far)).all()


def test_generator_losses_by_hand():
    logits = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(losses.ADVERSARIAL["hinge"].generator_loss(logits), -logits)
    np.testing.assert_array_equal(losses.ADVERSARIAL["vanilla"].generator_loss(logits), -logits)
    expected = np.log1p(np.exp([2.0, 0.0, -3.0]))
    np.testing.assert_allclose(losses.ADVERSARIAL["non_saturating"].generator_loss(logits), expected, rtol=1e-6)


# Codes


def test_codebook_and_commitment_have_one_value_and_opposite_sides():
    latents, codes = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0, 4.0], [3.0, 1.0]])
    np.testing.assert_array_equal(losses.codebook_loss(latents, codes), [2.0, 5.0])
    np.testing.assert_array_equal(losses.commitment_loss(latents, codes), [2.0, 5.0])

    def sides(loss):
        return jax.grad(lambda z, e: loss(z, e).sum(), (0, 1))(latents, codes)

    to_latents, to_codes = sides(losses.codebook_loss)
    assert not to_latents.any()
    np.testing.assert_array_equal(to_codes, codes - latents)
    to_latents, to_codes = sides(losses.commitment_loss)
    assert not to_codes.any()
    np.testing.assert_array_equal(to_latents, latents - codes)


# The adaptive weight, equation 7


def test_adaptive_weight_is_the_ratio_of_lengths():
    rec, generator = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]])
    assert losses.adaptive_weight(rec, generator) == pytest.approx(5 / (2 + 1e-4))
    assert losses.adaptive_weight(rec, generator, eps=0.5) == pytest.approx(2.0)
    assert losses.adaptive_weight(7.0 * rec, generator) == pytest.approx(35 / (2 + 1e-4))


def test_adaptive_weight_has_a_ceiling_and_no_division_by_zero():
    ones, zeros = jnp.ones((3, 3)), jnp.zeros((3, 3))
    assert losses.adaptive_weight(ones, zeros) == 1e4
    assert losses.adaptive_weight(1e-2 * ones, zeros) == pytest.approx(3e-2 / 1e-4)
    assert losses.adaptive_weight(ones, zeros, ceiling=7.0) == 7.0
    assert losses.adaptive_weight(zeros, zeros) == 0.0


def test_adaptive_weight_is_a_constant_to_the_optimiser(getkey):
    rec, generator = jax.random.normal(getkey(), (3, 3, 2)), jax.random.normal(getkey(), (3, 3, 2))
    gradients = jax.grad(losses.adaptive_weight, (0, 1))(rec, generator)
    assert not gradients[0].any()
    assert not gradients[1].any()


@pytest.mark.parametrize("loss", [losses.l1_loss, losses.l2_loss, losses.codebook_loss, losses.commitment_loss])
def test_losses_are_zero_for_equals_and_never_negative(getkey, loss):
    x, y = jax.random.normal(getkey(), (4, 5)), jax.random.normal(getkey(), (4, 5))
    assert not loss(x, x).any()
    assert (loss(x, y) > 0).all()


# Tokens, equation 8


def test_cross_entropy_by_hand():
    """Logits are free up to a constant a row; each row costs minus the logarithm of its target's probability."""
    probs = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    nll = losses.cross_entropy(jnp.log(probs) + jnp.array([[7.0], [-3.0]]), jnp.array([2, 1]))
    np.testing.assert_allclose(nll, -np.log([0.2, 0.8]), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_uniform_prediction_costs_the_logarithm_of_the_vocabulary(smoothing):
    targets = jnp.arange(16).reshape(2, 8)
    nll = losses.cross_entropy(jnp.full((2, 8, 16), 3.0), targets, smoothing)
    np.testing.assert_allclose(nll, np.full((2, 8), np.log(16)), rtol=1e-6)


def test_smoothing_gives_its_mass_to_all_alike():
    """A tenth: to the target 0.9 and a third of 0.1, to the others a third of 0.1."""
    probs = np.array([0.5, 0.3, 0.2])
    smooth = losses.cross_entropy(jnp.log(jnp.array(probs)), jnp.array(0), 0.1)
    np.testing.assert_allclose(smooth, -np.dot([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], np.log(probs)), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_the_gradient_of_cross_entropy_is_prediction_minus_target(getkey, smoothing):
    logits, targets = jax.random.normal(getkey(), (3, 5)), jnp.array([4, 0, 2])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, targets, smoothing).sum())(logits)
    wanted = (1 - smoothing) * jax.nn.one_hot(targets, 5) + smoothing / 5
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - wanted, atol=1e-6)


def test_cross_entropy_is_finite_for_sure_and_wrong_predictions():
    sure = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    np.testing.assert_array_equal(losses.cross_entropy(sure, jnp.array([0, 1])), [0.0, 2e4])
