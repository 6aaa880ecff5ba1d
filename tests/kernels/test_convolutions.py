"""Convolutions with sparse weights against plain loops, on our own kernels and on XLA's convolution."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._export._layout import LAYOUTS
from eqsparse._kernels import operations_of_jax, Window

# In sizes, kernel, stride, dilation, zeros before and after.
WINDOWS = {
    "a row": Window((37,), (5,), (2,), (3,), ((4, 1),)),
    "an image": Window((9, 11), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "strides": Window((10, 7), (2, 3), (3, 2), (1, 2), ((0, 2), (3, 0))),
    "a column": Window((1, 40), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "mostly outside": Window((2, 3), (4, 4), (1, 2), (1, 1), ((3, 3), (2, 3))),
    "a volume": Window((5, 3, 4), (3, 2, 2), (1, 1, 2), (1, 1, 1), ((1, 1), (0, 1), (2, 0))),
}
CHANNELS, OUT = 6, 11


def loops(weight, x, window):
    """Position by position, tap by tap."""
    padded = np.pad(x, [(0, 0), (0, 0), *window.padding])
    y = np.zeros((len(x), len(weight), *window.out_sizes))
    for place in itertools.product(*map(range, window.out_sizes)):
        for tap in itertools.product(*map(range, window.kernel)):
            at = [p * s + t * d for p, s, t, d in zip(place, window.stride, tap, window.dilation, strict=True)]
            y[(..., *place)] += padded[(..., *at)] @ weight[(..., *tap)].T
    return y


def make(name, window, dtype=jnp.float32, seed=0, kept=0.2):
    """A layout, its weight (out, channels, *kernel), images."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((OUT, math.prod(window.kernel) * CHANNELS))
    mask = rng.random(matrix.shape) < kept
    mask[3], mask[7] = True, False
    matrix, x = (
        np.asarray(jnp.asarray(a, dtype).astype(jnp.float32))
        for a in (matrix * mask, rng.standard_normal((15, CHANNELS, *window.in_sizes)))
    )
    layout = LAYOUTS[name].from_dense(jnp.asarray(matrix, dtype), mask)
    return layout, np.moveaxis(matrix.reshape(OUT, *window.kernel, CHANNELS), -1, 1), jnp.asarray(x, dtype)


def convolved(layout, x, window):
    return jax.vmap(lambda x: layout.convolve(x, window))(x)


def check(name, window, dtype=jnp.float32, tolerance=1e-5):
    layout, weight, x = make(name, window, dtype)
    found = jax.jit(convolved, static_argnums=2)(layout, x, window)
    expected = loops(weight, np.asarray(x.astype(jnp.float32)), window)
    assert found.dtype == dtype and found.shape == expected.shape
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance * 4)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_as_loops(kernels, window, dtype, tolerance):
    check("bcsr", window, dtype, tolerance)


@pytest.mark.parametrize("name", ["bcsr", "bitmask", "fixed_fanin", "delta"])
def test_without_our_kernels(name):
    with operations_of_jax():
        check(name, WINDOWS["strides"])
        check(name, WINDOWS["a column"])


def test_where_they_look_is_where_equinox_does(getkey):
    rng = np.random.default_rng(0)
    for trial in range(8):
        sizes = (3, 8, 9)
        padding = [[(1, 2), (0, 3)], "SAME", "VALID", "SAME_LOWER"][trial % 4]
        kernel, stride, dilation = (tuple(map(int, rng.integers(1, high, 2))) for high in (4, 4, 3))
        layer = eqx.nn.Conv2d(3, 5, kernel, stride, padding, dilation, key=getkey())
        exported, x = eqsparse.export(eqsparse.sparsify([layer]), {"*": "bcsr"})[0], jnp.ones(sizes)
        np.testing.assert_allclose(exported(x), layer(x), atol=1e-5)


