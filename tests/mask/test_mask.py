"""`Mask`: what it stores, how it counts, and that it survives every trip."""

import io
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._mask import as_mask, Mask

SHAPES = [(), (1,), (5,), (8,), (3, 17), (4, 16), (2, 3, 5, 9)]


def bools(shape, seed=0, density=0.4):
    return np.random.default_rng(seed).random(shape) < density


def same(mask, expected):
    found = np.asarray(mask.dense())
    assert found.dtype == np.bool_ and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


# What is stored.


@pytest.mark.parametrize("shape", [s for s in SHAPES if s])
def test_packed_bits_are_those_of_numpy_packbits(shape):
    dense = bools(shape)
    mask = Mask(jnp.asarray(dense), packed=True)
    assert mask.packed
    assert mask.bits.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(mask.bits), np.packbits(dense, axis=-1))


def test_bits_past_the_end_of_the_last_axis_are_zero():
    mask = Mask.full(jnp.zeros((2, 11)), packed=True)
    np.testing.assert_array_equal(np.asarray(mask.bits), [[0xFF, 0b11100000]] * 2)
    assert mask.nnz() == 22


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_dense_shape_and_nnz(shape, packed):
    dense = bools(shape)
    mask = Mask(jnp.asarray(dense), packed=packed)
    assert mask.shape == shape
    assert mask.packed == (packed and shape != ())  # a rank-0 mask has no axis to pack
    assert mask.nnz() == int(dense.sum())
    same(mask, dense)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 9)])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_empty_weights(shape, packed):
    mask = Mask(jnp.zeros(shape, bool), packed=packed)
    assert mask.shape == shape and mask.nnz() == 0
    same(mask, np.zeros(shape, bool))


@pytest.mark.parametrize("shape", [(784, 304), (64, 1000)])
def test_memory_over_float32_weights(shape):
    """One byte a weight is 25% of four, one bit 3.125%."""
    weight = jnp.zeros(shape, jnp.float32)
    full = eqsparse.nbytes(weight)
    assert eqsparse.nbytes(Mask.full(weight)) / full == 0.25
    assert eqsparse.nbytes(Mask.full(weight, packed=True)) / full <= 0.032


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_full_keeps_all_in_a_buffer_of_its_own(dtype, packed):
    weight = jnp.ones((3, 5), dtype)
    one, other = Mask.full(weight, packed=packed), Mask.full(weight, packed=packed)
    same(one, np.ones((3, 5), bool))
    assert one.nnz() == 15
    assert one.bits.unsafe_buffer_pointer() != other.bits.unsafe_buffer_pointer()


@pytest.mark.parametrize("packed", [False, True])
def test_replace_stores_as_before(packed):
    new = bools((3, 17), seed=1)
    mask = Mask.full(jnp.zeros((3, 17)), packed=packed).replace(jnp.asarray(new))
    assert mask.packed == packed
    same(mask, new)


# Counting.


@pytest.mark.parametrize("packed", [False, True])
def test_nnz_is_exact_beyond_what_float32_counts(packed):
    """2²⁴ + 3 is no float32."""
    n = (1 << 24) + 3
    mask = Mask.full(jnp.zeros((n,), jnp.bool_), packed=packed)
    assert mask.nnz() == n
    counted = jax.jit(lambda m: m.nnz())(mask)
    assert counted.dtype == jnp.uint32 and int(counted) == n


@pytest.mark.parametrize("packed", [False, True])
def test_nnz_of_each_member_of_an_ensemble(packed):
    dense = bools((4, 3, 17))
    stacked = eqx.filter_vmap(lambda d: Mask(d, packed=packed))(jnp.asarray(dense))
    assert stacked.nnz() == dense.sum()
    counts = eqx.filter_vmap(lambda m: m.nnz())(stacked)
    np.testing.assert_array_equal(np.asarray(counts), dense.sum(axis=(1, 2)))


