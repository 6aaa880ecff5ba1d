"""Ways to write a training loop: accumulated gradients, mixed precision, checkpointed layers, donation, one `scan`.

(Every pruner within one `scan`: `test_ensembles_of_all.py`.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
STEPS, MICRO = 4, 2
X = jax.random.normal(jax.random.key(1), (STEPS, MICRO, 8, 8))
RUNS = {"distribution": 0.5, "structure": eqsparse.NM(2, 4)}  # compiles fastest


class Net(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    remembers: bool = eqx.field(static=True)
    compute: np.dtype = eqx.field(static=True)

    def __init__(self, remembers=True, compute=jnp.float32, dtype=jnp.float32):
        keys = jax.random.split(KEY, 2)
        self.first = eqx.nn.Linear(8, 16, dtype=dtype, key=keys[0])
        self.last = eqx.nn.Linear(16, 4, dtype=dtype, key=keys[1])
        self.remembers, self.compute = remembers, jnp.dtype(compute)

    def __call__(self, x):
        narrow = lambda a: a.astype(self.compute) if eqx.is_inexact_array(a) else a
        first, last = jax.tree.map(narrow, (self.first, self.last))
        first = first if self.remembers else eqx.filter_checkpoint(first)
        return last(jnp.tanh(first(x.astype(self.compute)))).astype(jnp.float32)


def loss(model, x):
    return (jax.vmap(model)(x) ** 2).mean()


gradient = eqx.filter_jit(eqx.filter_grad(loss))


def masks_of(model):
    return {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}


def same(a, b, **tolerance):
    arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    for x, y in zip(arrays(a), arrays(b), strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), **tolerance)


def test_accumulated_gradients():
    """By `optax.MultiSteps`, with masks updated at the last micro-step of a step, and by hand: as on the whole batch."""
    schedule = lambda each: eqsparse.OneShot(2 * each + each - 1)
    optim = optax.adam(0.05)
    whole = eqsparse.MagnitudePruning(optim, **RUNS, schedule=schedule(1))
    micro = eqsparse.MagnitudePruning(optax.MultiSteps(optim, MICRO), **RUNS, schedule=schedule(MICRO))
    runs = {name: p.init(Net()) for name, p in {"whole": whole, "hand": whole, "micro": micro}.items()}
    for x in X:
        model, state = runs["whole"]
        runs["whole"] = whole.step(model, gradient(model, x.reshape(-1, 8)), state)
        model, state = runs["hand"]
        parts = [gradient(model, part) for part in x]
        runs["hand"] = whole.step(model, jax.tree.map(lambda *g: sum(g) / MICRO, *parts), state)
        for part in x:
            model, state = runs["micro"]
            runs["micro"] = micro.step(model, gradient(model, part), state)
    for name in ("hand", "micro"):
        same(runs[name][0], runs["whole"][0], rtol=0, atol=1e-5)
    assert [int(m.sum()) for m in masks_of(runs["micro"][0]).values()] == [64, 32]
    assert int(runs["micro"][1].step) == STEPS * MICRO


@pytest.mark.parametrize("dtype, packed", [(jnp.float32, True), (jnp.bfloat16, False)])
def test_mixed_precision(dtype, packed):
    """Weights in float32 and the layers in bfloat16: the gradient that arrives is float32, and dense. Weights in
    bfloat16: masks are exact, and everything keeps its dtype."""
    pruner = eqsparse.RigL(optax.adam(0.05), **RUNS, schedule=eqsparse.Periodic(1, 3, 1), key=KEY, packed=packed)
    model, state = pruner.init(Net(compute=jnp.bfloat16, dtype=dtype))
    before = jax.tree.map(lambda x: (x.dtype, x.shape), eqx.filter((model, state), eqx.is_array))
    first = masks_of(model)
    for x in X[:, 0]:
        grads = gradient(model, x)
        assert all(g.dtype == dtype for g in jax.tree.leaves(grads))
        # On the mask, the gradient of the plain network that has zeros written in; elsewhere its gradient as well.
        plain = gradient(eqsparse.materialise(model), x)
        for g, h in ((grads.first.layer.weight, plain.first.weight), (grads.last.layer.weight, plain.last.weight)):
            np.testing.assert_array_equal(np.asarray(g, np.float32), np.asarray(h, np.float32))
        model, state = pruner.step(model, grads, state)
        for path, mask in masks_of(model).items():
            assert (mask.reshape(-1, 4).sum(1) == 2).all()
            weight = getattr(model, path.split(".")[0]).layer.weight
            assert not np.asarray(weight, np.float32)[~mask].any()
    assert jax.tree.map(lambda x: (x.dtype, x.shape), eqx.filter((model, state), eqx.is_array)) == before
    assert all((mask != first[path]).any() for path, mask in masks_of(model).items())


def test_checkpointed_layers_and_an_epoch_in_one_scan():
    """An epoch as one donated `lax.scan`, its layers checkpointed or not, is the loop written in Python."""
    pruner = eqsparse.SET(optax.adam(0.05), **RUNS, schedule=eqsparse.Periodic(1, 3, 1), key=KEY, packed=True)
    made = {}

    def epoch(carry, xs):
        arrays, static = eqx.partition(carry, eqx.is_array)

        def step(arrays, x):
            model, state = eqx.combine(arrays, static)
            value, grads = eqx.filter_value_and_grad(loss)(model, x)
            return eqx.filter(pruner.step(model, grads, state), eqx.is_array), value

        arrays, losses = jax.lax.scan(step, arrays, xs)
        return eqx.combine(arrays, static), losses

    for remembers in (True, False):
        carry = pruner.init(Net(remembers))
        old = carry[0].first.layer.weight
        run = eqx.filter_jit(lambda xs, carry: epoch(carry, xs), donate="all-except-first")
        made[remembers] = run(X[:, 0], carry)
        assert old.is_deleted() and not X.is_deleted()
    model, state = pruner.init(Net())
    first, losses = masks_of(model), []
    for x in X[:, 0]:
        losses.append(loss(model, x))
        model, state = pruner.step(model, gradient(model, x), state)
    for (its_model, its_state), its_losses in made.values():
        for path, mask in masks_of(model).items():
            np.testing.assert_array_equal(masks_of(its_model)[path], mask)
            assert (mask != first[path]).any()
        same((its_model, its_state, its_losses), (model, state, jnp.stack(losses)), rtol=0, atol=1e-5)


def test_one_array_in_two_places_can_be_donated():
    """After `init` each leaf has a buffer of its own: the copies to wind back to, too."""
    layer = eqx.nn.Linear(8, 8, key=KEY)
    pruner = eqsparse.LotteryTicket(optax.sgd(0.1, momentum=0.9), **RUNS, rounds=1, steps=2)
    loss = lambda model, x: (jax.vmap(lambda x: model["b"](model["a"](x)))(x) ** 2).mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(x, carry):
        model, state = carry
        return pruner.step(model, eqx.filter_grad(loss)(model, x), state)

    carry = pruner.init({"a": layer, "b": layer})
    for x in X[:3, 0]:
        carry = step(x, carry)
    assert not layer.weight.is_deleted()
    assert [int(m.sum()) for m in masks_of(carry[0]).values()] == [32, 32]
    assert np.isfinite(np.asarray(carry[0]["a"].weight)).all()
