"""64-bit arithmetic on 32-bit limbs, against Python's integers."""

import jax.numpy as jnp
import numpy as np

from eqsparse._selection import limbs as w

EDGES = [0, 1, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1]
EDGES64 = [*EDGES, 2**32, 2**32 + 1, 2**33 - 1, 2**63, 2**64 - 1]


def pairs(edges, bits, seed):
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 2**64, 200, np.uint64) >> rng.integers(0, 64, 200, np.uint64)
    some = [*edges, *(int(x) % 2**bits for x in drawn)]
    a = [x for x in some for _ in some]
    b = [y for _ in some for y in some]
    return a, b


def wide(numbers):
    array = np.asarray(numbers, np.uint64)
    return w.Wide(jnp.asarray((array >> np.uint64(32)).astype(np.uint32)), jnp.asarray(array.astype(np.uint32)))


def same(found, expected):
    value = (np.asarray(found.hi).astype(np.uint64) << np.uint64(32)) | np.asarray(found.lo).astype(np.uint64)
    np.testing.assert_array_equal(value, np.asarray(expected, np.uint64))


def test_multiply():
    a, b = pairs(EDGES, 32, 0)
    same(w.multiply(np.asarray(a, np.uint32), np.asarray(b, np.uint32)), [x * y for x, y in zip(a, b, strict=True)])


def test_add_and_subtract():
    a, b = pairs(EDGES64, 64, 1)
    same(w.add(wide(a), wide(b)), [(x + y) % 2**64 for x, y in zip(a, b, strict=True)])
    same(w.subtract(wide(a), wide(b)), [(x - y) % 2**64 for x, y in zip(a, b, strict=True)])
    same(w.clipped_subtract(wide(a), wide(b)), [max(x - y, 0) for x, y in zip(a, b, strict=True)])


def test_comparisons():
    a, b = pairs(EDGES64, 64, 2)
    x, y = np.asarray(a, np.uint64), np.asarray(b, np.uint64)
    np.testing.assert_array_equal(np.asarray(w.at_least(wide(a), wide(b))), x >= y)
    np.testing.assert_array_equal(np.asarray(w.equal(wide(a), wide(b))), x == y)
    np.testing.assert_array_equal(np.asarray(w.equal(wide(a), wide(a))), True)
    same(w.minimum(wide(a), wide(b)), np.minimum(x, y))
    same(w.maximum(wide(a), wide(b)), np.maximum(x, y))


def test_total_of_more_than_32_bits_hold():
    """As many arrays as are promised, each as large as a count can be."""
    counts = np.random.default_rng(3).integers(0, 2**32, (1000, 3), np.uint64)
    counts[:, 0] = 2**32 - 1
    same(w.total(jnp.asarray(counts.astype(np.uint32))), counts.sum(axis=0))
    most = jnp.full((2**16, 1), 2**32 - 1, jnp.uint32)
    same(w.total(most), [2**16 * (2**32 - 1)])


def test_wide_constants():
    for value in EDGES64:
        same(w.wide(value), value)
