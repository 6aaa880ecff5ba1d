"""Derivatives are dense: with respect to the effective weight, in every mode, through every transformation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import make_plain, random_masks, same_bits, with_zeros, ZOO

import eqsparse

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])


def linear(packed=False, dtype=jnp.float32):
    plain = eqx.nn.Linear(6, 6, dtype=dtype, key=jax.random.key(0))
    mask = np.random.default_rng(0).random((6, 6)) < 0.5
    return eqsparse.MaskedLinear.from_layer(plain, mask, packed), with_zeros(plain, {"weight": mask}), mask


def total(layer, *x):
    """A smooth number out of any layer's outputs."""
    return sum(jnp.sum(jnp.sin(out)) for out in jax.tree.leaves(layer(*x)))


def in_float64(layer, mask, x):
    """`W_eff`, the outputs before the sine, and `x`, in NumPy's float64."""
    w = np.where(mask, np.asarray(layer.weight, np.float64), 0)
    x = np.asarray(x, np.float64)
    return w, w @ x + np.asarray(layer.bias, np.float64), x


@PACKED
def test_gradient_by_hand(packed):
    layer, _, mask = linear(packed)
    x = jnp.linspace(-1.0, 1.0, 6)
    _, z, x64 = in_float64(layer, mask, x)
    g = eqx.filter_grad(total)(layer, x)
    np.testing.assert_allclose(g.weight, np.outer(np.cos(z), x64), atol=1e-6)
    np.testing.assert_allclose(g.bias, np.cos(z), atol=1e-6)
    assert np.all(np.asarray(g.weight)[~mask] != 0)
    assert jax.tree.leaves(g.masks) == []


@PACKED
def test_forward_mode_by_hand(packed):
    layer, _, mask = linear(packed)
    x, v = jnp.linspace(-1.0, 1.0, 6), jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), jnp.float32)
    _, z, x64 = in_float64(layer, mask, x)
    run = lambda w: total(eqx.tree_at(lambda m: m.weight, layer, w), x)
    value, slope = jax.jvp(run, (layer.weight,), (v,))
    np.testing.assert_allclose(value, np.sin(z).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, np.cos(z) @ (np.asarray(v, np.float64) @ x64), rtol=1e-4)
    np.testing.assert_allclose(jax.jacfwd(run)(layer.weight), np.outer(np.cos(z), x64), atol=1e-6)
    value, push = jax.linearize(run, layer.weight)
    np.testing.assert_allclose(push(v), slope, rtol=1e-6)


@PACKED
@pytest.mark.parametrize("mode", ["forward over reverse", "reverse over reverse", "reverse over forward"])
def test_hessian_vector_product_by_hand(mode, packed):
    """`d/dε` of the gradient at `W_eff + ε V`: `-(sin z ⊙ V x) xᵀ`, dense in `V` and in what comes out."""
    layer, _, mask = linear(packed)
    x, v = jnp.linspace(-1.0, 1.0, 6), jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), jnp.float32)
    _, z, x64 = in_float64(layer, mask, x)
    run = lambda w: total(eqx.tree_at(lambda m: m.weight, layer, w), x)
    products = {
        "forward over reverse": lambda w: jax.jvp(jax.grad(run), (w,), (v,))[1],
        "reverse over reverse": jax.grad(lambda w: jnp.sum(jax.grad(run)(w) * v)),
        "reverse over forward": jax.grad(lambda w: jax.jvp(run, (w,), (v,))[1]),
    }
    want = -np.outer(np.sin(z) * (np.asarray(v, np.float64) @ x64), x64)
    np.testing.assert_allclose(jax.jit(products[mode])(layer.weight), want, atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in ZOO.items()])
def test_gradient_is_that_of_the_dense_layer_with_zeros(kind):
    plain, masks = make_plain(kind), random_masks(kind)
    layer = kind.twin.from_layer(plain, masks, True)
    x = kind.inputs(jnp.float32)
    ours = eqx.filter_jit(eqx.filter_grad(total))(layer, *x)
    theirs = eqx.filter_jit(eqx.filter_grad(total))(with_zeros(plain, masks), *x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def recurrence(layer, x, wrap=lambda f: f, scan=True):
    """Five applications of a layer to its own output: by `lax.scan`, or unrolled."""
    one = wrap(lambda h: jnp.tanh(layer(h)))
    if scan:
        return jnp.sum(jax.lax.scan(lambda h, _: (one(h), None), x, None, length=5)[0] ** 2)
    for _ in range(5):
        x = one(x)
    return jnp.sum(x**2)


@PACKED
@pytest.mark.parametrize("how", ["eager", "jit", "checkpoint", "scan", "scan of checkpoint", "vmap", "vmap of scan"])
def test_through_transformations(how, packed):
    layer, dense, mask = linear(packed)
    x = jnp.linspace(-1.0, 1.0, 6)
    xs = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32)
    unrolled = lambda m, x: recurrence(m, x, scan=False)
    want_one = eqx.filter_grad(unrolled)(dense, x).weight
    want_many = np.mean([eqx.filter_grad(unrolled)(dense, x).weight for x in xs], axis=0)
    mean = lambda run: lambda m, xs: jnp.mean(jax.vmap(lambda x: run(m, x))(xs))
    run, at, want = {
        "eager": (unrolled, x, want_one),
        "jit": (eqx.filter_jit(unrolled), x, want_one),
        "checkpoint": (lambda m, x: recurrence(m, x, jax.checkpoint, False), x, want_one),
        "scan": (recurrence, x, want_one),
        "scan of checkpoint": (lambda m, x: recurrence(m, x, eqx.filter_checkpoint), x, want_one),
        "vmap": (mean(unrolled), xs, want_many),
        "vmap of scan": (mean(recurrence), xs, want_many),
    }[how]
    g = eqx.filter_grad(run)(layer, at).weight
    np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(g)[~mask] != 0)
    # Forward mode, along one direction: the same gradient.
    v = jnp.asarray(np.random.default_rng(3).normal(size=(6, 6)), jnp.float32)
    slope = jax.jvp(lambda w: run(eqx.tree_at(lambda m: m.weight, layer, w), at), (layer.weight,), (v,))[1]
    np.testing.assert_allclose(slope, np.sum(np.asarray(want) * np.asarray(v)), rtol=1e-3, atol=1e-5)


