"""SNIP, GraSP and SynFlow, by what defines them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (32, 6))
Y = jnp.arange(32) % 3


def model_of(bias=True, width=12, activation=jnp.tanh):
    return eqx.nn.MLP(6, 3, width, 2, activation=activation, use_bias=bias, use_final_bias=bias, key=KEY)


def loss(model, data):
    x, y = data
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def weights(model):
    return [layer.weight for layer in model.layers]


def with_weights(model, new):
    return eqx.tree_at(weights, model, new)


def best(scores, share):
    flat = np.concatenate([np.ravel(s) for s in scores])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[: round(flat.size * share)]] = True
    return [
        m.reshape(s.shape)
        for m, s in zip(np.split(mask, np.cumsum([s.size for s in scores])[:-1]), scores, strict=True)
    ]


def found(pruned):
    return [np.asarray(m) for m in eqsparse.get_masks(pruned).values()]


def test_snip_is_the_derivative_by_the_mask():
    model = model_of()
    masked = lambda m: with_weights(model, [w * x for w, x in zip(weights(model), m, strict=True)])
    sensitivity = jax.grad(lambda m: loss(masked(m), (X, Y)))([jnp.ones_like(w) for w in weights(model)])
    pruned = eqsparse.SNIP(distribution=0.8).prune(model, loss=loss, data=(X, Y))
    for ours, plain in zip(found(pruned), best([np.abs(s) for s in sensitivity], 0.2), strict=True):
        np.testing.assert_array_equal(ours, plain)
    for layer, mask in zip(pruned.layers, found(pruned), strict=True):
        assert not np.asarray(layer.weight)[~mask].any()


def test_grasp_by_finite_differences():
    """Removing the weight i changes |g|² / 2 by -w_i (H g)_i in first order; the lowest are kept."""
    jax.config.update("jax_enable_x64", True)
    try:
        model = jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, model_of())
        x = X.astype(jnp.float64)
        # `g` of all parameters, biases too, as H mixes them.
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        norm = jax.jit(
            lambda a: (
                sum((g**2).sum() for g in jax.tree.leaves(jax.grad(lambda a: loss(eqx.combine(a, rest), (x, Y)))(a)))
                / 2
            )
        )
        scores, step = [], 1e-6
        for i, w in enumerate(weights(model)):
            at = lambda v, i=i: norm(eqx.tree_at(lambda m: m.layers[i].weight, arrays, v))
            flat = np.array(
                [float(at(w.at[j].add(step)) - at(w.at[j].add(-step))) / (2 * step) for j in np.ndindex(w.shape)]
            )
            scores.append(np.asarray(w) * flat.reshape(w.shape))
        pruned = eqsparse.GraSP(distribution=0.5).prune(model, loss=loss, data=(x, Y))
        differing = sum((a != b).sum() for a, b in zip(found(pruned), best(scores, 0.5), strict=True))
        assert differing == 0
    finally:
        jax.config.update("jax_enable_x64", False)


def test_synflow_keeps_layers_alive_and_flows_alike():
    model = model_of(bias=False, width=64)
    # A layer of tiny weights, which global magnitude kills.
    model = with_weights(model, [w * s for w, s in zip(weights(model), (1.0, 0.01, 1.0), strict=True)])
    pruned = eqsparse.SynFlow(distribution=eqsparse.Global(0.99, normalise=False, floor=0)).prune(model, data=X)
    masks = found(pruned)
    assert sum(m.sum() for m in masks) == round(0.01 * sum(m.size for m in masks))
    assert all(m.any() for m in masks)
    dead = eqsparse.MagnitudePruning(distribution=eqsparse.Global(0.99, normalise=False, floor=0)).prune(model)
    assert not all(m.any() for m in found(dead))
    # There is a path from input to output: ones flow through.
    ws = [np.abs(np.asarray(w)) * m for w, m in zip(weights(model), masks, strict=True)]
    flow = np.ones(6)
    for w in ws:
        flow = w @ flow
    assert flow.sum() > 0
    # Tanaka 2020, theorem 1: the flow through each layer is the same.
    forward = lambda ws: (ws[2] @ (ws[1] @ (ws[0] @ jnp.ones(6)))).sum()
    through = [float((w * g).sum()) for w, g in zip(ws, jax.grad(forward)([jnp.asarray(w) for w in ws]), strict=True)]
    np.testing.assert_allclose(through, through[0], rtol=1e-4)


def test_synflow_beside_numpy():
    model = model_of(bias=False, activation=jax.nn.relu)
    pruned = eqsparse.SynFlow(distribution=0.9, rounds=7).prune(model, data=X)
    ws = [np.abs(np.asarray(w, np.float64)) for w in weights(model)]
    masks = [np.ones(w.shape, bool) for w in ws]
    for r in range(1, 8):
        a, b, c = (w * m for w, m in zip(ws, masks, strict=True))
        into = [np.ones(6), a.sum(1), b @ a.sum(1)]
        out = [(c @ b).sum(0), c.sum(0), np.ones(3)]
        scores = [w * np.outer(o, i) for w, o, i in zip(ws, out, into, strict=True)]
        masks = best([np.where(m, s, -1) for s, m in zip(scores, masks, strict=True)], 0.1 ** (r / 7))
    for ours, plain in zip(found(pruned), masks, strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_synflow_of_plain_arrays_is_that_of_the_model():
    model = model_of(bias=False, activation=jax.nn.relu)
    arrays = {f"w{i}": w for i, w in enumerate(weights(model))}

    def forward(arrays, x):
        return jax.nn.relu(jax.nn.relu(x @ arrays["w0"].T) @ arrays["w1"].T) @ arrays["w2"].T

    pruner = eqsparse.SynFlow(distribution=0.9, rounds=7)
    pruned = pruner.prune(arrays, data=X, forward=forward)
    for name, mask in zip(arrays, found(pruner.prune(model, data=X)), strict=True):
        np.testing.assert_array_equal(pruned[name], np.where(mask, arrays[name], 0))


@pytest.mark.parametrize("algorithm", [eqsparse.SNIP, eqsparse.GraSP])
def test_training_keeps_the_masks(algorithm):
    pruner = algorithm(optax.adam(0.01), distribution=0.8)
    pruned = pruner.prune(model_of(), loss=loss, data=(X, Y))
    model, state = pruner.init(pruned)
    model, state = pruner.step(model, eqx.filter_grad(loss)(model, (X, Y)), state)
    for before, after in zip(found(pruned), found(model), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"`SNIP.prune\(loss=...\)` must be a function"):
        eqsparse.SNIP(distribution=0.5).prune(model_of())
    with pytest.raises(ValueError, match=r"`SynFlow\(rounds=...\)` must be at least 1"):
        eqsparse.SynFlow(distribution=0.5, rounds=0)
