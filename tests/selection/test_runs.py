"""Exactly k of every m neighbours, against a stable sort of each run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from eqsparse._selection import select_in_runs

SPECIAL = [0.0, -0.0, 1.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan]


def by_run(scores, m, axis, k):
    """The k largest of each run; ties by index, NaN last (NumPy sorts it last)."""
    scores = np.moveaxis(np.asarray(scores).astype(np.float64), axis, -1)
    runs = scores.reshape(-1, m)
    mask = np.zeros(runs.shape, bool)
    np.put_along_axis(mask, np.argsort(-runs, axis=-1, kind="stable")[:, :k], True, axis=-1)
    return np.moveaxis(mask.reshape(scores.shape), -1, axis)


@functools.cache
def chooser(m, axis):
    return jax.jit(lambda scores, k: select_in_runs(scores, m, axis, k))


@pytest.mark.parametrize("shape, m, axis", [((6, 8), 4, 1), ((8, 6), 2, 0), ((2, 10, 3), 5, 1), ((64, 3), 32, 0)])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_scores_any_k(shape, m, axis, data):
    """PREDECESSOR rows 2 and 5: ties go to the lower index as everywhere, and NaNs are kept last."""
    n = int(np.prod(shape))
    score = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))
    scores = np.asarray(data.draw(st.lists(score, min_size=n, max_size=n)), np.float32).reshape(shape)
    k = data.draw(st.integers(0, m))
    found = chooser(m, axis)(scores, jnp.uint32(k))
    np.testing.assert_array_equal(np.asarray(found), by_run(scores, m, axis, k))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("m", [1, 2, 4, 16, 32, 33, 64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_short_runs_and_long_ones(m, axis, dtype):
    """Both ways of choosing (all pairs, and bisection for long runs), along any axis."""
    shape = [2, 3, 2]
    shape[axis] = 2 * m
    scores = np.random.default_rng(m).integers(-2, 3, shape).astype(np.float32)
    scores[0, 0, 0] = np.nan
    scores = jnp.asarray(scores, dtype)
    for k in sorted({0, 1, m // 2, m}):
        found = chooser(m, axis)(scores, jnp.uint32(k))
        np.testing.assert_array_equal(np.asarray(found), by_run(scores, m, axis, k))


@pytest.mark.parametrize("m", [4, 40])
def test_equal_scores_go_by_index(m):
    """PREDECESSOR row 2: the first of each run, as in every other structure."""
    for value in (0.0, np.nan, -np.inf):
        found = np.asarray(chooser(m, 1)(jnp.full((3, 2 * m), value), jnp.uint32(3)))
        np.testing.assert_array_equal(found, np.broadcast_to(np.arange(2 * m) % m < 3, (3, 2 * m)))


def test_nans_are_not_kept_while_numbers_are_left():
    """PREDECESSOR row 5: N:M there keeps the NaNs."""
    scores = jnp.asarray([[jnp.nan, -jnp.inf, 1.0, jnp.nan], [jnp.nan, jnp.nan, jnp.nan, -5.0]])
    found = np.asarray(select_in_runs(scores, 4, 1, jnp.uint32(2)))
    np.testing.assert_array_equal(found, [[False, True, True, False], [True, False, False, True]])


@pytest.mark.parametrize("m", [4, 40])
def test_lots(m):
    lots = np.random.default_rng(0).integers(0, 2**32 - 3, (5, m), np.uint64).astype(np.uint32)
    found = chooser(m, 1)(jnp.asarray(lots), jnp.uint32(3))
    np.testing.assert_array_equal(np.asarray(found), by_run(lots, m, 1, 3))


@pytest.mark.parametrize("m", [4, 40])
def test_mapped_over_k_and_over_scores(m):
    scores = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 2 * m)), jnp.float32)
    ks = jnp.asarray([0, 1, 3], jnp.uint32)
    found = jax.vmap(lambda s, k: select_in_runs(s, m, 1, k))(scores, ks)
    expected = [by_run(s, m, 1, int(k)) for s, k in zip(scores, ks, strict=True)]
    np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("m", [4, 40])
def test_empty_arrays(m):
    for shape in ((0, m), (3, 0)):
        assert select_in_runs(jnp.zeros(shape), m, 1, jnp.uint32(2)).shape == shape
