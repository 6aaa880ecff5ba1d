"""Constant fan-in, and the removal of neurons."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import eqsparse

KEY = jax.random.key(0)


def rows_of(scores, k):
    mask = np.zeros(scores.shape, bool)
    for row, best in zip(mask, np.argsort(-scores.reshape(len(scores), -1), axis=1, kind="stable"), strict=True):
        row.reshape(-1)[best[:k]] = True
    return mask


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([(4, 6), (5, 3, 3), (1, 8)]), st.floats(0, 1), st.integers(0, 99))
def test_beside_numpy(shape, sparsity, seed):
    scores = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
    fan_in = scores[0].size
    exact = fan_in * (1 - round(float(np.float64(sparsity)) * 10**7) / 10**7)
    k = 0 if round(sparsity * 10**7) == 10**7 else max(1, int(np.floor(exact + 0.5 + 1e-9)))
    mask = np.asarray(eqsparse.FixedFanIn().mask(scores, sparsity))
    np.testing.assert_array_equal(mask, rows_of(scores, k))


def test_a_vector_has_no_inputs():
    with pytest.raises(ValueError, match="`FixedFanIn` needs a weight with an output axis and an input axis. Got"):
        eqsparse.FixedFanIn().mask(jnp.ones(4), 0.5)
    with pytest.raises(ValueError, match="each site its own share"):
        eqsparse.GlobalMagnitudePruning(distribution=0.5, structure=eqsparse.FixedFanIn()).init(
            [eqx.nn.Linear(4, 4, key=KEY)]
        )


def srigl(weight, mask, gradient, fraction, k, gamma):
    """Lasby 2024, section 3, steps 1 to 7, in plain NumPy."""
    there = int(mask.sum())
    drop = int(np.floor(there * fraction + 0.5))
    ranked = np.where(mask, np.abs(weight), -1).ravel()
    stay = np.zeros(mask.size, bool)
    stay[np.argsort(-ranked, kind="stable")[: there - drop]] = True
    gain = np.where(stay, -1, np.abs(gradient).ravel())
    salient = stay.copy()
    salient[np.argsort(-gain, kind="stable")[: k * len(mask) - stay.sum()]] = True
    stay, salient = stay.reshape(mask.shape), salient.reshape(mask.shape)
    active = salient.sum(1) >= gamma * k
    each = min(k * len(mask) // active.sum(), mask.shape[1])
    new = np.zeros_like(mask)
    for i in np.flatnonzero(active):
        order = np.where(stay[i], np.inf, np.abs(gradient[i]))
        new[i, np.argsort(-order, kind="stable")[:each]] = True
    return new


def test_rigl_with_ablation_is_srigl():
    rng = np.random.default_rng(0)
    pruner = eqsparse.RigL(
        distribution=0.75, key=KEY, structure=eqsparse.FixedFanIn(0.8), schedule=eqsparse.Periodic(0, 9, 1),
        drop_fraction=lambda step: jnp.float32(0.4),
    )  # fmt: skip
    model, state = pruner.init([eqx.nn.Linear(16, 8, key=KEY)])
    mask = np.asarray(eqsparse.get_masks(model)["0.weight"])
    assert (mask.sum(1) == 4).all()
    removed = 0
    for _ in range(4):
        weight = np.asarray(model[0].layer.weight)
        # Some neurons have small gradients and weights.
        g = (rng.normal(size=(8, 16)) * np.array([1, 1, 1, 1, 1, 1, 0.05, 0.01])[:, None]).astype(np.float32)
        grads = eqx.tree_at(
            lambda t: t[0].layer.weight,
            jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array)),
            jnp.asarray(g),
        )
        mask = srigl(weight, mask, g, 0.4, 4, 0.8)
        model, state = pruner.step(model, grads, state)
        np.testing.assert_array_equal(eqsparse.get_masks(model)["0.weight"], mask)
        removed = max(removed, int((mask.sum(1) == 0).sum()))
        assert len(set(mask.sum(1)) - {0}) == 1
    assert removed > 0
