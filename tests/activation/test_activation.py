"""Activations against what NumPy sorts, one example at a time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse
from eqsparse import ActivationSparsity, Block, Channel, NM, schedule_activations, Unstructured

KEY = jax.random.key(0)


def largest(scores, k):
    """The k largest of a flat array, ties to the lower index; NaN is below all."""
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    return np.isin(np.arange(scores.size), order[:k])


def unstructured(scores, sparsity):
    return largest(scores.reshape(-1), round(scores.size * (1 - sparsity))).reshape(scores.shape)


def rows(scores, sparsity):
    k = round(scores[0].size * (1 - sparsity))
    return np.stack([largest(row.reshape(-1), k).reshape(row.shape) for row in scores])


def two_of_four(scores, sparsity):
    runs = scores.reshape(-1, 4)
    return np.stack([largest(run, 2) for run in runs]).reshape(scores.shape)


def blocks(scores, sparsity):
    tiles = scores.reshape(scores.shape[0] // 2, 2, scores.shape[1] // 2, 2).mean((1, 3))
    return np.kron(unstructured(tiles, sparsity), np.ones((2, 2), bool))


def channels(scores, sparsity):
    kept = unstructured(scores.mean(tuple(range(1, scores.ndim))), sparsity)
    return np.broadcast_to(kept.reshape(-1, *[1] * (scores.ndim - 1)), scores.shape)


CASES = {
    "unstructured": (Unstructured(), unstructured, (8, 12), 0.75),
    "rows": (Unstructured("row"), rows, (8, 12), 0.75),
    "2:4": (NM(2, 4), two_of_four, (8, 12), 0.5),
    "blocks": (Block((2, 2)), blocks, (8, 12), 0.75),
    "channels": (Channel(0), channels, (8, 3, 4), 0.75),
}


def spread(shape, dtype=np.float32):
    """Numbers that differ from each other, also in bfloat16, and so do the means of groups of them."""
    n = int(np.prod(shape))
    signs = np.where(np.random.default_rng(1).random(n) < 0.5, -1, 1)
    return jnp.asarray((signs * 1.1 ** np.random.default_rng(0).permutation(n)).reshape(shape), dtype)


@pytest.mark.parametrize("name", CASES)
def test_each_example_is_ranked_alone(name):
    structure, expected, shape, sparsity = CASES[name]
    x = spread((3, *shape)) * jnp.array([1e-3, 1.0, 1e3]).reshape(3, *[1] * len(shape))  # a batch would keep the last
    act = ActivationSparsity(jnp.tanh, structure, sparsity)
    exact = eqx.filter_jit(lambda act, x: jax.vmap(act)(x))(act, x)
    y = np.tanh(np.asarray(x))
    masks = np.stack([expected(np.abs(one), sparsity) for one in np.asarray(jnp.tanh(x))])
    np.testing.assert_allclose(exact, np.where(masks, y, 0), rtol=1e-6)
    np.testing.assert_array_equal(exact != 0, masks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
    x, cotangent = spread((4, 16), dtype), spread((4, 16), dtype)[::-1]
    acts = {g: ActivationSparsity(jnp.square, Unstructured(), 0.75, gradient=g) for g in ("exact", "straight_through")}

    @jax.jit
    def both_modes(x, cotangent):
        found = {}
        for gradient, act in acts.items():
            y, pull_back = jax.vjp(jax.vmap(act), x)
            _, tangent = jax.jvp(jax.vmap(act), (x,), (cotangent,))
            found[gradient] = y, *pull_back(cotangent), tangent
        return found

    masks = np.stack([largest(np.abs(one), 4) for one in np.asarray(x, np.float32)])
    zero, through = jnp.zeros((), dtype), 2 * x * cotangent
    wanted = {"exact": jnp.where(masks, through, zero), "straight_through": through}
    for gradient, (y, *derivatives) in both_modes(x, cotangent).items():
        np.testing.assert_array_equal(y, jnp.where(masks, jnp.square(x), zero))
        for found in derivatives:
            assert found.dtype == dtype
            expected = np.asarray(wanted[gradient], np.float32)
            np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-2)


def test_what_is_not_finite():
    x = jnp.array([jnp.nan, 1.0, -jnp.inf, 3.0])
    act = ActivationSparsity(lambda x: x, Unstructured(), 0.5)
    np.testing.assert_array_equal(act(x), [0, 0, -jnp.inf, 3])
    by_value = ActivationSparsity(lambda x: x, Unstructured(), 0.5, score=lambda y: y)
    np.testing.assert_array_equal(by_value(x), [0, 1, 0, 3])


class Net(eqx.Module):
    first: eqx.nn.Linear
    act: ActivationSparsity
    last: eqx.nn.Linear

    def __init__(self, key, sparsity=0.75):
        keys = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(6, 16, key=keys[0]), eqx.nn.Linear(16, 2, key=keys[1])
        self.act = ActivationSparsity(
            eqx.nn.PReLU(jnp.array(0.25, jnp.float32)), Unstructured(), sparsity, gradient="straight_through"
        )

    def hidden(self, x):
        return self.act(self.first(x))

    def __call__(self, x):
        return self.last(self.hidden(x))


def test_trained_on_a_schedule_by_a_pruner():
    """The schedule moves without another trace; what the optimiser decays are weights, not the sparsity."""
    schedule, traces = eqsparse.Polynomial(2, 6, 2, power=1), []
    pruner = eqsparse.MagnitudePruning(optax.adamw(1e-2), distribution=0.5, schedule=eqsparse.OneShot(3))
    model, state = pruner.init(Net(KEY))
    x = jax.random.normal(KEY, (8, 6))

    def loss(model):
        return (jax.vmap(model)(x) ** 2).mean()

    @eqx.filter_jit(donate="all")
    def step(model, state):
        traces.append(None)
        model = schedule_activations(model, schedule, state.step)
        grads = eqx.filter_grad(loss)(model)
        return *pruner.step(model, grads, state), (jax.vmap(model.hidden)(x) != 0).sum(axis=1)

    kept = []
    for _ in range(8):
        model, state, one = step(model, state)
        kept.append(one.tolist())
    wanted = [0, 0, 0, 0.1875, 0.375, 0.5625, 0.75, 0.75]
    assert kept == [[round(16 * (1 - s))] * 8 for s in wanted]
    assert len(traces) == 1 and model.act.sparsity == 0.75
    assert [int(m.sum()) for m in eqsparse.get_masks(model).values()] == [48, 16]


def test_ensembles_and_sweeps():
    model = eqx.filter_vmap(Net)(jax.random.split(KEY, 2), jnp.array([0.5, 0.875]))
    x = jax.random.normal(KEY, (6,))
    hidden = eqx.filter_jit(eqx.filter_vmap(lambda model: model.hidden(x)))(model)
    assert (hidden != 0).sum(axis=1).tolist() == [8, 2]
    np.testing.assert_allclose(model.act.sparsity, [0.5, 0.875])
    halfway = eqx.filter_jit(schedule_activations)(model, eqsparse.Polynomial(0, 10, 1, power=1), 5)
    np.testing.assert_allclose(halfway.act.sparsity, [0.25, 0.4375])


def test_in_a_sequence_and_in_a_file(tmp_path):
    make = lambda: eqx.nn.Sequential(
        [
            eqx.nn.Linear(4, 8, key=KEY),
            ActivationSparsity(jax.nn.relu, Unstructured(), 0.5),
            ActivationSparsity(eqx.nn.Dropout(0.0), NM(1, 4), 0.75),
        ]
    )
    model, x = make(), jnp.arange(1.0, 5.0)
    wanted = model(x, key=KEY)
    assert 0 < (wanted != 0).sum() <= 2
    eqsparse.save(tmp_path / "model.eqs", model)
    np.testing.assert_array_equal(eqsparse.load(tmp_path / "model.eqs", make())(x, key=KEY), wanted)
    assert repr(make()[1]).startswith("ActivationSparsity(fn=") and "Unstructured(per='site')" in repr(make()[1])


@pytest.mark.own_message
def test_errors():
    relu, some = jax.nn.relu, Unstructured()
    for args, settings, message in [
        ((3, some, 0.5), {}, r"`ActivationSparsity\(fn=...\)` must be callable. Got 3"),
        ((relu, "2:4", 0.5), {}, r"`ActivationSparsity\(structure=...\)` must be a structure. Got '2:4'"),
        ((relu, some, 1.2), {}, r"`ActivationSparsity\(sparsity=...\)` must be in \[0, 1\]. Got 1.2"),
        ((relu, some, 0.5), {"gradient": "ste"}, r"`ActivationSparsity\(gradient=...\)` must be of .* Got 'ste'"),
        ((relu, some, 0.5), {"score": 1}, r"`ActivationSparsity\(score=...\)` must be callable. Got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ActivationSparsity(*args, **settings)
    with pytest.raises(ValueError, match=r"must return a floating-point array. Got dtype int32"):
        ActivationSparsity(lambda x: x.astype(jnp.int32), some, 0.5)(jnp.ones(3))
    with pytest.raises(ValueError, match=r"Got a scalar: `eqx.nn.MLP\(activation=...\)` .* use `eqx.nn.Sequential`"):
        eqx.nn.MLP(2, 2, 4, 1, activation=ActivationSparsity(relu, some, 0.5), key=KEY)(jnp.ones(2))
    with pytest.raises(ValueError, match=r"scores of the activations' shape \(3,\). Got \(\)"):
        ActivationSparsity(relu, some, 0.5, score=jnp.sum)(jnp.ones(3))
    with pytest.raises(ValueError, match=r"`NM\(n=2, m=4\)` must divide .* Got length 6"):
        ActivationSparsity(relu, NM(2, 4), 0.5)(jnp.ones(6))
    with pytest.raises(ValueError, match=r"must hold an `eqsparse.ActivationSparsity`. Got Linear"):
        schedule_activations(eqx.nn.Linear(2, 2, key=KEY), eqsparse.OneShot(0), 0)
    with pytest.raises(ValueError, match=r"`schedule_activations\(schedule=...\)` must be a schedule"):
        schedule_activations(Net(KEY), 0.5, 0)
