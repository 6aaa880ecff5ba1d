"""Equinox's own wrappers around a masked layer act on the weight that it stores."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

MASK = np.random.default_rng(0).random((3, 4)) < 0.5


def linear(packed):
    return eqsparse.MaskedLinear(4, 3, mask=MASK, packed=packed, key=jax.random.key(0))


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_weight_norm_by_hand(packed):
    layer = linear(packed)
    normed = eqx.nn.WeightNorm(layer, "weight")
    normed = eqx.tree_at(lambda m: m.g, normed, 2 * normed.g)  # so that it does not give the weight back
    w, b, x = np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64), np.linspace(-1, 1, 4)
    g = 2 * np.linalg.norm(w, axis=1, keepdims=True)
    effective = np.where(MASK, g * w / np.linalg.norm(w, axis=1, keepdims=True), 0)
    np.testing.assert_allclose(normed(jnp.asarray(x, jnp.float32)), effective @ x + b, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_spectral_norm_by_hand(packed):
    layer = linear(packed)
    normed, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        layer, "weight", num_power_iterations=50, key=jax.random.key(1)
    )
    w, b, x = np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64), np.linspace(-1, 1, 4)
    for _ in range(3):
        out, state = normed(jnp.asarray(x, jnp.float32), state)
    effective = np.where(MASK, w / np.linalg.norm(w, 2), 0)
    np.testing.assert_allclose(out, effective @ x + b, rtol=1e-4)


def test_sparsify_finds_the_layer_inside():
    normed = eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=jax.random.key(0)), "weight")
    x = jnp.linspace(-1.0, 1.0, 4)
    model = eqsparse.sparsify([normed])
    assert list(eqsparse.get_masks(model)) == ["0.layer.weight"]
    np.testing.assert_array_equal(model[0](x), normed(x))
    model = eqsparse.set_masks(model, {"0.layer.weight": MASK})
    w = np.asarray(normed.layer.weight, np.float64)
    want = np.where(MASK, w, 0) @ np.linspace(-1, 1, 4) + np.asarray(normed.layer.bias, np.float64)
    np.testing.assert_allclose(model[0](x), want, rtol=1e-5)
    g = eqx.filter_grad(lambda m: jnp.sum(m[0](x)))(model)[0]
    assert np.all(np.isfinite(np.asarray(g.layer.weight)))