@PACKED
def test_scan_over_a_stack_of_layers(packed):
    keys, masks = jax.random.split(jax.random.key(0), 3), np.random.default_rng(0).random((3, 6, 6)) < 0.5
    make = lambda key, mask: eqsparse.MaskedLinear(6, 6, mask=mask, packed=packed, key=key)
    stack = eqx.filter_vmap(make)(keys, masks)
    x = jnp.linspace(-1.0, 1.0, 6)

    def scanned(stack, x):
        arrays, static = eqx.partition(stack, eqx.is_array)
        step = lambda h, one: (jnp.tanh(eqx.combine(one, static)(h)), None)
        return jnp.sum(jax.lax.scan(step, x, arrays)[0])

    def looped(layers, x):
        for layer in layers:
            x = jnp.tanh(layer(x))
        return jnp.sum(x)

    dense = [with_zeros(make(k, m).layer, {"weight": m}) for k, m in zip(keys, masks, strict=True)]
    g = eqx.filter_jit(eqx.filter_grad(scanned))(stack, x)
    for i, want in enumerate(eqx.filter_grad(looped)(dense, x)):
        np.testing.assert_allclose(g.weight[i], want.weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(g.bias[i], want.bias, rtol=1e-4, atol=1e-6)


@PACKED
def test_ensemble_of_gradients_is_a_loop(packed):
    keys, masks = jax.random.split(jax.random.key(0), 3), np.random.default_rng(0).random((3, 6, 6)) < 0.5
    make = lambda key, mask: eqsparse.MaskedLinear(6, 6, mask=mask, packed=packed, key=key)
    x = jnp.linspace(-1.0, 1.0, 6)
    g = eqx.filter_vmap(eqx.filter_grad(total), in_axes=(eqx.if_array(0), None))(eqx.filter_vmap(make)(keys, masks), x)
    for i in range(3):
        _, z, x64 = in_float64(make(keys[i], masks[i]), masks[i], x)
        np.testing.assert_allclose(g.weight[i], np.outer(np.cos(z), x64), atol=1e-6)


def test_gradient_with_respect_to_inputs_sees_the_masked_weight():
    layer, _, mask = linear(True)
    x = jnp.linspace(-1.0, 1.0, 6)
    w, z, _ = in_float64(layer, mask, x)
    np.testing.assert_allclose(jax.grad(lambda x: total(layer, x))(x), w.T @ np.cos(z), atol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(layer)(x), w, atol=1e-6)


def test_effective_and_materialise_are_differentiable():
    layer, _, mask = linear()
    c = np.random.default_rng(4).normal(size=(6, 6)).astype(np.float32)
    by_effective = eqx.filter_grad(lambda m: jnp.sum(m.effective("weight") * c))(layer)
    by_layer = eqx.filter_grad(lambda m: jnp.sum(m.materialise().weight * c))(layer)
    by_model = eqx.filter_grad(lambda m: jnp.sum(eqsparse.materialise([m])[0].weight * c))(layer)
    for g in (by_effective, by_layer, by_model):
        np.testing.assert_array_equal(g.weight, c)  # dense: also where the mask is False
    assert not mask.all()


def test_stored_weights_behind_the_mask_have_no_effect():
    layer, _, mask = linear()
    x = jnp.linspace(-1.0, 1.0, 6)
    other = eqx.tree_at(lambda m: m.weight, layer, jnp.where(jnp.asarray(mask), layer.weight, 1e9))
    assert same_bits(other(x), layer(x))
    assert same_bits(eqx.filter_grad(total)(other, x).weight, eqx.filter_grad(total)(layer, x).weight)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradient_has_the_weights_dtype(dtype):
    layer, _, mask = linear(True, dtype)
    g = eqx.filter_grad(total)(layer, jnp.linspace(-1.0, 1.0, 6).astype(dtype))
    assert g.weight.dtype == dtype
    assert np.any(np.asarray(g.weight, np.float32)[~mask] != 0)


def test_a_gradient_that_is_infinite_where_dropped_stays_there():
    """The derivative passes the cotangent on as it is; nothing of it leaks into kept weights."""
    layer, _, mask = linear()
    c = np.where(mask, 1.0, np.inf).astype(np.float32)
    g = jax.vjp(lambda w: eqx.tree_at(lambda m: m.weight, layer, w).effective("weight"), layer.weight)[1](
        jnp.asarray(c)
    )
    np.testing.assert_array_equal(g[0], c)
