"""An ensemble is a loop over its members, by `eqx.filter_vmap` and as stacked weights: for every transition and order.

Members have their own weights, gradients, lots and counts. (Pruners that are not here differ in their scores only.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
MEMBERS, STEPS = 3, 5
WINDOW = eqsparse.Periodic(1, 4, 2)
RUNS = {"distribution": 0.5, "structure": eqsparse.NM(2, 4)}
MOVING = {**RUNS, "schedule": WINDOW, "key": KEY, "drop_fraction": optax.constant_schedule(0.5)}

# Name → a pruner, and whether stacked weights give the same as members: not where growth is drawn.
PRUNERS = {
    "gradual, ERK": (lambda o: eqsparse.MagnitudePruning(o, distribution=eqsparse.ERK(0.7), schedule=WINDOW), True),
    "sr-ste": (lambda o: eqsparse.SRSTE(o, **RUNS), True),
    "set": (lambda o: eqsparse.SET(o, **MOVING), False),
    "rigl": (lambda o: eqsparse.RigL(o, **MOVING), True),
    "top-kast": (lambda o: eqsparse.TopKAST(o, **RUNS, backward_sparsity=0.25, schedule=WINDOW), True),
    "lottery": (lambda o: eqsparse.LotteryTicket(o, **RUNS, rounds=2, steps=2), True),
}  # fmt: skip


def nets(sizes):
    make = lambda key: [eqx.nn.Linear(*size, key=jax.random.fold_in(key, i)) for i, size in enumerate(sizes)]
    return eqx.filter_vmap(make)(jax.random.split(KEY, MEMBERS))


def pick(tree, i):
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), eqx.filter(tree, eqx.is_inexact_array)
    )


def masks_of(model):
    return {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}


def weights_of(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


@pytest.mark.parametrize("name", PRUNERS)
def test_an_ensemble_is_a_loop(name):
    make, alike = PRUNERS[name]
    pruner = make(optax.sgd(0.05, momentum=0.9))
    sizes = [(8, 6), (4, 8)] if "ERK" in name else [(8, 6)]
    model, state = eqx.filter_vmap(pruner.init)(nets(sizes))
    loop = [(pick(model, i), pick(state, i)) for i in range(MEMBERS)]
    if alike:
        stack, its_state = pruner.init(nets(sizes))
        stack = eqsparse.set_masks(stack, masks_of(model))  # what is drawn at first, it draws otherwise
        stack = eqx.combine(eqx.filter(model, eqx.is_inexact_array), stack)
        if pruner.key is None:
            assert eqx.tree_equal(stack, pruner.init(nets(sizes))[0])
    step = eqx.filter_jit(eqx.filter_vmap(pruner.step))
    first = masks_of(model)
    for t in range(STEPS):
        grads = random_like(model, t)
        model, state = step(model, grads, state)
        loop = [pruner.step(m, pick(grads, i), s) for i, (m, s) in enumerate(loop)]
        both = [model]
        if alike:
            stack, its_state = pruner.step(stack, grads, its_state)
            both.append(stack)
        for i, (m, _) in enumerate(loop):
            for ensemble in both:
                for path, mask in masks_of(m).items():
                    np.testing.assert_array_equal(masks_of(ensemble)[path][i], mask)
                for a, b in zip(weights_of(pick(ensemble, i)), weights_of(m), strict=True):
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    for path, masks in masks_of(model).items():
        assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])
        assert len({int(mask.sum()) for mask in masks}) == 1
        assert not np.array_equal(masks, first[path])
    if name == "gradual, ERK":  # 80 weights; raw densities 14/48 and 12/32, of which 24 are to stay
        scale = 24 / (14 + 12)
        assert [int(masks[0].sum()) for masks in masks_of(model).values()] == [round(14 * scale), round(12 * scale)]
