"""`Block`: whole tiles, also where the shape does not divide."""

import itertools
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse import Block
from eqsparse._selection import density_of, finish_all
from eqsparse._structure import Geometry

SPARSITIES = [0.0, 0.2, 0.5, 0.75, 0.95, 0.9999999, 1.0]


def tiles(shape, lengths):
    """The index of each tile, in row-major order; those at the far edges are smaller."""
    starts = itertools.product(*(range(0, d, b) for d, b in zip(shape, lengths, strict=True)))
    return [tuple(slice(s, s + b) for s, b in zip(start, lengths, strict=True)) for start in starts]


def worth(scores, pool):
    """NaN below every number; of a tile with some NaNs the maximum is that of its numbers."""
    if pool == "max":
        numbers = scores[~np.isnan(scores)]
        return numbers.max() if numbers.size else np.nan
    return np.float32(scores.sum(dtype=np.float64)) / np.float32(scores.size)


def by_tile(scores, lengths, pool, sparsity):
    """Tiles by falling worth, as many as hold a number of weights nearest to the target (the larger of two)."""
    scores = np.asarray(scores).astype(np.float32)
    each = tiles(scores.shape, lengths)
    order = np.argsort(-np.asarray([worth(scores[i], pool) for i in each], np.float64), kind="stable")
    sizes = np.asarray([scores[i].size for i in each])
    share = 1 - Fraction(round(sparsity * 10**7), 10**7)
    if len(set(sizes.tolist())) == 1:
        held = (len(each) * share + Fraction(1, 2)).__floor__()
    else:
        k = (scores.size * share + Fraction(1, 2)).__floor__()
        off = np.abs(np.concatenate([[0], np.cumsum(sizes[order])]) - k)
        held = int(np.flatnonzero(off == off.min())[-1])
    mask = np.zeros(scores.shape, bool)
    for i in order[: max(held, int(share > 0))]:
        mask[each[i]] = True
    return mask


def draw(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32), dtype)


@eqx.filter_jit
def in_stack(structure, scores, sparsity):
    """The mask of a stack of matrices."""
    return finish_all([structure.enter(scores, density_of(sparsity), Geometry(2, 1))])[0]


masked = eqx.filter_jit(lambda structure, scores, sparsity: structure.mask(scores, sparsity))


def check(structure, scores, lengths, sparsities=SPARSITIES):
    for sparsity in sparsities:
        found = np.asarray(masked(structure, scores, jnp.float32(sparsity)))
        np.testing.assert_array_equal(found, by_tile(scores, lengths, structure.pool, sparsity))


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shapes_that_divide(pool, dtype):
    """PREDECESSOR row 8: bfloat16 with maximum pooling is an error there."""
    check(Block((2, 4), pool), draw((8, 12), dtype), (2, 4))


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize(
    "shape, tile",
    [((7, 5), (2, 2)), ((9, 10), (4, 4)), ((3, 5), (8, 8)), ((5, 8), (3, 4)), ((1, 9), (4, 4)), ((6, 6), (6, 5))],
)
def test_shapes_that_do_not_divide(shape, tile, pool):
    """PREDECESSOR row 8: truncated masks there. Edge tiles are pooled over, and count with, the weights they have."""
    check(Block(tile, pool), draw(shape), tile)


