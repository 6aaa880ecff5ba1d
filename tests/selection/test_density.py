"""Sparsities to densities to counts, against exact fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from eqsparse._selection import (
    count,
    count_up,
    density_from_fraction,
    density_of,
    fraction_of,
    FULL,
    highest_line,
    sparsity_of,
)

GRID = 10**7


def on_grid(sparsity):
    """The multiple of 1e-7 that a sparsity stands for."""
    return Fraction(round(Fraction(sparsity) * GRID), GRID)


def nearest(n, sparsity):
    """⌊n (1 - s) + 1/2⌋ in exact arithmetic."""
    return (n * (1 - on_grid(sparsity)) + Fraction(1, 2)).__floor__()


def number(wide):
    return (np.asarray(wide.hi).astype(object) << 32) + np.asarray(wide.lo).astype(object)


traced_density = jax.jit(density_of)
counted = jax.jit(lambda s, n: count(n, density_of(s)), static_argnums=1)


# Densities.


def test_every_multiple_of_1e7_is_exact():
    """All ten million and one of them: the density is ⌈(1 - s) 2³²⌉."""
    removed = np.arange(GRID + 1, dtype=np.uint64)
    sparsity = (removed.astype(np.float64) / GRID).astype(np.float32)
    kept = np.uint64(GRID) - removed
    expected = np.minimum(-(-(kept.astype(np.int64) << 32) // GRID), 2**32 - 1)
    found = np.asarray(jax.jit(density_of)(sparsity))
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, expected.astype(np.uint32))


@settings(deadline=None, max_examples=300)
@given(st.floats(0, 1, width=32))
def test_other_floats_stand_for_the_nearest_multiple(sparsity):
    exact = Fraction(sparsity) * GRID
    removed = (exact + Fraction(1, 2)).__floor__()
    expected = min(-(-((GRID - removed) << 32) // GRID), 2**32 - 1)
    assert int(density_of(sparsity)) == expected


@pytest.mark.parametrize(
    "sparsity, density",
    [
        *[(0.0, FULL), (-0.0, FULL), (1e-40, FULL), (4.9e-8, FULL), (1.0, 0), (-0.5, FULL), (1.5, 0)],
        *[(float("nan"), FULL), (float("inf"), 0), (float("-inf"), FULL), (0.5, 2**31), (0.75, 2**30)],
    ],
)
def test_ends_of_the_range_and_beyond(sparsity, density):
    """What is out of range is clamped (a compiled step can't raise); full density is held as 2³² - 1."""
    assert int(density_of(sparsity)) == int(jax.jit(density_of)(sparsity)) == density


def test_all_kinds_of_numbers_mean_the_same():
    """Python, NumPy and JAX numbers, traced or not, mapped or not: 0.9 is nine tenths (and 1 is 1)."""
    expected = -(-(2**32) // 10)
    for sparsity in (0.9, np.float32(0.9), np.float64(0.9), np.array(0.9), jnp.array(0.9), jnp.float32(0.9)):
        assert int(density_of(sparsity)) == expected
        assert int(jax.jit(density_of)(sparsity)) == expected
    assert int(density_of(1)) == 0 and int(density_of(0)) == FULL
    several = jnp.asarray([0.9, 0.0, 1.0, 0.5])
    expected = [expected, FULL, 0, 2**31]
    np.testing.assert_array_equal(np.asarray(density_of(several)), expected)
    np.testing.assert_array_equal(np.asarray(jax.vmap(density_of)(several)), expected)


def test_with_64_bit_numbers_enabled():
    with jax.enable_x64(True):
        assert int(density_of(jnp.asarray(0.9, jnp.float64))) == -(-(2**32) // 10)
        assert density_of(0.9).dtype == jnp.uint32
        assert number(count(10**9, density_of(0.999))) == 10**6


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 1))
def test_float64s_stand_for_their_own_nearest_multiple(sparsity):
    """Not for that of their float32: 1 - 13/31 is 0.58064516, whose float32 lies nearer to 0.5806451."""
    exact = Fraction(sparsity) * GRID
    expected = [GRID - (exact + Fraction(1, 2) + hair).__floor__() for hair in (0, Fraction(1, 10**8))]
    found = int(density_of(sparsity))
    assert found in [min(-(-(kept << 32) // GRID), 2**32 - 1) for kept in expected]
    assert found == int(density_of(np.float64(sparsity))) == int(density_of(np.asarray(sparsity)))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, GRID))
def test_sparsity_of_gives_back_the_sparsity(removed):
    assert sparsity_of(density_of(removed / GRID)) == removed / GRID


def test_fractions_there_and_back():
    fraction = np.float32([0, 1, 0.5, 0.1, 1e-7, 2.0**-32, 2.0**-24, 1 - 2.0**-24, 1.5, -0.5, np.nan])
    expected = [0, FULL, 2**31, round(Fraction(float(np.float32(0.1))) * 2**32), 429, 1, 256, 2**32 - 256, FULL, 0, 0]
    density = density_from_fraction(fraction)
    np.testing.assert_array_equal(np.asarray(density), np.asarray(expected, np.uint32))
    back = np.asarray(fraction_of(density))
    assert back[1] == 1 and back[0] == 0
    np.testing.assert_allclose(back[2:6], [0.5, 0.1, 1e-7, 2.0**-32], rtol=2e-3)
    assert float(fraction_of(density_of(0.9))) == np.float32(0.1)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.floats(2**-20, 2**20), st.floats(0, 1)), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_the_highest_of_lines(lines, density):
    """Against exact fractions, to 32 bits of the slopes (and one more for what is cut off)."""
    slope = np.asarray([s for s, _ in lines])
    offset = np.asarray([s * part for s, part in lines])
    x = Fraction(density, 2**32)
    exact = [min(max(Fraction(s) * x - Fraction(o), 0), 1) for s, o in zip(slope, offset, strict=True)]
    found = int(highest_line(jnp.uint32(density), slope[None], offset[None])[0])
    assert abs(Fraction(found, 2**32) - max(exact)) <= Fraction(slope.max()) / 2**32 + Fraction(1, 2**32)


# Counts.


@pytest.mark.parametrize(
    "n, sparsity, kept",
    [
        (10**8, 0.9, 10**7),
        (10**9, 0.999, 10**6),
        (10**9, 0.9, 10**8),
        (2**31 - 1, 0.5, 2**30),
        (2**31, 0.5, 2**30),
        (3 * 10**9, 0.9, 3 * 10**8),
        (4 * 10**8, 0.8, 8 * 10**7),
    ],
)
def test_large_counts_are_exact(n, sparsity, kept):
    """PREDECESSOR row 1: float32 arithmetic on sizes keeps 10,000,002 of 10⁸ at 90%, and overflows beyond 2³¹."""
    assert number(count(n, density_of(sparsity))) == kept
    assert number(counted(jnp.asarray(sparsity), n)) == kept
    assert number(counted(np.float64(sparsity), n)) == kept


@pytest.mark.parametrize(
    "n, sparsity", [(2_700_000_000, 0.8), (10**10, 0.9), (10**10, 0.5), (2**32, 0.25), (10**12, 0.99)]
)
def test_counts_beyond_what_32_bits_hold(n, sparsity):
    """PREDECESSOR row 1: the 32 bits of a density leave less than n 2⁻³² weights open, none if 1 - s is dyadic."""
    error = number(count(n, density_of(sparsity))) - nearest(n, sparsity)
    assert 0 <= error <= (0 if sparsity in (0.5, 0.25) else n / 2**32 + 0.5)


@pytest.mark.parametrize("n, sparsity, kept", [(1, 0.5, 1), (3, 0.5, 2), (5, 0.5, 3), (5, 0.9, 1), (10, 0.85, 2)])
def test_halves_round_up(n, sparsity, kept):
    """PREDECESSOR row 1."""
    assert number(count(n, density_of(sparsity))) == kept


def test_small_counts_are_exact_at_every_multiple_of_1e7():
    """PREDECESSOR row 1: for n ≤ 429 (n 2⁻³² < 1e-7) there is no tolerance at all. A million sparsities each."""
    removed = np.random.default_rng(0).integers(0, GRID + 1, 10**6)
    removed[:7] = [0, 1, GRID // 2, GRID // 4, GRID - 1, GRID, GRID // 2 - 1]
    sparsity = jnp.asarray(removed / GRID, jnp.float32)
    for n in (1, 2, 3, 64, 429):
        expected = (2 * n * (GRID - removed) + GRID) // (2 * GRID)
        found = counted(sparsity, n)
        assert not np.asarray(found.hi).any()
        np.testing.assert_array_equal(np.asarray(found.lo), expected)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**31), st.integers(0, GRID))