# Trips.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 17), (2, 3, 5, 9)])
def test_jit_gives_the_mask_back(shape, packed):
    dense = bools(shape)
    traces = []

    @eqx.filter_jit
    def trip(mask):
        traces.append(1)
        assert mask.shape == shape
        return mask.replace(~mask.dense())

    for seed in range(2):
        dense = bools(shape, seed)
        found = trip(Mask(jnp.asarray(dense), packed=packed))
        assert found.packed == (packed and shape != ())
        same(found, np.asarray(~dense))
    assert len(traces) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_ensembles_made_and_used_by_vmap(packed):
    dense = bools((4, 3, 17))
    make = lambda d: Mask(d, packed=packed)
    stacked = eqx.filter_vmap(make)(jnp.asarray(dense))
    np.testing.assert_array_equal(np.asarray(eqx.filter_vmap(lambda m: m.dense())(stacked)), dense)
    same(stacked, dense)  # the stack is itself a mask, of rank 3
    twice = eqx.filter_vmap(eqx.filter_vmap(make))(jnp.asarray(bools((2, 4, 3, 17))))
    same(twice, bools((2, 4, 3, 17)))


@pytest.mark.parametrize("packed", [False, True])
def test_scan_over_a_stack(packed):
    dense = bools((4, 3, 17))
    stacked = Mask(jnp.asarray(dense), packed=packed)
    _, counts = jax.lax.scan(lambda c, m: (c, m.nnz()), 0, stacked)
    np.testing.assert_array_equal(np.asarray(counts), dense.sum(axis=(1, 2)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 17)])
def test_pickle(shape, packed):
    dense = bools(shape)
    same(pickle.loads(pickle.dumps(Mask(jnp.asarray(dense), packed=packed))), dense)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 17)])
def test_serialisation(shape, packed):
    dense, file = bools(shape), io.BytesIO()
    eqx.tree_serialise_leaves(file, Mask(jnp.asarray(dense), packed=packed))
    file.seek(0)
    like = Mask.full(jnp.zeros(shape), packed=packed)
    found = eqx.tree_deserialise_leaves(file, like)
    assert found.packed == like.packed
    same(found, dense)


@pytest.mark.parametrize("packed", [False, True])
def test_a_mask_is_no_trainable_leaf(packed):
    mask = Mask(jnp.asarray(bools((3, 17))), packed=packed)
    trainable, rest = eqx.partition(mask, eqx.is_inexact_array)
    assert jax.tree.leaves(trainable) == []
    assert len(jax.tree.leaves(rest)) == 1
    same(eqx.combine(trainable, rest), bools((3, 17)))


def test_masks_of_different_last_axes_are_different_structures():
    """15 and 16 weights pack to the same bytes: `jax.tree.map` must not mix them up."""
    a, b = (Mask.full(jnp.zeros((2, n)), packed=True) for n in (15, 16))
    assert a.bits.shape == b.bits.shape
    assert jax.tree.structure(a) != jax.tree.structure(b)


# Masks that users give.


@pytest.mark.parametrize("packed", [False, True])
def test_given_masks_are_copied(packed):
    dense = jnp.asarray(bools((3, 17)))
    mask = as_mask(dense, jnp.zeros((3, 17)), "weight", packed=packed)
    same(mask, bools((3, 17)))
    assert mask.bits.unsafe_buffer_pointer() != dense.unsafe_buffer_pointer()


def test_given_masks_may_be_masks_numpy_or_nothing():
    weight, dense = jnp.zeros((3, 17)), bools((3, 17))
    same(as_mask(dense, weight, "weight", packed=True), dense)
    same(as_mask(Mask(jnp.asarray(dense), packed=True), weight, "weight", packed=False), dense)
    same(as_mask(None, weight, "weight", packed=True), np.ones((3, 17), bool))


@pytest.mark.own_message
@pytest.mark.parametrize(
    "given, shown",
    [(np.zeros((2, 3)), "float64"), (np.ones((2, 3), np.int32), "int32"), ([[True]], "list"), (True, "bool True")],
)
def test_masks_must_be_boolean_arrays(given, shown):
    with pytest.raises(ValueError, match=rf"`Mask\(dense=...\)` must be a boolean array\. Got .*{shown}"):
        Mask(given)
    with pytest.raises(ValueError, match=rf"the mask of `weight` must be a boolean array.*Got .*{shown}"):
        as_mask(given, jnp.zeros((2, 3)), "weight", packed=False)


@pytest.mark.own_message
def test_given_masks_must_have_the_shape_of_the_weight():
    with pytest.raises(ValueError, match=r"the mask of `w` must have the weight's shape \(2, 3\)\. Got \(3, 2\)\."):
        as_mask(np.ones((3, 2), bool), jnp.zeros((2, 3)), "w", packed=True)
