"""Products of all layouts against NumPy, on our own kernels and on what JAX has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._export._layout import LAYOUTS
from eqsparse._kernels import operations_of_jax

BATCHES = (0, 1, 17, 130)
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


def random(rng, out, in_size):
    return rng.random((out, in_size)) < 0.3


def rows_of_all_kinds(rng, out, in_size):
    """Empty rows, full ones, an empty and a full column."""
    kept = rng.random((out, in_size)) < 0.1
    kept[::3], kept[1::5] = False, True
    kept[:, 0], kept[:, -1] = False, True
    return kept


def nothing(rng, out, in_size):
    return np.zeros((out, in_size), bool)


def everything(rng, out, in_size):
    return np.ones((out, in_size), bool)


def blocks(rng, out, in_size):
    """Blocks that stick out at the far edges."""
    return np.kron(rng.random((-(-out // 4), -(-in_size // 8))) < 0.4, np.ones((4, 8)))[:out, :in_size] > 0


def nm(rng, out, in_size):
    return np.array(eqsparse.NM(2, 4).mask(jnp.asarray(rng.random((out, in_size), np.float32)), 0.5))


def nm_in_three_bits(rng, out, in_size):
    return np.array(eqsparse.NM(3, 7).mask(jnp.asarray(rng.random((out, in_size), np.float32)), 4 / 7))


MASKS = {
    "bcsr": [(random, 20, 300), (rows_of_all_kinds, 31, 65), (random, 9, 1), (random, 1, 257), (nothing, 5, 6)],
    "bitmask": [(random, 20, 300), (rows_of_all_kinds, 31, 65), (random, 9, 1), (everything, 3, 64), (nothing, 5, 6)],
    "fixed_fanin": [(random, 20, 300), (rows_of_all_kinds, 31, 65), (random, 1, 257), (nothing, 5, 6)],
    "nm": [(nm, 20, 300), (nm_in_three_bits, 5, 63), (nm, 3, 4)],
    "block": [(blocks, 20, 300), (blocks, 7, 13), (everything, 3, 64)],
}
CASES = [(name, *case, jnp.float32) for name, cases in MASKS.items() for case in cases]
CASES += [(name, *cases[0], jnp.bfloat16) for name, cases in MASKS.items()]
IDS = [f"{name}-{draw.__name__}-{out}x{in_size}-{dtype.__name__}" for name, draw, out, in_size, dtype in CASES]


def all_products(layout, batches):
    """Products, gradients of the other factor and of the values, of all batches."""

    def one(x, y):
        forward = lambda values, x: dataclasses.replace(layout, values=values).product(x)
        out, pull_back = jax.vjp(forward, layout.values, x)
        return out, *pull_back(y)

    return [one(x, y) for x, y in batches]


def check(name, draw, out, in_size, dtype, batches):
    rng = np.random.default_rng(0)
    kept = draw(rng, out, in_size)
    weight = jnp.where(kept, jnp.asarray(rng.standard_normal(kept.shape), dtype), jnp.zeros((), dtype))
    layout = LAYOUTS[name].from_dense(weight, kept)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    given = [(normal(batch, in_size), normal(batch, out)) for batch in batches]
    found = jax.jit(all_products)(layout, given)
    w = np.asarray(weight, np.float64)
    for (x, y), (forward, of_values, of_x) in zip(given, found, strict=True):
        assert forward.dtype == of_values.dtype == of_x.dtype == dtype
        x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
        close(forward, x64 @ w.T, dtype)
        close(of_x, y64 @ w, dtype)
        # By the layout's own way back: what is no entry gets none, which its zeros here could hide.
        samples = np.asarray(dataclasses.replace(layout, values=of_values).to_dense(), np.float64)
        close(samples, np.where(kept, y64.T @ x64, 0), dtype)


def close(found, expected, dtype):
    size = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("name, draw, out, in_size, dtype", CASES, ids=IDS)
def test_as_numpy(kernels, name, draw, out, in_size, dtype):
    check(name, draw, out, in_size, dtype, BATCHES)


@pytest.mark.parametrize("name", MASKS)
def test_without_our_kernels(name):
    draw, out, in_size = MASKS[name][0]
    with operations_of_jax():
        check(name, draw, out, in_size, jnp.float32, (1, 17))


def test_by_tiles_of_columns_and_several_threads(kernels):
    """Large enough for both: what is wide passes the caches in parts, what is much is shared."""
    check("bcsr", random, 300, 3001, jnp.float32, (1, 128))


def test_columns_of_32_bits(kernels):
    """As `to_bcoo` stores them, and layers with more inputs than 16 bits count."""
    check("bcsr", lambda rng, out, in_size: rng.random((out, in_size)) < 0.001, 3, 70_000, jnp.float32, (1, 9))


def csr(columns, pointers):
    return eqsparse.BCSRLayout(jnp.ones(2), (2, 4), jnp.array(columns), jnp.array(pointers, jnp.int32), 2)


@pytest.mark.parametrize(
    "columns, pointers",
    [
        (np.array([0, 4], np.uint16), [0, 1, 2]),
        (np.array([0, 4], np.int32), [0, 1, 2]),
        (np.array([-1, 2], np.int32), [0, 1, 2]),
        (np.array([0, 9], np.uint16), [0, 2, 0]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_wrong_indices_reach_no_memory(kernels, columns, pointers, batch):
    """Those of an array that did not come from `from_dense`."""
    if not kernels:
        pytest.skip("there are no kernels")
    layout = csr(columns, pointers)
    with pytest.raises(jax.errors.JaxRuntimeError, match="indices must be places of the matrix"):
        jax.block_until_ready(layout.product(jnp.ones((batch, 4))))


@pytest.mark.parametrize(
    "name, field, wrong",
    [
        ("block", "block_columns", [0, 99]), ("block", "block_columns", [0, 2]), ("block", "block_columns", [0, -1]),
        ("block", "block_rows", [0, -1]), ("block", "block_rows", [1, 0]), ("bitmask", "bits", [[255, 240]] * 4),
        ("nm", "places", 255), ("fixed_fanin", "columns", 200), ("fixed_fanin", "columns", -3),
    ],
)  # fmt: skip
def test_wrong_places_are_an_error(kernels, name, field, wrong):
    """Of arrays that did not come from `from_dense`. The product of `fixed_fanin` is XLA's, its gradient is not."""
    if not kernels:
        pytest.skip("there are no kernels")
    mask = np.kron(np.eye(2), np.ones((2, 6))) > 0 if name != "nm" else np.tile(np.arange(12) % 6 < 2, (4, 1))
    layout = LAYOUTS[name].from_dense(np.ones(mask.shape, np.float32), mask)
    held = getattr(layout, field)
    changed = jnp.broadcast_to(jnp.asarray(wrong).astype(jnp.int32 if np.min(wrong) < 0 else held.dtype), held.shape)
    foreign = dataclasses.replace(layout, **{field: changed})
    run = lambda x: foreign.product(x)
    if name == "fixed_fanin":
        run = jax.grad(lambda x: foreign.product(x).sum())
    with pytest.raises(jax.errors.JaxRuntimeError, match="indices must be places of the matrix"):
        jax.block_until_ready(jax.jit(run)(jnp.ones((3, 12))))


