"""Every layout against the dense matrix in NumPy: what it stores, products on both sides, gradients, bytes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse._export._layout import BCSRLayout, BlockLayout, DeltaLayout, LAYOUTS, NMLayout
from eqsparse._model import nbytes

OUT, IN = 12, 20
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 4e-2, jnp.float16: 4e-3}
NAMES = list(LAYOUTS)


def mask_for(name, rng, shape=(OUT, IN), density=0.4):
    """A mask that the layout can hold."""
    if name == "nm":
        order = rng.random((*shape[:-1], shape[-1] // 4, 4)).argsort(-1)
        return (order < 2).reshape(shape)
    if name == "block":
        blocks = rng.random((*shape[:-2], -(-shape[-2] // 3), -(-shape[-1] // 8))) < density
        return np.repeat(np.repeat(blocks, 3, -2), 8, -1)[..., : shape[-2], : shape[-1]]
    return rng.random(shape) < density


def make(name, seed=0, dtype=jnp.float32, **kwargs):
    rng = np.random.default_rng(seed)
    mask = mask_for(name, rng, **kwargs)
    weight = jnp.asarray(rng.standard_normal(mask.shape), dtype)
    layout = LAYOUTS[name].from_dense(weight, mask)
    return layout, np.where(mask, np.asarray(weight, np.float64), 0), mask


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stack", [(), (2, 3)])
def test_stores_the_kept_weights_in_as_many_bytes_as_it_says(name, stack):
    layout, weight, mask = make(name, shape=(*stack, OUT, IN))
    assert layout.shape == (OUT, IN) and layout.stack == stack
    np.testing.assert_array_equal(layout.to_dense(), weight.astype(np.float32))
    np.testing.assert_array_equal(layout.mask(), mask)
    told = LAYOUTS[name].bytes_of(mask.reshape(-1, OUT, IN), 4)
    assert told == layout.nbytes == nbytes(layout) == sum(leaf.nbytes for leaf in jax.tree.leaves(layout))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_on_either_side_and_rows(name, dtype):
    layout, weight, _ = make(name, dtype=dtype)
    rng, tolerance = np.random.default_rng(1), TOLERANCE[dtype]
    x, y = (jnp.asarray(rng.standard_normal((size, 3)), dtype) for size in (IN, OUT))
    x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
    run = eqx.filter_jit(lambda layout, x, y: (layout @ x[:, 0], layout @ x, y[:, 0] @ layout, y.T @ layout))
    got = run(layout, x, y)
    assert all(one.dtype == dtype for one in got)
    for one, expected in zip(got, (weight @ x64[:, 0], weight @ x64, y64[:, 0] @ weight, y64.T @ weight), strict=True):
        close(one, expected, tolerance)
    look_up = eqx.filter_jit(lambda layout, i: jax.vmap(lambda i: layout[i])(i))
    rows = jnp.array([0, 5, OUT - 1, -1, 99, -99])
    np.testing.assert_array_equal(np.asarray(look_up(layout, rows), np.float64), weight[[0, 5, -1, -1, -1, 0]])


def test_products_with_arrays_of_numpy():
    layout, weight, _ = make("bcsr")
    x, y = np.ones((IN, 3), np.float32), np.ones(OUT, np.float32)
    close(layout @ x, weight @ x)
    close(y @ layout, y @ weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_gradients_under_nested_vmap(name, dtype):
    """For L = Σ sin(W x): dL/dx = Wᵀ cos(y), and dL/dW = cos(y) xᵀ where kept, zero in padding."""
    layout, weight, mask = make(name, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, IN)), dtype)

    def loss(values, x):
        one = eqx.tree_at(lambda layout: layout.values, layout, values)
        return jnp.sum(jnp.sin(jax.vmap(jax.vmap(lambda x: one @ x))(x).astype(jnp.float32)))

    got, got_x = jax.jit(jax.grad(loss, (0, 1)))(layout.values, x)
    flat = np.asarray(x, np.float64).reshape(-1, IN)
    slope, tolerance = np.cos(flat @ weight.T), 3 * TOLERANCE[dtype]
    close(got_x.reshape(-1, IN), slope @ weight, tolerance)
    dense = eqx.tree_at(lambda layout: layout.values, layout, got).to_dense()
    close(dense, np.where(mask, slope.T @ flat, slope.T @ flat if name == "dense" else 0), tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_stack_under_scan_and_ensemble_under_vmap(name):
    layout, weight, _ = make(name, shape=(3, OUT, OUT if name != "nm" else 12))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, OUT)), jnp.float32)
    run = lambda x, one: (jax.vmap(lambda x: one @ x)(x), None)
    expected = np.asarray(x, np.float64)
    for one in weight:
        expected = expected @ one.T
    close(jax.jit(lambda layout: jax.lax.scan(run, x, layout)[0])(layout), expected, 1e-4)
    members = eqx.filter_jit(lambda layout: jax.vmap(lambda one: jax.vmap(lambda x: one @ x)(x))(layout))(layout)
    close(members, np.asarray(x, np.float64) @ weight.swapaxes(1, 2))


@pytest.mark.parametrize("name, by_rows", [("bcoo", 0), ("bcsr", 0), ("fixed_fanin", 1)])
@pytest.mark.parametrize("stack", [(), (2, 3)])
def test_reads_as_a_bcoo_whole_or_by_rows(name, by_rows, stack):
    layout, weight, _ = make(name, shape=(*stack, OUT, IN))
    bcoo = layout.bcoo
    assert bcoo.n_batch == len(stack) + by_rows and bcoo.n_sparse == 2 - by_rows and bcoo.shape == weight.shape
    assert bcoo.indices.dtype == jnp.int32 and bcoo.indices_sorted and bcoo.unique_indices
    np.testing.assert_array_equal(bcoo.todense(), weight.astype(np.float32))
    if by_rows:  # nothing but values and columns, each row as long as the fullest
        assert layout.values.size + layout.columns.size == bcoo.data.size + bcoo.indices.size
    if not stack:
        close(bcoo @ jnp.ones(IN), weight.sum(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_and_everything_kept(name, density):
    if name == "nm":
        pytest.skip("n:m keeps some of each run")
    layout, weight, mask = make(name, density=density)
    x = jnp.ones((2, IN))
    np.testing.assert_array_equal(layout.to_dense(), weight.astype(np.float32))
    assert layout.nbytes == LAYOUTS[name].bytes_of(mask[None], 4)
    close(jax.jit(jax.vmap(lambda x: layout @ x))(x), np.ones((2, IN)) @ weight.T)
    close(jax.jit(jax.grad(lambda x: jnp.sum(layout @ x)))(x[0]), weight.sum(0))


@pytest.mark.parametrize("width", [3, 8])
def test_delta_bridges_long_gaps(width, monkeypatch):
    monkeypatch.setattr("eqsparse._export._layout.delta._WIDTHS", [width])
    mask = np.zeros((5, 700), bool)
    mask.ravel()[[0, 1, 3, 255, 510, 511, 766, 2000, 2256, 3499]] = True
    weight = np.random.default_rng(0).standard_normal(mask.shape).astype(np.float32)
    layout = DeltaLayout.from_dense(weight, mask)
    assert layout.width == width and layout.nbytes == DeltaLayout.bytes_of(mask[None], 4)
    np.testing.assert_array_equal(layout.to_dense(), np.where(mask, weight, 0))
    x = np.random.default_rng(1).standard_normal(700).astype(np.float32)
    run = lambda values: eqx.tree_at(lambda one: one.values, layout, values) @ jnp.asarray(x)
    y, back = jax.jit(lambda values: jax.vjp(run, values))(layout.values)
    close(y, np.where(mask, weight, 0) @ x.astype(np.float64))
    (grad,) = jax.jit(back)(jnp.ones(5))
    assert np.count_nonzero(grad) == mask.sum() < layout.values.size


@pytest.mark.parametrize("dtype, itemsize", [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_the_smallest_is_near_the_minimum(sparsity, dtype, itemsize):
    """Values and the entropy of the mask."""
    mask = np.random.default_rng(0).random((1, 512, 512)) >= sparsity
    p = mask.mean()
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    minimum = mask.size * (p * itemsize + entropy / 8)
    sizes = {name: layout.bytes_of(mask, itemsize) for name, layout in LAYOUTS.items()}
    assert min(size for size in sizes.values() if size is not None) <= 1.1 * minimum


def test_patterns_are_found():
    rng = np.random.default_rng(0)
    for n, m in [(1, 2), (2, 4), (3, 8), (1, 16)]:
        mask = (rng.random((8, 64 // m, m)).argsort(-1) < n).reshape(8, 64)
        layout = NMLayout.from_dense(np.ones((8, 64), np.float32), mask)
        assert (layout.n, layout.m) == (n, m)
        np.testing.assert_array_equal(layout.mask(), mask)
    layout = make("block")[0]
    assert layout.values.shape[1:] == (3, 8)  # in 20 columns: the last sticks out


@pytest.mark.own_message
def test_masks_that_do_not_fit_raise():
    rng = np.random.default_rng(0)
    mask = rng.random((OUT, IN)) < 0.3
    for layout, rule in [(NMLayout, "each run of m"), (BlockLayout, "whole blocks")]:
        with pytest.raises(ValueError, match=rf"`{layout.__name__}.from_dense\(mask=...\)` must be .*{rule}"):
            layout.from_dense(np.ones((OUT, IN), np.float32), mask)
    with pytest.raises(ValueError, match="must be boolean .* Got int64"):
        BCSRLayout.from_dense(np.ones((OUT, IN), np.float32), mask.astype(int))
    with pytest.raises(ValueError, match="floating-point, of shape"):
        BCSRLayout.from_dense(np.ones(IN, np.float32), mask)
    with pytest.raises(ValueError, match="outside `jax.jit`"):
        jax.jit(lambda w: BCSRLayout.from_dense(w, mask).values)(jnp.ones((OUT, IN)))


def test_wrong_shapes_raise():
    layout = make("bcsr")[0]
    with pytest.raises(
        ValueError, match=r"`layout @ x` must be .* of shape \(12, 20\) along an axis of length 20. Got \(12,\)"
    ):
        layout @ jnp.ones(OUT)
    with pytest.raises(ValueError, match=r"along an axis of length 12. Got \(3, 20\)"):
        jnp.ones((3, IN)) @ layout
    with pytest.raises(ValueError, match=r"Got a stack of shape \(2,\)"):
        make("bcsr", shape=(2, OUT, IN))[0] @ jnp.ones(IN)
    with pytest.raises(ValueError, match="one whole number"):
        layout[jnp.arange(2)]
