"""The sliding window of every tiny prior: what it sees, and what it draws, against plain forward passes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax import api
from vqgan_jax import prior as priors
from vqgan_jax.conditions import Frozen
from vqgan_jax.conditions.codes import Depth
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
    # Maps of 8 pixels that are brought to another size: 2, 3 or 8 rows and columns of codes for 4 of the image's.
    "half": ("half", {"condition__size": 4}),
    "three quarters": ("half", {"condition__size": 6}),
    "twice": ("half", {"condition__size": 16}),
    "boxes": ("boxes", {"classes": 8}),
    "boxes, no crop points": ("boxes", {"classes": 8, "condition__crop_points": False}),
    "centers": ("centers", {"classes": 8}),
    "both ways": ("boxes", {"classes": 8, "transformer__bidirectional_prefix": 20}),
}


@functools.cache
def prior(name, positions):
    variant, fields = PRIORS[name]
    return untrained.prior(variant, **{"transformer__order": "raster", "transformer__positions": positions} | fields)


def objects(i):
    """Boxes, categories and modifiers of image i."""
    rng = np.random.default_rng(i)
    boxes = np.concatenate([rng.uniform(0, 0.5, (5, 2)), rng.uniform(0.2, 0.5, (5, 2))], axis=1)
    return boxes, rng.integers(0, 8, 5), np.zeros(5, int)


def said(model, grid):
    """What a caller says for images of that many codes."""
    height, width, kind = F * grid[0], F * grid[1], model.config.condition.kind
    rng = np.random.default_rng(1)
    if kind == "class":
        return {"labels": np.array([1, 3])}
    if kind in ("none", "coordinates"):
        return {"count": BATCH}
    if kind in ("boxes", "centers"):
        windows = functools.partial(model.module.condition.encode_windows, grid=grid, seed=0)
        tokens = np.stack([windows(*objects(i)) for i in range(BATCH)])
        return {"condition": tokens[:, 0, 0] if grid == (SIDE, SIDE) else tokens}
    if kind == "segmentation":
        return {"condition": rng.integers(0, 9, (BATCH, height, width)).astype(np.int32)}
    if kind == "depth":
        return {"condition": rng.uniform(-1, 1, (BATCH, height, width, 1)).astype(np.float32)}
    return {"condition": rng.integers(0, 256, (BATCH, height, width, 3), dtype=np.uint8)}


def prefix(model, grid, **more):
    """The prefix of what `said` says."""
    size = (F * grid[0], F * grid[1])
    return api.prefix(
        model, **{"labels": None, "condition": None, "count": None, "size": size} | said(model, grid) | more
    )


def trained_on(model, grid, top, left):
    """The tokens that training would put before the crop of a larger image whose upper left code that is."""
    condition, kind, request = model.module.condition, model.config.condition.kind, said(model, grid)
    crop = np.s_[:, F * top : F * (top + SIDE), F * left : F * (left + SIDE)]
    if kind == "class":
        return request["labels"][:, None]
    if kind == "none":
        return np.zeros((BATCH, 1), np.int32)
    if kind == "coordinates":
        place = np.arange(F * grid[0] * F * grid[1], dtype=np.float32).reshape(1, F * grid[0], F * grid[1], 1)
        part = np.repeat((place / place.size)[crop], BATCH, axis=0)
        return condition.encode({}, {"coordinates": jnp.asarray(part)})
    if kind in ("boxes", "centers"):
        box = (left / grid[1], top / grid[0], SIDE / grid[1], SIDE / grid[0])
        rng = lambda: np.random.default_rng((0, top, left))
        return np.stack([condition.encode_objects(*objects(i), crop=box, rng=rng()) for i in range(BATCH)])
    maps = request["condition"]
    if not condition.size:  # as published: the codes of the whole map are cut
        codes = np.asarray(vq.encode(model.condition or model.tokenizer, maps))
        return codes[:, top : top + SIDE, left : left + SIDE].reshape(BATCH, -1)
    return encode(model.module, model.frozen, {condition.field: maps[crop]})


@functools.partial(fast_jit, static_argnums=0)
def encode(module, frozen, batch):
    return module.condition.encode(frozen, batch)


@functools.partial(fast_jit, static_argnums=0)
def forward(module, params, tokens, codes):
    return priors.logits(module, params, tokens, codes)


def restated(model, grid, keys, settings, stride):
    """No cache, no runs: for each code a whole forward of its window behind the tokens of training."""
    codes = np.random.default_rng(0).integers(0, 16, (BATCH, *grid))
    rule = "scene" if model.config.condition.kind in ("boxes", "centers") else "center"
    tops, lefts = (priors.origins(side, SIDE, rule, stride) for side in grid)
    tokens_at = functools.cache(lambda top, left: jnp.asarray(trained_on(model, grid, top, left)))
    for k in range(codes[0].size):
        i, j = divmod(k, grid[1])
        top, left = int(tops[i]), int(lefts[j])
        tokens, window = tokens_at(top, left), codes[:, top : top + SIDE, left : left + SIDE].reshape(BATCH, -1)
        logits_of = lambda tokens, window=window: forward(model.module, model.params, tokens, window)
        logits = logits_of(tokens)
        if settings.guidance is not None:
            null = logits_of(model.module.null(tokens))
            logits = null + (1 + (settings.guidance - 1) * k / codes[0].size) * (logits - null)
        logits = logits[:, (i - top) * SIDE + j - left]
        drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, k), row))  # noqa: B023
        codes[:, i, j] = logits.argmax(-1) if settings.greedy else drawn(keys, logits / settings.temperature)
    return codes


def check_own_grid(model, drawn, *others):
    """`prior.sample_larger` of the prior's own grid is `prior.sample`, with each of the settings."""
    grid, keys = (SIDE, SIDE), jax.random.split(jax.random.key(3), BATCH)
    tokens = prefix(model, grid).tokens
    prompt = jax.random.randint(jax.random.key(4), (BATCH, *grid), 0, 16)
    known = jax.random.uniform(jax.random.key(5), prompt.shape) < 0.1

    @fast_jit
    def both(params, tokens, settings):
        at = functools.partial(model.module.condition.window_of, tokens)
        large = priors.sample_larger(model.module, params, at, grid, keys, settings, prompt, known)
        return large, priors.sample(model.module, params, tokens, keys, settings, prompt, known)

    for settings in (drawn, *others):
        large, own = both(model.params, tokens, settings)
        np.testing.assert_array_equal(large, own)
        assert len(np.unique(own)) > 3  # or agreeing would be easy