def test_counts_of_any_size(n, removed):
    """PREDECESSOR row 1. A density is rounded up in its 32nd bit, so the count is ⌊n (1 - s) + 1/2⌋, or one more
    where the fraction of n (1 - s) lies within n 2⁻³² below one half. Traced or not, it is the same."""
    exact = n * (1 - Fraction(removed, GRID))
    expected = (exact + Fraction(1, 2)).__floor__()
    close = (exact + Fraction(1, 2) + Fraction(n, 2**32)).__floor__()
    found = number(count(n, density_of(removed / GRID)))
    assert expected <= found <= close <= expected + 1
    assert number(count(n, traced_density(removed / GRID))) == found


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**22), st.integers(0, 1000))
def test_counts_at_whole_per_mille_are_exact(n, per_mille):
    """PREDECESSOR row 1: fractions are then multiples of 1/1000, further from one half than n 2⁻³²."""
    assert number(count(n, density_of(per_mille / 1000))) == nearest(n, per_mille / 1000)


@settings(deadline=None, max_examples=100)
@given(st.integers(2**31, 2**40), st.integers(0, 2**32 - 1))
def test_counts_beyond_32_bits(n, density):
    """PREDECESSOR row 1: the product of a size and a density in integers, whatever the size."""
    expected = n if density == FULL else (n * density + 2**31) >> 32
    assert number(count(n, jnp.uint32(density))) == expected


def test_counts_of_a_sweep():
    """PREDECESSOR row 1: under `vmap` over sparsities."""
    sparsities = np.arange(0, 1001) / 1000
    found = jax.vmap(lambda s: count(10**6 + 1, density_of(s)))(jnp.asarray(sparsities, jnp.float32))
    np.testing.assert_array_equal(number(found), [nearest(10**6 + 1, s) for s in sparsities])


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 64), st.integers(0, GRID))
def test_runs_round_up(m, removed):
    """⌈m (1 - s)⌉ where it is not a whole number by a hair: within half of 1e-7 in s it counts as whole."""
    kept = m * (1 - Fraction(removed, GRID))
    hair = Fraction(m, 2 * GRID)
    found = int(count_up(m, density_of(removed / GRID)))
    assert (kept - hair).__ceil__() <= found <= (kept + hair).__ceil__()


@pytest.mark.parametrize("m", [2, 3, 4, 6, 7, 8, 9, 12, 16, 31, 32, 64])
def test_runs_at_whole_numbers(m):
    """A sparsity of 1 - k/m keeps k of m, also where it is no multiple of 1e-7 (thirds, sevenths)."""
    found = [int(count_up(m, density_of(1 - k / m))) for k in range(m + 1)]
    assert found == list(range(m + 1))
