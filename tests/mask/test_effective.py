"""The effective weight: zeros where it is masked, and a derivative that is dense."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse._mask import effective, Mask, masked, on_mask

SHAPES = [(), (5,), (3, 17), (2, 3, 5, 9)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def setting(shape, packed, dtype=jnp.float32, seed=0):
    """A weight, a direction, a mask, and the mask in NumPy."""
    rng = np.random.default_rng(seed)
    weight, direction = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    dense = rng.random(shape) < 0.5
    return weight, direction, Mask(jnp.asarray(dense), packed=packed), dense


def to64(array):
    return np.asarray(array).astype(np.float64)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_are_written_where_the_mask_is_false(shape, dtype, packed):
    weight, _, mask, dense = setting(shape, packed, dtype)
    for apply in (effective, masked, jax.jit(effective)):
        found = apply(weight, mask)
        assert found.dtype == dtype and found.shape == shape
        np.testing.assert_array_equal(to64(found), np.where(dense, to64(weight), 0))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans_never_leak_and_zeros_are_positive(dtype, packed):
    """PREDECESSOR row 6: multiplication by a mask turns `inf` into `nan` and leaves negative zeros."""
    bad = np.array([np.inf, -np.inf, np.nan, -1.0, -0.0, 2.0])
    weight = jnp.asarray(np.stack([bad, bad]), dtype)
    mask = Mask(jnp.asarray([[False] * 6, [True] * 6]), packed=packed)
    for found in (effective(weight, mask), masked(weight, mask), on_mask(weight, mask.dense())):
        dropped, kept = to64(found)
        np.testing.assert_array_equal(dropped, np.zeros(6))
        assert not np.signbit(dropped).any()
        np.testing.assert_array_equal(kept, bad)
        np.testing.assert_array_equal(np.signbit(kept[~np.isnan(bad)]), np.signbit(bad[~np.isnan(bad)]))


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_of_a_loss_is_finite_with_a_masked_infinity(packed):
    """PREDECESSOR row 6, the derivative: the infinity is not there for the loss."""
    weight = jnp.asarray([jnp.inf, 2.0, jnp.nan])
    mask = Mask(jnp.asarray([False, True, False]), packed=packed)
    value, grad = jax.value_and_grad(lambda w: jnp.sum(effective(w, mask) ** 2 + 3 * effective(w, mask)))(weight)
    assert float(value) == 10
    np.testing.assert_array_equal(np.asarray(grad), [3, 7, 3])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_reverse_mode_is_dense(shape, dtype, packed):
    """d/dw <c, effective(w)> = c, also where the mask is `False`."""
    weight, cotangent, mask, _ = setting(shape, packed, dtype)
    for transform in (lambda f: f, jax.jit, jax.checkpoint):
        grad = jax.grad(transform(lambda w: jnp.sum(cotangent * effective(w, mask))))(weight)
        assert grad.dtype == dtype
        np.testing.assert_array_equal(to64(grad), to64(cotangent))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_mode_is_dense(shape, packed):
    weight, tangent, mask, dense = setting(shape, packed)
    value, derivative = jax.jvp(lambda w: effective(w, mask), (weight,), (tangent,))
    np.testing.assert_array_equal(np.asarray(value), np.where(dense, weight, 0))
    np.testing.assert_array_equal(np.asarray(derivative), np.asarray(tangent))


@pytest.mark.parametrize("packed", [False, True])
def test_hessian_vector_products(packed):
    """f = Σ effective(w)³: gradient 3e², and its derivative along v is 6e·v, dense in both."""
    weight, v, mask, dense = setting((3, 17), packed)
    e = np.where(dense, to64(weight), 0)
    gradient = jax.grad(lambda w: jnp.sum(effective(w, mask) ** 3))
    np.testing.assert_allclose(to64(gradient(weight)), 3 * e**2, rtol=1e-5)
    forward_over_reverse = jax.jvp(gradient, (weight,), (v,))[1]
    reverse_over_reverse = jax.grad(lambda w: jnp.sum(gradient(w) * v))(weight)
    for found in (forward_over_reverse, reverse_over_reverse):
        np.testing.assert_allclose(to64(found), 6 * e * to64(v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_ensembles(packed):
    weight, cotangent, mask, dense = setting((4, 3, 17), packed)
    loss = lambda w, m, c: jnp.sum(c * effective(w, m) + effective(w, m) ** 2)
    grads = eqx.filter_vmap(eqx.filter_grad(loss))(weight, mask, cotangent)
    e = np.where(dense, to64(weight), 0)
    np.testing.assert_allclose(to64(grads), to64(cotangent) + 2 * e, rtol=1e-6, atol=1e-6)
    one_mask = Mask(jnp.asarray(dense[0]), packed=packed)
    grads = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(0, None, 0))(weight, one_mask, cotangent)
    e = np.where(dense[:1], to64(weight), 0)
    np.testing.assert_allclose(to64(grads), to64(cotangent) + 2 * e, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_scan_over_a_stack_of_masked_weights(packed):
    """Reverse mode through `scan`: x ← e_i * x, whose gradient in e_i is the product of the others."""
    weight = jnp.asarray([[2.0, 3.0], [5.0, 7.0], [11.0, 13.0]])
    mask = Mask(jnp.asarray([[True, True], [True, True], [True, False]]), packed=packed)

    def loss(w):
        step = lambda x, layer: (effective(*layer) * x, None)
        return jnp.sum(jax.lax.scan(step, jnp.ones(2), (w, mask))[0])

    grad = jax.grad(loss)(weight)
    np.testing.assert_allclose(np.asarray(grad), [[55, 0], [22, 0], [10, 21]], rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_integer_and_complex_arrays_can_be_masked(packed):
    """Moments and counters of optimisers are masked by the same function."""
    dense = jnp.asarray([True, False, True])
    np.testing.assert_array_equal(np.asarray(on_mask(jnp.asarray([3, -4, 5]), dense)), [3, 0, 5])
    weight, mask = jnp.asarray([1 + 2j, 3 - 4j, -1j], jnp.complex64), Mask(dense, packed=packed)
    np.testing.assert_array_equal(np.asarray(effective(weight, mask)), [1 + 2j, 0, -1j])