def test_every_pair_of_size_and_length_covers_the_shape():
    """PREDECESSOR row 8: 90 of 320 such pairs fail there."""
    for size, length in itertools.product(range(1, 21), range(1, 17)):
        structure, geometry, shape = Block((length, 2)), Geometry(2, 1), (size, 3)
        counts = structure.sizes(shape)
        expected = [np.zeros(shape)[i].size for i in tiles(shape, (length, 2))]
        groups = (-(-size // length), 2)
        np.testing.assert_array_equal(np.broadcast_to(counts, groups).ravel(), expected)
    for size, length in ((1, 1), (1, 5), (5, 1), (7, 3), (16, 16), (17, 16), (15, 16), (20, 7)):
        structure, geometry, shape = Block((length, 2)), Geometry(2, 1), (size, 3)
        pooled = structure.pooled(draw(shape), geometry)
        scores = np.asarray(draw(shape))
        np.testing.assert_array_equal(
            np.asarray(pooled).ravel(), [worth(scores[i], "avg") for i in tiles(shape, (length, 2))]
        )
        chosen = np.arange(pooled.size).reshape(pooled.shape) % 2 == 0
        spread = np.asarray(structure.spread(jnp.asarray(chosen), shape, geometry))
        for i, kept in zip(tiles(shape, (length, 2)), chosen.ravel(), strict=True):
            assert (spread[i] == kept).all()


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize(
    "shape, tile, axes, lengths",
    [
        ((11,), (4,), (0,), (4,)),
        ((11,), (4,), (-1,), (4,)),
        ((6, 7), (3,), (1,), (1, 3)),
        ((6, 7), (3, 2), (1, 0), (2, 3)),
        ((4, 5, 3, 3), (2, 2), (0, 1), (2, 2, 1, 1)),
        ((4, 5, 3, 3), (3, 3), (-2, -1), (1, 1, 3, 3)),
        ((4, 5, 3, 3), (2, 3, 2), (0, 1, 3), (2, 3, 1, 2)),
        ((4, 5, 3, 3), (4, 5, 3, 3), (0, 1, 2, 3), (4, 5, 3, 3)),
    ],
)
def test_any_axes(shape, tile, axes, lengths, pool):
    """PREDECESSOR row 8: one axis is an error there."""
    check(Block(tile, pool, axes), draw(shape), lengths, (0.0, 0.5, 0.8, 1.0))


def test_ties_go_to_the_lower_flat_index():
    """PREDECESSOR row 2: tiles in row-major order, as single weights."""
    for value in (0.0, 2.0, np.nan, -np.inf):
        for pool in ("avg", "max"):
            found = np.asarray(masked(Block((2, 2), pool), jnp.full((4, 6), value), jnp.float32(0.5)))
            np.testing.assert_array_equal(found, np.kron([[1, 1, 1], [0, 0, 0]], np.ones((2, 2))).astype(bool))


def test_nans_and_infinities():
    """PREDECESSOR row 5: the number of tiles kept does not depend on NaNs; a NaN does not hide its tile's maximum."""
    scores = np.asarray(draw((4, 6))).copy()
    scores[0, 0], scores[2, 2], scores[3, 5] = np.nan, np.inf, -np.inf
    for pool in ("avg", "max"):
        check(Block((2, 2), pool), jnp.asarray(scores), (2, 2))


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_a_tile_of_nans_is_below_one_of_negative_infinities(pool):
    scores = jnp.concatenate([jnp.full((2, 2), jnp.nan), jnp.full((2, 2), -jnp.inf)], axis=1)
    found = np.asarray(Block((2, 2), pool).mask(scores, 0.5))
    np.testing.assert_array_equal(found, [[False, False, True, True]] * 2)


def test_edge_tiles_are_averaged_over_their_own_weights():
    """By hand: the corner (one weight of 5) is worth more than a full tile of fours; padding does not dilute it."""
    scores = jnp.asarray([[4.0, 4.0, 1.0], [4.0, 4.0, 1.0], [2.0, 2.0, 5.0]])
    found = Block((2, 2)).mask(scores, 1 - 5 / 9)  # 5 of 9: the corner, then the full tile
    np.testing.assert_array_equal(np.asarray(found), [[True, True, False], [True, True, False], [False, False, True]])
    found = Block((2, 2)).mask(scores, 0.9)  # 1 of 9: the corner alone
    np.testing.assert_array_equal(np.argwhere(found), [[2, 2]])


def test_negative_maxima_at_the_edges():
    """Padding must not win: all scores are negative."""
    scores = -1 - jnp.abs(draw((5, 5)))
    check(Block((2, 2), "max"), scores, (2, 2))


@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_each_layer_of_a_stack(shape):
    scores = draw((2, 3, *shape))
    for sparsity in (0.5, 0.9, 1.0):
        found = np.asarray(in_stack(Block((2, 4)), scores, jnp.float32(sparsity)))
        for i in np.ndindex(2, 3):
            np.testing.assert_array_equal(found[i], by_tile(scores[i], (2, 4), "avg", sparsity))


def test_lots_are_drawn_for_tiles():
    """Of random integers a tile takes that of its first weight: no average."""
    lots = jnp.asarray(np.random.default_rng(0).integers(0, 2**32 - 3, (4, 6), np.uint64).astype(np.uint32))
    found = in_stack(Block((2, 3)), lots, jnp.float32(0.5))
    first = np.asarray(lots)[::2, ::3]
    expected = np.kron(first >= np.sort(first.ravel())[2], np.ones((2, 3), bool))
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_mapped_over_sparsities():
    scores = draw((5, 7))
    found = jax.vmap(Block((2, 2)).mask, in_axes=(None, 0))(scores, jnp.asarray(SPARSITIES, jnp.float32))
    np.testing.assert_array_equal(np.asarray(found), [by_tile(scores, (2, 2), "avg", s) for s in SPARSITIES])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_weights(shape):
    assert Block((2, 2)).mask(jnp.zeros(shape), 0.5).shape == shape


# Errors.


@pytest.mark.own_message
@pytest.mark.parametrize("pool", ["mean", None, "MAX", 1])
def test_wrong_pool(pool):
    with pytest.raises(ValueError, match=rf'`Block\(pool=...\)` must be "avg" or "max". Got {pool!r}'):
        Block((2, 2), pool)


@pytest.mark.own_message
@pytest.mark.parametrize("shape, axes", [((2, 2), (0,)), ((2,), (0, 1)), ((2, 2), (1, 1)), ((), (0, 1))])
def test_one_length_for_each_axis(shape, axes):
    with pytest.raises(ValueError, match=r"`Block\(shape=..., axes=...\)` must have one length for each"):
        Block(shape, axes=axes)


@pytest.mark.own_message
@pytest.mark.parametrize("shape", [(0, 2), (2, -1)])
def test_lengths_of_at_least_one(shape):
    with pytest.raises(ValueError, match=r"`Block\(shape=...\)` must be lengths of at least 1\. Got \("):
        Block(shape)


@pytest.mark.own_message
@pytest.mark.parametrize("shape, axes", [(4, (0, 1)), ((2.5, 2), (0, 1)), ("ab", (0, 1)), ((2, 2), "ab"), ((2, 2), 1)])
def test_lengths_and_axes_must_be_whole_numbers(shape, axes):
    with pytest.raises(ValueError, match="Block"):
        Block(shape, axes=axes)


@pytest.mark.own_message
@pytest.mark.parametrize("shape, axes", [((8,), (0, 1)), ((4, 4), (0, 2)), ((4, 4), (-3, 1)), ((), (0, 1))])
def test_axes_that_are_not_there(shape, axes):
    with pytest.raises(ValueError, match=r"`Block\(axes=...\)` must be axes of the weight\. Got .* for shape \("):
        Block((2, 2), axes=axes).mask(jnp.ones(shape), 0.5)


@pytest.mark.own_message
def test_the_same_axis_by_two_names():
    with pytest.raises(ValueError, match="Block"):
        Block((2, 3), axes=(0, -2)).mask(jnp.ones((6, 6)), 0.5)