def test_wrong_pointers_reach_no_memory(kernels):
    """They are held to what is stored."""
    layout = csr(np.array([0, 3], np.uint16), [-5, 1, 900])
    if kernels:
        np.testing.assert_array_equal(layout.product(jnp.arange(4.0)), [0.0, 3.0])


@pytest.mark.parametrize(
    "name, field",
    [("bcsr", "row_pointers"), ("bcsr", "columns"), ("bitmask", "bits"), ("nm", "places"), ("block", "block_rows")],
)
def test_arrays_of_other_sizes_reach_no_memory(kernels, name, field):
    if not kernels:
        pytest.skip("there are no kernels")
    mask = np.tile(np.kron(np.eye(2), np.ones((4, 2))), (2, 8)) > 0  # 2:4 in blocks
    layout = LAYOUTS[name].from_dense(np.ones(mask.shape, np.float32), mask)
    short = dataclasses.replace(layout, **{field: getattr(layout, field)[:1]})
    with pytest.raises(Exception, match="indices must be as many as"):
        jax.block_until_ready(jax.jit(lambda layout, x: jax.vmap(lambda x: layout @ x)(x))(short, jnp.ones((3, 32))))


def test_padding_is_not_read(kernels):
    """Entries past the last pointer, whatever they hold: no `nan` gets out."""
    layout = eqsparse.BCSRLayout(
        jnp.array([2.0, jnp.nan]), (2, 3), jnp.array([1, 3], jnp.uint16), jnp.array([0, 1, 1], jnp.int32), 1
    )
    for batch in (1, 5):
        out = layout.product(jnp.ones((batch, 3)))
        np.testing.assert_array_equal(out, np.tile([2.0, 0.0], (batch, 1)))


def test_infinities_stay_in_their_rows(kernels):
    """A product with a stored zero would be `nan`; nothing is stored here."""
    weight = jnp.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    layout = eqsparse.FixedFanInLayout.from_dense(weight, weight != 0)
    x = jnp.array([jnp.inf, 1.0, 2.0])
    np.testing.assert_array_equal(layout.product(x), [3.0, 1.0])
