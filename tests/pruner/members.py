"""Ensembles to prune, and their members one by one: shared by the tests of ensembles and sweeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqsparse

KEY = jax.random.key(0)


def networks(sizes, n=3):
    """`n` networks of linear layers, stacked."""
    make = lambda key: [eqx.nn.Linear(*size, key=jax.random.fold_in(key, i)) for i, size in enumerate(sizes)]
    return eqx.filter_vmap(make)(jax.random.split(KEY, n))


def pick(tree, i):
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)


def random_like(tree, seed, *front):
    """Gradients drawn for a model; with axes in front, for each step, say."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(*front, *x.shape)), x.dtype), eqx.filter(tree, eqx.is_inexact_array)
    )


def masks_of(model):
    return {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}


def weights_of(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def differ(masks):
    masks = [np.asarray(m).ravel() for m in masks]
    return all(not np.array_equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def epoch(pruner, net, grads):
    """What training begins with, and what it is after each step."""
    model, state = pruner.init(net)
    start, static = eqx.partition((model, state), eqx.is_array)

    def step(carry, grads):
        model, state = eqx.combine(carry, static)
        weights = jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
        after = pruner.step(model, jax.tree.unflatten(weights, jax.tree.leaves(grads)), state)
        return eqx.filter(after, eqx.is_array), eqx.filter(after, eqx.is_array)

    return (model, state), eqx.combine(jax.lax.scan(step, start, grads)[1], static)


def numbers(tree):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(x), np.float64) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def alike(a, b):
    """But for rounding."""
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
