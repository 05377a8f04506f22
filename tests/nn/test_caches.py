"""Both forms of a layer's cache against attention over all positions, and which platform has which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.nn import caches

FORMS = {"cpu": caches.CPU, "accelerator": caches.ACCELERATOR}


def attended(form, q, keys, values, position, length=16):
    """By a cache that is filled up to `position`, which is then written."""
    filled = [form.start(x[:, :-1], length) for x in (keys, values)]
    filled = [form.put(c, x[:, -1:], jnp.asarray(position)) for c, x in zip(filled, (keys, values), strict=True)]
    return form.attend(q, *filled, jnp.asarray(position))


@pytest.mark.parametrize("parts", [1, 4, 5])  # 5 parts of 16 positions: with room behind
@pytest.mark.parametrize("position", [0, 7, 8, 15])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("form", FORMS)
def test_it_attends_to_every_position_so_far(form, parts, position, dtype, atol, monkeypatch):
    monkeypatch.setattr(caches, "PARTS", parts)
    q = jax.random.normal(jax.random.key(0), (2, 4, 8), dtype)
    keys, values = jax.random.normal(jax.random.key(1), (2, 2, position + 1, 4, 8), dtype)
    weights = jax.nn.softmax(jnp.einsum("bnp,btnp->bnt", q, keys).astype(jnp.float32) / np.sqrt(8))
    found = attended(FORMS[form], q, keys, values, position)
    assert found.dtype == q.dtype
    np.testing.assert_allclose(
        np.float32(found), jnp.einsum("bnt,btnp->bnp", weights, values.astype(jnp.float32)), atol=atol
    )


def test_groups_of_heads_fill_rows_of_128():
    found = {(n, p): caches.heads_of_a_group(n, p) for n, p in [(16, 96), (12, 64), (16, 128), (8, 64), (4, 8)]}
    assert found == {(16, 96): 4, (12, 64): 2, (16, 128): 2, (8, 64): 2, (4, 8): 4}
    q = jax.random.normal(jax.random.key(0), (2, 4, 64))
    keys, values = jax.random.normal(jax.random.key(1), (2, 2, 10, 4, 64))
    assert caches.ACCELERATOR.start(keys, 16).shape == (2, 2, 16, 128)
    wanted, got = (attended(form, q, keys, values, 9) for form in FORMS.values())
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_behind_the_position_is_not_seen(form):
    form = FORMS[form]
    q = jax.random.normal(jax.random.key(0), (2, 4, 8))
    keys, values = jax.random.normal(jax.random.key(1), (2, 2, 16, 4, 8))
    found = form.attend(q, form.start(keys, 16), form.start(values, 16), jnp.asarray(9))
    np.testing.assert_allclose(found, attended(form, q, keys[:, :10], values[:, :10], 9), atol=1e-6)


@pytest.mark.parametrize(("platform", "form"), [("cpu", "cpu"), ("tpu", "accelerator"), ("cuda", "accelerator")])
def test_the_form_is_that_of_the_platform_a_program_is_compiled_for(platform, form):
    def run(form):
        return jnp.full((), 1000 + form.positions)

    traced = jax.jit(lambda: caches.on_this_platform(run)).trace()
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert [f"dense<{1000 + f.positions}>" in text for f in FORMS.values()] == [name == form for name in FORMS]