def settings_of(model):
    return GUIDED if model.config.condition.drop else DRAWN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "positions"), [*zip(PRIORS, itertools.cycle(POSITIONS), strict=False)])
def test_the_priors_own_grid_is_sampled_as_the_prior_does(name, positions):
    """Takes each condition under one position code; each code has several conditions."""
    model = prior(name, positions)
    drawn = settings_of(model)
    check_own_grid(model, drawn, drawn.replace(temperature=1e-3))  # almost greedy, without a second compilation


@pytest.mark.slow
@pytest.mark.parametrize("settings", [GREEDY, DRAWN, GUIDED.replace(schedule="cosine", top_k=5)])
@pytest.mark.parametrize("name", ["segmentation", "boxes"])
def test_so_it_is_with_all_settings(name, settings):
    check_own_grid(prior(name, "rope2d"), settings)


@pytest.mark.parametrize("rule", priors.RULES)
def test_over_the_priors_own_grid_the_window_stands_still(rule):
    for side in range(2, 18):
        for stride in range(1, side // 2 + 1):
            (whole,) = zip(*priors.runs((side, side), (side, side), rule, stride), strict=True)
            assert whole == (0, side * side, 0, 0, 0)


# Larger images


def check_larger(model, grid, stride, settings):
    """Codes through the window are those of `restated`."""
    keys, size = jax.random.split(jax.random.key(3), BATCH), (F * grid[0], F * grid[1])
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    codes = vq.sample_indices(model, keys, **said(model, grid), size=size, stride=stride, **options)
    np.testing.assert_array_equal(codes, restated(model, grid, keys, settings, stride))
    assert settings.greedy or len(np.unique(codes)) > 3  # the likeliest codes may all be one


@pytest.mark.parametrize(("name", "stride"), [("boxes", 2), ("half", 1)])
def test_larger_images_are_drawn_behind_the_tokens_of_training(name, stride):
    model = prior(name, "rope2d")
    check_larger(model, (5, 7), stride, settings_of(model))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [*zip(PRIORS, itertools.cycle((1, 2)), strict=False)])
