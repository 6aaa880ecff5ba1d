"""Weights that `eqx.nn.Shared` ties stay tied, through the effective weight."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)


class Language(eqx.Module):
    """An embedding whose weight is also that of the last layer."""

    shared: eqx.nn.Shared

    def __init__(self, key):
        embed = eqx.nn.Embedding(6, 4, key=key)
        head = eqx.nn.Linear(4, 6, use_bias=False, key=key)
        self.shared = eqx.nn.Shared((embed, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, token):
        embed, head = self.shared()
        return head(jnp.tanh(embed(token)))


MASK = np.random.default_rng(0).random((6, 4)) < 0.5


def by_hand(weight, token):
    w = np.where(MASK, np.asarray(weight, np.float64), 0)
    return w @ np.tanh(w[token])


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_both_uses_see_the_mask(packed):
    net = Language(KEY)
    model = eqsparse.sparsify(net, packed=packed)
    assert list(eqsparse.get_masks(model)) == ["shared.pytree.0.weight"]  # one site, one budget
    assert np.asarray(model(jnp.asarray(2))).tobytes() == np.asarray(net(jnp.asarray(2))).tobytes()
    model = eqsparse.set_masks(model, {"shared.pytree.0.weight": MASK})
    weight = net.shared.pytree[0].weight
    np.testing.assert_allclose(model(jnp.asarray(2)), by_hand(weight, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(eqx.filter_jit(model)(jnp.asarray(2)), by_hand(weight, 2), rtol=1e-5, atol=1e-6)


def test_materialise_inverts():
    net = Language(KEY)
    model = eqsparse.sparsify(net)
    assert eqx.tree_equal(eqsparse.materialise(model), net)
    assert eqx.tree_equal(eqsparse.sparsify(model), model)
    model = eqsparse.set_masks(model, {"shared.pytree.0.weight": MASK})
    plain = eqsparse.materialise(model)
    np.testing.assert_allclose(plain(jnp.asarray(2)), by_hand(net.shared.pytree[0].weight, 2), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(plain) == jax.tree.structure(net)


def test_gradient_sums_both_uses_and_is_dense():
    net = Language(KEY)
    model = eqsparse.set_masks(eqsparse.sparsify(net, packed=True), {"shared.pytree.0.weight": MASK})
    c = np.random.default_rng(1).normal(size=6)
    loss = lambda m: jnp.sum(m(jnp.asarray(2)) * jnp.asarray(c, jnp.float32))
    g = eqx.filter_grad(loss)(model).shared.pytree[0].weight
    # c · (W tanh(w_2)), in both W's: c ⊗ tanh(w_2), and in row 2 also (Wᵀ c) ⊙ (1 - tanh²(w_2)).
    w = np.where(MASK, np.asarray(net.shared.pytree[0].weight, np.float64), 0)
    want = np.outer(c, np.tanh(w[2]))
    want[2] += (w.T @ c) * (1 - np.tanh(w[2]) ** 2)
    np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-6)


def test_training_keeps_them_tied():
    pruner = eqsparse.MagnitudePruning(distribution=0.5, schedule=eqsparse.OneShot(0))
    model, state = pruner.init(Language(KEY))
    model, state = pruner.step(model, None, state)
    (mask,) = eqsparse.get_masks(model).values()
    assert int(mask.sum()) == 12
    embed, head = model.shared()
    np.testing.assert_array_equal(np.asarray(embed.weight) != 0, mask)
    np.testing.assert_array_equal(head.weight, embed.weight)


def test_one_weight_of_two_in_a_cell_is_shared():
    """The other is still a site; the shared one is masked where it is stored."""

    class Cells(eqx.Module):
        shared: eqx.nn.Shared

        def __call__(self, x, h):
            first, second = self.shared()
            return second(x, first(x, h))

    a, b = (eqx.nn.GRUCell(4, 4, key=k) for k in jax.random.split(KEY))
    net = Cells(eqx.nn.Shared((a, b), lambda pair: pair[1].weight_ih, lambda pair: pair[0].weight_ih))
    model = eqsparse.sparsify(net)
    assert sorted(eqsparse.get_masks(model)) == [
        "shared.pytree.0.weight_hh", "shared.pytree.0.weight_ih", "shared.pytree.1.weight_hh",
    ]  # fmt: skip
    x, h = jnp.linspace(-1.0, 1.0, 4), jnp.ones(4)
    assert np.asarray(model(x, h)).tobytes() == np.asarray(net(x, h)).tobytes()
    assert eqx.tree_equal(eqsparse.materialise(model), net)


def test_a_whole_layer_that_is_shared():
    class Twice(eqx.Module):
        shared: eqx.nn.Shared

        def __call__(self, x):
            first, second = self.shared()
            return second(jnp.tanh(first(x)))

    layer = eqx.nn.Linear(3, 3, key=KEY)
    net = Twice(eqx.nn.Shared((layer, layer), lambda pair: pair[1], lambda pair: pair[0]))
    model = eqsparse.sparsify(net)
    (path,) = eqsparse.get_masks(model)
    mask = np.random.default_rng(0).random((3, 3)) < 0.5
    model = eqsparse.set_masks(model, {path: mask})
    w, b, x = np.where(mask, layer.weight, 0), np.asarray(layer.bias), np.linspace(-1, 1, 3)
    want = w @ np.tanh(w @ x + b) + b
    np.testing.assert_allclose(model(jnp.asarray(x, jnp.float32)), want, rtol=1e-5, atol=1e-6)
