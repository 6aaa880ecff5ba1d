"""Gradients example by example, against NumPy; Fisher pruning by them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
MODEL = eqx.nn.MLP(4, 2, 5, 1, activation=jnp.tanh, key=KEY)
X, Y = (jnp.asarray(rng.normal(size=(6, 3, n)), jnp.float32) for n in (4, 2))  # examples of three positions


def loss(model, example):
    x, y = example
    return jnp.sum((jax.vmap(model)(x) - y) ** 2)


def squares_by_hand():
    """Σ over examples of the squared gradients of both weights, in float64: the gradient of an example is summed over
    its positions, then squared."""
    first, second = (np.asarray(layer.weight, np.float64) for layer in MODEL.layers)
    biases = [np.asarray(layer.bias, np.float64) for layer in MODEL.layers]
    total = np.zeros_like(first), np.zeros_like(second)
    for xs, ys in zip(np.asarray(X, np.float64), np.asarray(Y, np.float64), strict=True):
        grads = np.zeros_like(first), np.zeros_like(second)
        for x, y in zip(xs, ys, strict=True):
            hidden = np.tanh(first @ x + biases[0])
            out = 2 * (second @ hidden + biases[1] - y)
            grads[1][:] += np.outer(out, hidden)
            grads[0][:] += np.outer((second.T @ out) * (1 - hidden**2), x)
        for sums, grad in zip(total, grads, strict=True):
            sums += grad**2
    return total


@pytest.mark.parametrize("batch_size", [1, 2])
def test_mean_squares_of_single_examples(batch_size):
    """Over batches of four and two examples; the model masked or not; Fisher pruning keeps the largest w² ν."""
    batches = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    grads = eqsparse.rms_gradients(eqsparse.sparsify(MODEL), iter(batches), loss, batch_size=batch_size)
    expected = squares_by_hand()
    for layer, squares in zip(grads.layers, expected, strict=True):
        np.testing.assert_allclose(6 * np.asarray(layer.weight) ** 2, squares, rtol=1e-4, atol=1e-5)
    model = eqsparse.FisherPruning(distribution=eqsparse.Global(0.5, normalise=False)).prune(MODEL, grads=grads)
    scores = [np.asarray(w.weight) ** 2 * s for w, s in zip(MODEL.layers, expected, strict=True)]
    line = np.sort(np.concatenate([s.ravel() for s in scores]))[15]  # of 30 weights
    for mask, s in zip(eqsparse.get_masks(model).values(), scores, strict=True):
        np.testing.assert_array_equal(mask, s >= line)


def test_bfloat16_and_parameters_of_any_tree():
    """In float32; and not the square of the mean, which is 0 here."""
    w = {"w": jnp.ones((2, 2), jnp.bfloat16), "name": "dense"}
    found = eqsparse.rms_gradients(w, [jnp.array([300.0, -300.0])], lambda w, x: x * w["w"].astype(jnp.float32).sum())
    assert found["name"] is None and found["w"].dtype == jnp.float32
    np.testing.assert_array_equal(found["w"], np.full((2, 2), 300))


@pytest.mark.own_message
def test_errors():
    def message(batches, loss=loss, **settings):
        with pytest.raises(ValueError) as caught:
            eqsparse.rms_gradients(MODEL, batches, loss, **settings)
        return str(caught.value)

    assert "`rms_gradients(batches=...)` must hold one example at least. Got none." in message([])
    assert "an iterable of batches: of one batch a list. Got ArrayImpl" in message(X)
    assert "whose first axes are examples. Got shapes [(6, 3, 4), (5, 3, 2)]." in message([(X, Y[1:])])
    assert "whose first axes are examples. Got shapes [()]." in message([jnp.zeros(())])
    assert "Got NaN or infinity at ['layers.0.weight', " in message([(X.at[0, 0, 0].set(jnp.nan), Y)])
    assert "`rms_gradients(batch_size=...)` must be a whole number of at least 1. Got 0." in message([X], batch_size=0)
