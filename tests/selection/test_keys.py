"""The map from scores to integers: monotone, over every float of 16 bits and the edges of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse._selection import sort_key


def in_order(keys, values):
    """Keys ascend with the values, and are equal where these are; NaN keys are below all others."""
    keys, values = np.asarray(keys), np.asarray(values).astype(np.float64)
    missing = np.isnan(values)
    assert (keys[missing] == 0).all()
    keys, values = keys[~missing], values[~missing]
    assert (keys > 0).all() and (keys <= np.iinfo(keys.dtype).max - 2).all()
    order = np.argsort(values)
    keys, values = keys[order], values[order]
    np.testing.assert_array_equal(keys[1:] > keys[:-1], values[1:] > values[:-1])
    assert (keys[1:] >= keys[:-1]).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_all_floats_of_16_bits(dtype):
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    keys = jax.jit(sort_key)(jnp.asarray(values))
    assert keys.dtype == jnp.uint16
    in_order(keys, values)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_floats_of_32_bits():
    """A sample of all bit patterns, and every pattern near the edges: zeros, subnormals, infinities, NaNs."""
    edges = np.asarray([0, 0x80000000, 0x7F800000, 0xFF800000, 0x00800000, 0x80800000, 0x7FFFFFFF], np.int64)
    near = (edges[:, None] + np.arange(-300, 300)).ravel() % 2**32
    drawn = np.random.default_rng(0).integers(0, 2**32, 10**5)
    values = np.concatenate([near, drawn]).astype(np.uint32).view(np.float32)
    keys = jax.jit(sort_key)(values)
    assert keys.dtype == jnp.uint32
    in_order(keys, values)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_floats_of_64_bits():
    tops = np.asarray([0, 0x7FF0, 0xFFF0, 0x8000, 0x0010], np.uint64) << np.uint64(48)
    near = (tops[:, None] + np.arange(300, dtype=np.uint64)).ravel()
    below = (tops[:, None] - np.arange(1, 300, dtype=np.uint64)).ravel()
    drawn = np.random.default_rng(0).integers(0, 2**64, 10**4, np.uint64)
    values = np.concatenate([near, below, drawn]).view(np.float64)
    with jax.enable_x64(True):
        keys = jax.jit(sort_key)(values)
        assert keys.dtype == jnp.uint64
        in_order(keys, values)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_lots_stand_for_themselves_but_for_the_two_largest(dtype):
    top = int(jnp.iinfo(dtype).max)
    lots = jnp.asarray([0, 1, top // 2, top - 3, top - 2, top - 1, top], dtype)
    keys = sort_key(lots)
    assert keys.dtype == dtype
    np.testing.assert_array_equal(np.asarray(keys), [0, 1, top // 2, top - 3, top - 2, top - 2, top - 2])


@pytest.mark.own_message
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn])
def test_other_scores_are_an_error_that_names_the_dtype(dtype):
    with pytest.raises(ValueError, match=rf"`scores` must be .*Got dtype {jnp.dtype(dtype).name}"):
        sort_key(jnp.zeros(3, dtype))
