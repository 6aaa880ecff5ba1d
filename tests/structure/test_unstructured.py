"""`Unstructured`: any weight of the site, or so many of each row."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from eqsparse import Unstructured
from eqsparse._selection import density_of, finish_all
from eqsparse._structure import Geometry

SPARSITIES = [0.0, 0.1, 0.5, 0.6, 0.9, 0.9999999, 1.0]


def largest(scores, k):
    mask = np.zeros(np.size(scores), bool)
    mask[np.argsort(-np.asarray(scores).astype(np.float64).ravel(), kind="stable")[:k]] = True
    return mask.reshape(np.shape(scores))


def wanted(n, sparsity):
    """⌊n (1 - s) + 1/2⌋ exactly, and one at least unless s is 1."""
    share = 1 - Fraction(round(sparsity * 10**7), 10**7)
    return max((n * share + Fraction(1, 2)).__floor__(), int(share > 0))


def draw(shape, dtype=jnp.float32, seed=0):
    scores = np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)
    return jnp.asarray(scores, dtype)


@eqx.filter_jit
def in_stack(structure, scores, sparsity):
    """The mask of a stack of matrices."""
    return finish_all([structure.enter(scores, density_of(sparsity), Geometry(2, 1))])[0]


masked = eqx.filter_jit(lambda structure, scores, sparsity: structure.mask(scores, sparsity))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(), (7,), (6, 10), (3, 4, 2, 2)])
def test_keeps_exactly_the_share_asked_for(shape, dtype):
    scores = draw(shape, dtype)
    for sparsity in SPARSITIES:
        found = masked(Unstructured(), scores, jnp.float32(sparsity))
        np.testing.assert_array_equal(np.asarray(found), largest(scores, wanted(scores.size, sparsity)))


@pytest.mark.parametrize("per", ["site", "row"])
def test_traced_and_plain_sparsities_agree(per):
    scores, structure = draw((6, 10)), Unstructured(per)
    expected = np.asarray(masked(structure, scores, jnp.float32(0.85)))
    assert expected.sum() == 9
    for given_as in (0.85, np.float64(0.85), jnp.asarray(0.85)):
        np.testing.assert_array_equal(np.asarray(structure.mask(scores, given_as)), expected)
    np.testing.assert_array_equal(np.asarray(structure.mask(np.asarray(scores), 0.85)), expected)
    assert not np.asarray(structure.mask(scores, 1)).any()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from([0.0, 1.0, np.nan, -np.inf]), st.floats(width=32)), min_size=60, max_size=60))
def test_any_scores_at_a_sweep_of_sparsities(values):
    """PREDECESSOR row 5: NaN scores come last and never change how many are kept."""
    scores = np.asarray(values, np.float32).reshape(6, 10)
    found = sweep(scores, jnp.asarray(SPARSITIES, jnp.float32))
    for sparsity, mask in zip(SPARSITIES, found, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), largest(scores, wanted(60, sparsity)))


sweep = jax.jit(jax.vmap(Unstructured().mask, in_axes=(None, 0)))


def test_ties_go_to_the_lower_flat_index():
    """PREDECESSOR row 2: in N:M, tiles and channels too (see their tests)."""
    for value in (0.0, 3.0, np.nan, -np.inf):
        found = np.asarray(masked(Unstructured(), jnp.full((4, 5), value), jnp.float32(0.65)))
        np.testing.assert_array_equal(found, (np.arange(20) < 7).reshape(4, 5))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("per", ["site", "row"])
def test_empty_weights(shape, per):
    assert Unstructured(per).mask(jnp.zeros(shape), 0.5).shape == shape


def test_a_second_mask_compiles_nothing(caplog):
    """Also outside of compiled functions; the sparsity is no part of what is compiled."""
    structure = Unstructured()
    structure.mask(draw((6, 10)), 0.85)
    with jax.log_compiles():
        structure.mask(draw((6, 10), seed=1), 0.5)
    assert [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()] == []


# Rows.


@pytest.mark.parametrize("shape", [(6, 10), (5, 3, 2), (4, 3, 2, 2), (1, 7)])
def test_rows_share_the_budget_to_the_weight(shape):
    """Each row keeps the same number; what is left over goes one each to the first rows. The total is the site's."""
    scores = draw(shape)
    n, rows = scores.size, shape[0]
    for sparsity in SPARSITIES:
        found = np.asarray(masked(Unstructured("row"), scores, jnp.float32(sparsity)))
        k = wanted(n, sparsity)
        counts = [k // rows + (i < k % rows) for i in range(rows)]
        expected = [largest(row, c) for row, c in zip(scores, counts, strict=True)]
        np.testing.assert_array_equal(found, expected)
        assert found.sum() == k


def test_sixty_percent_of_rows_of_96():
    """57.6 of each are removed: 38.4 kept, 38 or 39, and 5 · 38.4 = 192 in all."""
    found = np.asarray(Unstructured("row").mask(draw((5, 96)), 0.6))
    assert found.sum(axis=1).tolist() == [39, 39, 38, 38, 38]


def test_rows_of_a_vector_are_the_vector():
    scores = draw((9,))
    np.testing.assert_array_equal(np.asarray(Unstructured("row").mask(scores, 0.5)), largest(scores, 5))
    assert bool(Unstructured("row").mask(jnp.asarray(2.0), 0.9))


# Stacks.


@pytest.mark.parametrize("stack", [(3,), (2, 3)])
def test_each_layer_of_a_stack_has_its_own_budget(stack):
    """PREDECESSOR row 22: stack axes are no part of a layer."""
    scores = draw((*stack, 5, 7))
    for sparsity in (0.0, 0.9, 0.9999999, 1.0):
        found = np.asarray(in_stack(Unstructured(), scores, jnp.float32(sparsity)))
        for i in np.ndindex(*stack):
            np.testing.assert_array_equal(found[i], largest(scores[i], wanted(35, sparsity)))


def test_rows_in_a_stack():
    scores = draw((3, 4, 5))
    found = in_stack(Unstructured("row"), scores, jnp.float32(0.7))  # 6 of 20: rows of 2, 2, 1, 1
    for layer, mask in zip(scores, found, strict=True):
        rows = zip(layer, (2, 2, 1, 1), strict=True)
        np.testing.assert_array_equal(mask, [largest(row, k) for row, k in rows])


# Errors.


@pytest.mark.own_message
@pytest.mark.parametrize("per", ["rows", None, 1, True])
def test_wrong_per(per):
    with pytest.raises(ValueError, match=rf'`Unstructured\(per=...\)` must be "site" or "row". Got {per!r}'):
        Unstructured(per)


@pytest.mark.own_message
@pytest.mark.parametrize("sparsity", [1.2, -0.1, float("nan"), float("inf"), np.float32(1.5), jnp.asarray(-1.0), 2])
def test_sparsities_out_of_range(sparsity):
    shown = str(np.asarray(sparsity)) if hasattr(sparsity, "dtype") else repr(sparsity)
    with pytest.raises(ValueError, match=rf"`sparsity` must be in \[0, 1\]\. Got {shown}\."):
        Unstructured().mask(jnp.ones(3), sparsity)


@pytest.mark.own_message
@pytest.mark.parametrize("sparsity", ["x", True, None, [0.5], 0.5j])
def test_sparsities_that_are_no_numbers(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be a number\. Got ") as raised:
        Unstructured().mask(jnp.ones(3), sparsity)
    assert repr(sparsity) in str(raised.value)


def test_traced_sparsities_out_of_range_are_clamped():
    """A compiled step never raises."""
    scores = draw((4, 5))
    for sparsity, kept in ((1.2, 0), (-0.1, 20), (np.nan, 20)):
        assert int(masked(Unstructured(), scores, jnp.float32(sparsity)).sum()) == kept


@pytest.mark.own_message
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_scores_that_have_no_order(dtype):
    with pytest.raises(ValueError, match=rf"`scores` must be floating point.*Got dtype {jnp.dtype(dtype).name}"):
        Unstructured().mask(jnp.zeros((2, 3), dtype), 0.5)