def test_so_they_are_of_every_condition(name, stride):
    model = prior(name, {1: "learned", 2: "rope2d"}[stride])
    check_larger(model, (5, 6), stride, settings_of(model) if stride == 2 else GREEDY)


@pytest.mark.parametrize("name", ["half", "three quarters", "twice"])
def test_windows_see_the_codes_of_their_part_of_a_map_that_is_brought_to_a_size(name):
    model, grid = prior(name, "rope2d"), (5, 7)
    found = prefix(model, grid, size=None)  # as large as the map
    assert (found.grid, found.tokens.shape) == (grid, (BATCH, 2, 4, model.module.condition.length))
    for top, left in np.ndindex(2, 4):
        np.testing.assert_array_equal(found.tokens[:, top, left], trained_on(model, grid, top, left))
    some = np.asarray(prefix(model, (6, 8), stride=2).tokens)
    whole = np.asarray(prefix(model, (6, 8)).tokens)
    np.testing.assert_array_equal(some[:, ::2, ::2], whole[:, ::2, ::2])
    assert not some[:, 1::2].any(), "no window of that stride stands there"
    assert not some[:, :, 1::2].any()


def test_maps_are_cut_where_windows_see_whole_codes():
    for name, cut in {
        "segmentation": True,
        "edges": True,
        "half": False,
        "three quarters": False,
        "twice": False,
    }.items():
        assert prior(name, "rope2d").module.condition.is_cut == cut
    for side, cut in {2: False, 3: False, 4: True, 6: False, 8: True}.items():
        depth = Depth(window=(SIDE, SIDE), downsample_factor=12, encoder=Frozen(downsample_factor=12 * SIDE // side))
        assert (depth.grid, depth.is_cut) == ((side, side), cut)


def test_a_map_is_shown_as_its_windows_see_it():
    """Of 8 x 14 pixels two windows side by side, the second one flush with the border."""
    model = prior("half", "rope2d")
    maps = said(model, (SIDE, 7))["condition"]
    _, shown = model.module.condition.beside(model.frozen, maps, maps.shape[1:3])
    picture = lambda left: model.module.condition.picture(
        model.frozen, np.asarray(trained_on(model, (SIDE, 7), 0, left)), F * SIDE
    )
    np.testing.assert_array_equal(shown, np.concatenate([picture(0)[:, :, :6], picture(3)], axis=2))


def test_sizes_that_cannot_be_are_named():
    model = prior("half", "rope2d")
    draw = functools.partial(vq.sample_indices, model, jax.random.key(0))
    maps = lambda height, width: np.zeros((1, height, width, 3), np.uint8)
    for request, message in (
        ({"condition": maps(8, 13)}, r"multiples of 2 pixels; got \(8, 13\). Ask for \(8, 14\)"),
        ({"condition": maps(4, 8)}, r"at least \(8, 8\), the window"),
        ({"condition": maps(8, 12), "size": (8, 16)}, r"that of the condition, \(8, 12\); got \(8, 16\)"),
        ({"condition": maps(8, 12), "stride": 3}, r"`stride` must be in 1 \.\. 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(**request)
    with pytest.raises(ValueError, match="multiples of 2 pixels"):
        model.module.condition.beside(model.frozen, maps(8, 13), (8, 13))
    spiral = untrained.prior("half", condition__size=4, transformer__order="spiral_in")
    with pytest.raises(ValueError, match="'raster'; this one's is 'spiral_in'"):
        vq.sample_indices(spiral, jax.random.key(0), condition=maps(8, 12))
