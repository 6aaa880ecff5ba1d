"""LAMP beside its definition."""

import jax
import jax.numpy as jnp
import numpy as np

import eqsparse
from eqsparse._distribution.normalisers import by_what_is_larger


def lamp(w):
    """Lee 2021, equation (3), over the weights sorted by magnitude."""
    flat = np.abs(np.asarray(w, np.float64)).ravel()
    order = np.argsort(flat, kind="stable")
    squares = flat[order] ** 2
    scores = np.empty(flat.size)
    scores[order] = squares / np.cumsum(squares[::-1])[::-1]
    return scores.reshape(np.shape(w))


def test_scores():
    w = jax.random.normal(jax.random.key(0), (20, 30))
    scores = by_what_is_larger(jnp.abs(w), 2)
    np.testing.assert_allclose(scores, lamp(w), rtol=1e-5)
    assert float(scores.max()) == 1
    order = jnp.argsort(jnp.abs(w).ravel())
    assert (jnp.diff(scores.ravel()[order]) >= 0).all()


def test_each_layer_of_a_stack_has_its_own_scores():
    w = jax.random.normal(jax.random.key(0), (3, 4, 5)) * jnp.array([1.0, 10.0, 1e-30])[:, None, None]
    for layer, scores in zip(w, by_what_is_larger(jnp.abs(w), 2), strict=True):
        np.testing.assert_allclose(scores, lamp(layer), rtol=1e-5)


def test_masks():
    ws = {str(i): jax.random.normal(jax.random.key(i), (16, 16)) * s for i, s in enumerate((1.0, 0.1, 5.0))}
    pruned = eqsparse.MagnitudePruning(distribution=eqsparse.LAMP(0.9)).prune(ws)
    scores = np.concatenate([lamp(w).ravel() for w in ws.values()])
    threshold = np.sort(scores)[-77]
    for path, w in ws.items():
        np.testing.assert_array_equal(np.asarray(pruned[path]) != 0, lamp(w) >= threshold)


def test_scores_below_zero_come_last():
    """Of criteria that have weights which are better away, as `Movement`."""
    s = jnp.array([[3.0, -1.0, 1.0, -2.0]])
    np.testing.assert_allclose(by_what_is_larger(s, 2), [[1, -1 / 15, 1 / 10, -4 / 15]], rtol=1e-6)
    pruner = eqsparse.GradualPruning(criterion=eqsparse.Movement(), distribution=eqsparse.LAMP(0.5))
    grads = jnp.array([[10.0, 1, 1, 1], [-1, -1, -1, -5]])
    np.testing.assert_array_equal(pruner.prune(jnp.ones((2, 4)), grads=grads) != 0, [[False] * 4, [True] * 4])


def test_what_is_not_finite():
    w = jnp.array([[1.0, jnp.nan, 2.0, 0.0], [jnp.inf, 0.0, 3.0, 1.0]])
    scores = by_what_is_larger(jnp.abs(w), 2)
    np.testing.assert_allclose(scores[0, jnp.array([0, 2, 3])], [1 / 14, 4 / 13, 0], rtol=1e-6)
    pruned = eqsparse.MagnitudePruning(distribution=eqsparse.LAMP(0.5)).prune(w)
    np.testing.assert_array_equal(np.asarray(pruned) != 0, [[True, False, True, False], [True, False, True, False]])
    assert not np.asarray(by_what_is_larger(jnp.zeros((2, 2)), 2)).any()


def test_empty_arrays():
    pruner = eqsparse.MagnitudePruning(distribution=eqsparse.LAMP(0.5))
    pruned = pruner.prune({"a": jnp.zeros((0, 4)), "b": jnp.ones((4, 4))})
    assert pruned["a"].shape == (0, 4) and int((pruned["b"] != 0).sum()) == 8
