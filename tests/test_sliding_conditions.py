"""The sliding window of every tiny prior: what it sees, and what it draws, against plain forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

from vqgan_jax import prefixes, sliding
from vqgan_jax import prior as priors
from vqgan_jax.nn.transformer import POSITIONS
from vqgan_jax.sampling import Settings

# Compiling takes most of the time here: this halves it.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BATCH, SIDE, F = 2, 4, 2  # images, codes of the window and pixels of a code
GREEDY, DRAWN = Settings(greedy=True), Settings(temperature=1.5)
GUIDED = DRAWN.replace(guidance=3.0, schedule="linear")

PRIORS = {  # variants of `tiny_prior.py`, with keys of their config
    "class": ("raster", {}),
    "gpt": ("gpt", {"classes": 5}),
    "none": ("unconditional", {"drop": 0.0}),
    "coordinates": ("coordinates", {}),
    "segmentation": ("segmentation", {"classes": 9}),
    "depth": ("depth", {}),
    "edges": ("edges", {}),
    "half": ("half", {"condition__size": 4}),
    "boxes": ("boxes", {"classes": 8}),
    "boxes, no crop points": ("boxes", {"classes": 8, "condition__crop_points": False}),
    "centers": ("centers", {"classes": 8}),
    "both ways": ("boxes", {"classes": 8, "transformer__bidirectional_prefix": 20}),
}


@functools.cache
def prior(name, positions):
    variant, fields = PRIORS[name]
    return untrained.prior(variant, **{"transformer__order": "raster", "transformer__positions": positions} | fields)


def objects(seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (5, 2))
    return np.concatenate([corner, rng.uniform(0.2, 0.5, (5, 2))], axis=1), rng.integers(0, 8, 5), np.zeros(5, int)


def said(model, height, width):
    """What a caller says for images of height x width pixels."""
    rng, kind = np.random.default_rng(1), model.config.condition.kind
    layouts = lambda layout: (
        [layout.encode(*objects(i), rng=np.random.default_rng((0, 0, 0))) for i in range(BATCH)]
        if (height, width) == (F * SIDE, F * SIDE)
        else [
            layout.windows(*objects(i), grid=(height // F, width // F), window=(SIDE, SIDE), seed=0)
            for i in range(BATCH)
        ]
    )
    if kind == "class":
        return {"labels": np.array([1, 3])}
    if kind in ("none", "coordinates"):
        return {"count": BATCH}
    if kind in ("boxes", "centers"):
        return {"condition": np.stack(layouts(model.module.condition.layout))}
    if kind == "segmentation":
        return {"condition": rng.integers(0, 9, (BATCH, height, width)).astype(np.int32)}
    if kind == "depth":
        return {"condition": rng.uniform(-1, 1, (BATCH, height, width, 1)).astype(np.float32)}
    return {"condition": rng.integers(0, 256, (BATCH, height, width, 3), dtype=np.uint8)}


def tokens_of(model):
    given = {"labels": None, "condition": None, "count": None, "size": None} | said(model, F * SIDE, F * SIDE)
    return prefixes.prefix(model, **given).tokens


def check_own_grid(model, drawn, *others):
    """`sliding.sample` of the prior's own grid is `prior.sample`, with each of the settings."""
    tokens, keys, grid = tokens_of(model), jax.random.split(jax.random.key(3), BATCH), (SIDE, SIDE)
    prompt = jax.random.randint(jax.random.key(4), (BATCH, *grid), 0, 16)
    known = jax.random.uniform(jax.random.key(5), prompt.shape) < 0.1

    @fast_jit
    def both(params, tokens, settings):
        at = prefixes.window_of(model.module.condition, tokens, grid)
        large = sliding.sample(model.module, params, at, grid, keys, settings, prompt, known)
        return large, priors.sample(model.module, params, tokens, keys, settings, prompt, known)

    for settings in (drawn, *others):
        large, own = both(model.params, tokens, settings)
        np.testing.assert_array_equal(large, own)
        assert len(np.unique(own)) > 3  # or agreeing would be easy


def settings_of(model):
    return GUIDED if model.config.condition.drop else DRAWN


@pytest.mark.parametrize("name", PRIORS)
def test_the_priors_own_grid_is_sampled_as_the_prior_does(name):
    model = prior(name, "rope2d")
    drawn = settings_of(model)
    check_own_grid(model, drawn, drawn.replace(temperature=1e-3))  # almost greedy, without a second compilation


@pytest.mark.slow
@pytest.mark.parametrize("settings", [GREEDY, DRAWN, GUIDED], ids=["greedy", "drawn", "guided"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", PRIORS)
def test_so_it_is_under_every_position_code(name, positions, settings):
    model = prior(name, positions)
    if settings.guidance is not None and not model.config.condition.drop:
        pytest.skip("no condition that could be dropped")
    check_own_grid(model, settings)


@pytest.mark.parametrize("rule", sliding.RULES)
def test_over_the_priors_own_grid_the_window_stands_still(rule):
    for side in range(2, 18):
        for stride in range(1, side // 2 + 1):
            (whole,) = zip(*sliding.runs((side, side), (side, side), rule, stride), strict=True)
            assert whole == (0, side * side, 0, 0, 0)