def test_one_call_however_nested_and_no_weight_is_made(kernels):
    if not kernels:
        pytest.skip("there are no kernels")
    layout, _, x = make("bcsr", WINDOWS["an image"])
    nested = jax.jit(lambda layout, x: convolved_nested(layout, x, WINDOWS["an image"]))
    lowered = nested.lower(layout, x.reshape(3, 5, *x.shape[1:]))
    assert lowered.as_text().count("custom_call @eqsparse_csr_convolution") == 1
    assert "stablehlo.convolution" not in lowered.as_text()
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * x.nbytes


def convolved_nested(layout, x, window):
    return jax.vmap(lambda x: convolved(layout, x, window))(x)


def test_gradients_are_those_of_a_dense_convolution():
    window = WINDOWS["an image"]
    layout, weight, x = make("bcsr", window)
    dense = lambda weight, x: jax.lax.conv_general_dilated(x, weight, (1, 1), window.padding)
    loss = lambda apply: lambda weight, x: jnp.sum(jnp.sin(apply(weight, x)))
    sparse = lambda layout, x: convolved(layout, x, window)
    of_layout, of_x = jax.jit(jax.grad(loss(sparse), (0, 1), allow_int=True))(layout, x)
    of_weight, expected = jax.jit(jax.grad(loss(dense), (0, 1)))(jnp.asarray(weight), x)
    np.testing.assert_allclose(of_x, expected, atol=1e-4)
    found = eqx.tree_at(lambda layout: layout.values, layout, of_layout.values).to_dense()
    by_taps = jnp.moveaxis(of_weight, 1, -1).reshape(layout.shape)
    rounding = 1e-5 * float(jnp.max(jnp.abs(by_taps)))  # sums over all places, whose terms cancel
    np.testing.assert_allclose(found, jnp.where(layout.mask(), by_taps, 0), rtol=0, atol=rounding)
    tangent = jnp.cos(x)
    moved = jax.jit(lambda x, t: jax.jvp(lambda x: sparse(layout, x), (x,), (t,)))(x, tangent)[1]
    np.testing.assert_allclose(moved, dense(jnp.asarray(weight), tangent), atol=1e-4)


def test_a_stack_run_by_scan_and_an_ensemble():
    window = WINDOWS["an image"]
    layers = eqx.filter_vmap(lambda key: eqx.nn.Conv2d(6, 6, 3, padding=1, key=key))(
        jax.random.split(jax.random.key(0), 3)
    )
    masked = eqsparse.MagnitudePruning(distribution=0.7).prune(layers)
    exported = eqsparse.export(masked, {"*": "bcsr"})
    x = jax.random.normal(jax.random.key(1), (2, 6, *window.in_sizes))
    for run in (
        lambda layers, x: jax.lax.scan(lambda x, layer: (jax.vmap(eqx.combine(layer, rest))(x), None), x, arrays)[0],
        lambda layers, x: eqx.filter_vmap(lambda layer: jax.vmap(layer)(x))(layers),
    ):
        found = []
        for model in (exported, eqsparse.materialise(masked)):
            arrays, rest = eqx.partition(model, eqx.is_array)
            found.append(eqx.filter_jit(run)(model, x))
        np.testing.assert_allclose(*found, atol=1e-5)


def test_wrong_columns_reach_no_memory(kernels):
    if not kernels:
        pytest.skip("there are no kernels")
    window = WINDOWS["an image"]
    layout, _, x = make("bcsr", window)
    wrong = eqx.tree_at(lambda layout: layout.columns, layout, layout.columns.at[5].set(60000))
    with pytest.raises(Exception, match="indices must be places of the matrix"):
        jax.block_until_ready(jax.jit(convolved, static_argnums=2)(wrong, x, window))
    short = eqx.tree_at(lambda layout: layout.row_pointers, layout, layout.row_pointers[:3])
    with pytest.raises(Exception, match="indices must be as many as"):
        jax.block_until_ready(jax.jit(convolved, static_argnums=2)(short, x, window))
