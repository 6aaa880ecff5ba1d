"""`NM`: n of every m neighbours, and never less than the schedule asks for."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import eqsparse
from eqsparse import MagnitudePruning, NM, Polynomial
from eqsparse._selection import density_of, finish_all
from eqsparse._structure import Geometry


def by_run(scores, m, axis, k):
    """The k largest of each run; ties by index, NaN last (NumPy sorts it last)."""
    scores = np.moveaxis(np.asarray(scores).astype(np.float64), axis, -1)
    runs = scores.reshape(-1, m)
    mask = np.zeros(runs.shape, bool)
    np.put_along_axis(mask, np.argsort(-runs, axis=-1, kind="stable")[:, :k], True, axis=-1)
    return np.moveaxis(mask.reshape(scores.shape), -1, axis)


def wanted(n, m, sparsity):
    """max(n, ⌈m (1 - s)⌉) exactly, for a sparsity of so many ten-millionths."""
    return max(n, (m * (1 - Fraction(round(sparsity * 10**7), 10**7))).__ceil__())


def draw(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32), dtype)


masked = eqx.filter_jit(lambda structure, scores, sparsity: structure.mask(scores, sparsity))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("n, m", [(1, 1), (1, 2), (2, 4), (4, 4), (1, 4), (4, 8), (1, 16)])
def test_keeps_the_largest_of_each_run(n, m, dtype):
    scores = draw((5, 2 * m), dtype)
    found = masked(NM(n, m), scores, jnp.float32(1 - n / m))
    np.testing.assert_array_equal(np.asarray(found), by_run(scores, m, 1, n))


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2, -3])
def test_along_any_axis(axis):
    scores = draw((4, 8, 12))
    found = NM(2, 4, axis).mask(scores, 0.5)
    np.testing.assert_array_equal(np.asarray(found), by_run(scores, 4, -1 if axis is None else axis, 2))


@pytest.mark.parametrize(
    "sparsity, kept",
    [(0.0, 4), (0.1, 4), (0.2499999, 4), (0.25, 3), (0.2500001, 3), (0.3, 3), (0.4999999, 3), (0.5, 2), (0.6, 2)],
)
def test_two_of_four_is_reached_by_way_of_four_and_three(sparsity, kept):
    """PREDECESSOR row 9: 2:4 ignores sparsity and schedule there, and is 50% at once."""
    scores = draw((6, 16))
    for given_as in (sparsity, jnp.float32(sparsity)):
        np.testing.assert_array_equal(np.asarray(NM(2, 4).mask(scores, given_as)), by_run(scores, 4, 1, kept))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**7))
def test_never_sparser_than_asked(removed):
    """PREDECESSOR row 9: max(n, ⌈m (1 - s)⌉), traced."""
    sparsity = removed / 10**7
    for n, m in ((2, 4), (3, 10)):
        found = masked(NM(n, m), scores_of[m], jnp.float32(sparsity))
        np.testing.assert_array_equal(np.asarray(found), by_run(scores_of[m], m, 1, wanted(n, m, sparsity)))


scores_of = {4: draw((3, 8)), 10: draw((2, 20))}


@pytest.mark.parametrize("m", [3, 6, 7, 9])
def test_targets_that_are_no_decimal(m):
    """1 - n/m is the target by its own documentation, also where m does not divide 10⁷."""
    scores = draw((3, 2 * m))
    for n in range(1, m + 1):
        sparsity = 1 - n / m
        np.testing.assert_array_equal(np.asarray(NM(n, m).mask(scores, sparsity)), by_run(scores, m, 1, n))
        pruner = MagnitudePruning(distribution=sparsity, structure=NM(n, m))
        pruner.init(eqsparse.MaskedLinear(2 * m, 3, key=jax.random.key(0)))  # no error: the target can be reached


def test_a_schedule_passes_through_four_and_three():
    """PREDECESSOR row 9: linear from 0 to 50% in ten updates, each run 4:4, then 3:4, then 2:4."""
    model = eqsparse.MaskedLinear(16, 8, key=jax.random.key(1))
    pruner = MagnitudePruning(distribution=0.5, structure=NM(2, 4), schedule=Polynomial(0, 10, 1, power=1))
    model, state = pruner.init(model)
    kept = []
    for _ in range(12):
        model, state = pruner.step(model, None, state)
        runs = np.asarray(model.masks["weight"].dense()).reshape(-1, 4).sum(axis=1)
        assert len(set(runs.tolist())) == 1
        kept.append(int(runs[0]))
    assert kept == [4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 2, 2]  # ⌈4 (1 - i/20)⌉


def test_nans_go_first_and_ties_to_the_lower_index():
    """PREDECESSOR rows 2 and 5: ties break the other way in N:M there, and it keeps the NaNs."""
    scores = jnp.asarray([[1.0, jnp.nan, 1.0, 1.0, jnp.nan, -jnp.inf, jnp.nan, jnp.nan]])
    found = np.asarray(NM(2, 4).mask(scores, 0.5))
    np.testing.assert_array_equal(np.flatnonzero(found), [0, 2, 4, 5])


def test_contraction_axis_of_layers():
    """By default runs lie on the inputs: the last axis of a Linear's weight, axis 1 of a Conv's."""
    conv = eqx.nn.Conv2d(8, 6, 3, key=jax.random.key(0))
    linear = eqx.nn.Linear(8, 6, key=jax.random.key(1))
    pruned = MagnitudePruning(distribution=0.5, structure=NM(2, 4)).prune([conv, linear])
    for before, after in zip([conv, linear], pruned, strict=True):
        expected = by_run(np.abs(before.weight), 4, 1, 2)
        np.testing.assert_array_equal(np.asarray(after.masks["weight"].dense()), expected)


def test_each_layer_of_a_stack():
    scores = draw((3, 2, 4, 8))
    for axis, place in ((None, -1), (1, -1), (0, -2), (-2, -2)):
        pending = NM(1, 4, axis).enter(scores, density_of(0.75), Geometry(2, 1))
        found = np.asarray(finish_all([pending])[0])
        np.testing.assert_array_equal(found, by_run(scores, 4, place, 1))


def test_mapped_over_sparsities():
    scores = draw((3, 8))
    found = jax.vmap(NM(1, 4).mask, in_axes=(None, 0))(scores, jnp.asarray([0.0, 0.3, 0.5, 0.75]))
    np.testing.assert_array_equal(np.asarray(found), [by_run(scores, 4, 1, k) for k in (4, 3, 2, 1)])


# What can't be.


class Net(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    third: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.first, self.second, self.third = (
            eqx.nn.Linear(n, 8, key=k) for n, k in zip((8, 6, 12), keys, strict=True)
        )


@pytest.mark.own_message
def test_a_length_that_does_not_divide_is_an_error_that_names_what_does():
    with pytest.raises(ValueError) as raised:
        MagnitudePruning(distribution=0.5, structure=NM(2, 4)).init(Net())
    message = str(raised.value)
    assert "NM(n=2, m=4)" in message and "length 6 of axis 1" in message and "`second.weight`" in message
    assert "It fits ['first.weight', 'third.weight']" in message


def test_a_dense_site_need_not_divide():
    """PREDECESSOR row 9: a layer of sparsity 0 that does not divide raises there, and takes the tree with it."""
    for distribution in (
        eqsparse.Uniform(0.5, {"second.*": None}),
        eqsparse.Uniform(0.5, {"second.*": 0.0}),
        eqsparse.PerPath({"second.*": 0.0}, default=0.5),
    ):
        model, _ = MagnitudePruning(distribution=distribution, structure=NM(2, 4)).init(Net())
        pruned = MagnitudePruning(distribution=distribution, structure=NM(2, 4)).prune(model)
        kept = {path: float(mask.mean()) for path, mask in eqsparse.get_masks(pruned).items()}
        assert kept == {"first.weight": 0.5, "second.weight": 1.0, "third.weight": 0.5}


def test_patterns_pick_the_layers_that_divide():
    pruner = MagnitudePruning(distribution=0.5, structure={"first.*": NM(2, 4), "third.*": NM(2, 4)})
    masks = eqsparse.get_masks(pruner.prune(Net()))
    assert {p: int(m.sum()) for p, m in masks.items()} == {"first.weight": 32, "second.weight": 24, "third.weight": 48}
    assert (np.asarray(masks["third.weight"]).reshape(-1, 4).sum(axis=1) == 2).all()


@pytest.mark.own_message
@pytest.mark.parametrize("sparsity", [0.51, 0.9, 1.0])
def test_larger_targets_are_errors_at_init(sparsity):
    """PREDECESSOR row 9: 2:4 at 90% gives 50% there, with no word said."""
    with pytest.raises(
        ValueError, match=rf"`NM\(n=2, m=4\)` reaches a sparsity of 0.5 at most.*{sparsity:g} at `weight`"
    ):
        MagnitudePruning(distribution=sparsity, structure=NM(2, 4)).init(eqx.nn.Linear(8, 8, key=jax.random.key(0)))


@pytest.mark.own_message
def test_a_global_distribution_is_an_error_at_init():
    pruner = eqsparse.GlobalMagnitudePruning(distribution=0.5, structure=NM(2, 4))
    with pytest.raises(ValueError, match=r"`distribution` must .*NM\(n=2, m=4\) at `first.weight`"):
        pruner.init(Net())


@pytest.mark.own_message
@pytest.mark.parametrize("n, m", [(5, 4), (0, 4), (-1, 4), (1, 0)])
def test_wrong_n_and_m(n, m):
    with pytest.raises(ValueError, match=rf"`NM\(n, m\)` must have 1 <= n <= m\. Got n={n}, m={m}\."):
        NM(n, m)


@pytest.mark.own_message
@pytest.mark.parametrize("n, m, axis", [("2", 4, None), (2.5, 4, None), (2, None, None), (2, 4, "x"), (2, 4, 1.5)])
def test_n_m_and_axis_must_be_whole_numbers(n, m, axis):
    with pytest.raises(ValueError, match="NM"):
        NM(n, m, axis)


@pytest.mark.own_message
@pytest.mark.parametrize("shape, axis", [((8, 8), 2), ((8, 8), -3), ((8,), 1), ((), None)])
def test_axes_that_are_not_there(shape, axis):
    with pytest.raises(ValueError, match=r"`NM\(n=2, m=4.*needs an axis.*Got shape \("):
        NM(2, 4, axis).mask(jnp.ones(shape), 0.5)


@pytest.mark.own_message
def test_lengths_that_do_not_divide():
    with pytest.raises(ValueError, match=r"`NM\(n=2, m=4\)` must divide .* Got length 6 of axis 1 of shape \(8, 6\)\."):
        NM(2, 4).mask(jnp.ones((8, 6)), 0.5)
