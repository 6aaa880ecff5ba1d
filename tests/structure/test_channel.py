"""`Channel`: whole rows, columns or filters."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse import Channel, MagnitudePruning
from eqsparse._selection import density_of, finish_all
from eqsparse._structure import Geometry

SPARSITIES = [0.0, 0.1, 0.5, 0.8, 0.9999999, 1.0]


def by_channel(scores, axis, sparsity):
    """The channels with the largest average; ties by index, NaN last."""
    scores = np.moveaxis(np.asarray(scores).astype(np.float64), axis, 0)
    mean = scores.reshape(len(scores), -1).mean(axis=1)
    share = 1 - Fraction(round(sparsity * 10**7), 10**7)
    k = max((len(scores) * share + Fraction(1, 2)).__floor__(), int(share > 0))
    mask = np.zeros(scores.shape, bool)
    mask[np.argsort(-mean, kind="stable")[:k]] = True
    return np.moveaxis(mask, 0, axis)


def draw(shape, dtype=jnp.float32, seed=0):
    """Whole numbers, and lengths of powers of two across: averages are exact, and some tie."""
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32), dtype)


@eqx.filter_jit
def in_stack(structure, scores, sparsity):
    """The mask of a stack of matrices."""
    return finish_all([structure.enter(scores, density_of(sparsity), Geometry(2, 1))])[0]


masked = eqx.filter_jit(lambda structure, scores, sparsity: structure.mask(scores, sparsity))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((8, 16), 0),
        ((8, 16), 1),
        ((8, 16), -1),
        ((8, 16), -2),
        ((8, 4, 2, 2), 0),
        ((8, 4, 2, 2), 1),
        ((9,), 0),
        ((1, 4), 0),
    ],
)
def test_keeps_the_channels_of_largest_average(shape, axis, dtype):
    scores = draw(shape, dtype)
    for sparsity in SPARSITIES:
        found = masked(Channel(axis), scores, jnp.float32(sparsity))
        np.testing.assert_array_equal(np.asarray(found), by_channel(scores, axis, sparsity))


def test_averages_of_bfloat16_are_taken_in_float32():
    """1 + 2⁻⁸ and 1 average to more than 1, which bfloat16 can't tell apart."""
    scores = jnp.asarray([[1.0, 1.0], [1.0 + 2**-7, 1.0]], jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(Channel(0).mask(scores, 0.5)), [[False, False], [True, True]])


def test_ties_go_to_the_lower_index():
    """PREDECESSOR row 2."""
    for value in (0.0, 2.0, np.nan, -np.inf):
        found = np.asarray(masked(Channel(1), jnp.full((4, 6), value), jnp.float32(0.5)))
        np.testing.assert_array_equal(found, np.broadcast_to(np.arange(6) < 3, (4, 6)))


def test_channels_with_nans_come_last():
    """PREDECESSOR row 5: as many channels are kept as without NaNs."""
    scores = draw((8, 16)).at[2, 3].set(jnp.nan).at[5].set(-jnp.inf)
    for sparsity in SPARSITIES:
        found = masked(Channel(0), scores, jnp.float32(sparsity))
        np.testing.assert_array_equal(np.asarray(found), by_channel(scores, 0, sparsity))


def test_each_layer_of_a_stack():
    scores = draw((2, 3, 8, 4))
    for axis in (0, 1, -1):
        found = in_stack(Channel(axis), scores, jnp.float32(0.5))
        for i in np.ndindex(2, 3):
            np.testing.assert_array_equal(np.asarray(found)[i], by_channel(scores[i], axis, 0.5))


def test_lots_are_drawn_for_channels():
    lots = jnp.asarray(np.random.default_rng(0).integers(0, 2**32 - 3, (6, 4), np.uint64).astype(np.uint32))
    found = in_stack(Channel(0), lots, jnp.float32(0.5))
    first = np.asarray(lots)[:, 0]
    expected = np.broadcast_to((first >= np.sort(first)[3])[:, None], (6, 4))
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_filters_of_a_convolution():
    conv = eqx.nn.Conv2d(4, 6, 3, key=jax.random.key(0))
    mask = MagnitudePruning(distribution=0.5, structure=Channel(0)).prune(conv).masks["weight"].dense()
    np.testing.assert_array_equal(np.asarray(mask), by_channel(np.abs(conv.weight), 0, 0.5))


def test_mapped_over_sparsities():
    scores = draw((8, 16))
    found = jax.vmap(Channel(0).mask, in_axes=(None, 0))(scores, jnp.asarray(SPARSITIES, jnp.float32))
    np.testing.assert_array_equal(np.asarray(found), [by_channel(scores, 0, s) for s in SPARSITIES])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_weights(shape):
    assert Channel(0).mask(jnp.zeros(shape), 0.5).shape == shape


@pytest.mark.own_message
@pytest.mark.parametrize("shape, axis", [((4, 4), 2), ((4, 4), -3), ((4,), 1), ((), 0)])
def test_axes_that_are_not_there(shape, axis):
    with pytest.raises(
        ValueError, match=rf"`Channel\(axis=...\)` must be an axis of the weight\. Got {axis} for shape \("
    ):
        Channel(axis).mask(jnp.ones(shape), 0.5)


@pytest.mark.own_message
@pytest.mark.parametrize("axis", ["x", None, 1.5, (0,)])
def test_axes_must_be_whole_numbers(axis):
    with pytest.raises(ValueError, match=r"`Channel\(axis=...\)`"):
        Channel(axis)
