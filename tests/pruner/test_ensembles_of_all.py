"""An ensemble is a loop over its members, by `eqx.filter_vmap` and as stacked weights, and an epoch as one `lax.scan` is
a loop over its steps: for every transition, order and memory.

Members have their own weights, gradients, lots and counts. What one program finds is compared with steps one by one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from members import alike, differ, epoch, KEY, masks_of, networks, pick, random_like, weights_of

import eqsparse

MEMBERS, STEPS = 3, 5
WINDOW = eqsparse.Periodic(1, 4, 2)
RUNS = {"distribution": 0.5, "structure": eqsparse.NM(2, 4)}
GRADUAL = {**RUNS, "schedule": WINDOW}
MOVING = {**GRADUAL, "key": KEY, "drop_fraction": optax.constant_schedule(0.5)}
GLOBAL = {"distribution": eqsparse.Global(0.6), "structure": eqsparse.Block((2, 4))}

PRUNERS = {
    "gradual, ERK": lambda o: eqsparse.MagnitudePruning(o, distribution=eqsparse.ERK(0.7), schedule=WINDOW),
    "global, blocks": lambda o: eqsparse.MagnitudePruning(o, **GLOBAL, schedule=eqsparse.Polynomial(1, 4, 2)),
    "fisher": lambda o: eqsparse.GradualPruning(o, criterion=eqsparse.Fisher(0.5), **GRADUAL),
    "movement": lambda o: eqsparse.MovementPruning(o, **GRADUAL, packed=True),
    "sr-ste": lambda o: eqsparse.SRSTE(o, **RUNS),
    "random ste": lambda o: eqsparse.RandomSTE(o, **RUNS, key=KEY),
    "static": lambda o: eqsparse.StaticSparse(o, **RUNS, key=KEY, packed=True),
    "set": lambda o: eqsparse.SET(o, **MOVING),
    "rigl": lambda o: eqsparse.RigL(o, **MOVING),
    "snfs": lambda o: eqsparse.SNFS(o, **MOVING, momentum=0.5),
    "top-kast": lambda o: eqsparse.TopKAST(o, **GRADUAL, backward_sparsity=0.25),
    "ac/dc": lambda o: eqsparse.ACDC(o, **RUNS, schedule=eqsparse.Alternating(0, 4, 1, 2)),
    "lottery": lambda o: eqsparse.LotteryTicket(o, **RUNS, rounds=2, steps=2),
}
SIZES = {"gradual, ERK": [(8, 6), (4, 8)], "global, blocks": [(8, 8), (8, 4)]}
TOGETHER = ("set", "random ste", "global, blocks")  # stacked weights draw otherwise at steps, or share their target


@pytest.mark.parametrize("name", PRUNERS)
def test_an_ensemble_is_a_loop(name):
    pruner = PRUNERS[name](optax.sgd(0.05, momentum=0.9))
    nets = networks(SIZES.get(name, [(8, 6)]), MEMBERS)
    grads = random_like(nets, 0, STEPS)
    mapped = eqx.filter_jit(eqx.filter_vmap(epoch, in_axes=(None, 0, 1), out_axes=(0, 1)))
    start, along = mapped(pruner, nets, grads)
    ways, first = [along[0]], masks_of(start[0])
    if name not in TOGETHER:
        stack = eqsparse.set_masks(eqsparse.sparsify(nets), first)  # those drawn at first it would draw otherwise
        ways.append(eqx.filter_jit(epoch)(pruner, stack, grads)[1][0])
    for i in range(MEMBERS):
        model, state = pick(start, i)
        into = jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
        for t in range(STEPS):
            model, state = pruner.step(model, into.unflatten(g[t, i] for g in jax.tree.leaves(grads)), state)
            for ensemble in ways:
                member = pick(pick(ensemble, t), i)
                for path, mask in masks_of(model).items():
                    np.testing.assert_array_equal(masks_of(member)[path], mask, err_msg=f"{t} {path}")
                alike(weights_of(member), weights_of(model))
        alike(pick(pick(along, t), i), (model, state))
    last = masks_of(pick(along[0], -1))
    for path, masks in last.items():
        assert differ(masks)
        assert np.array_equal(masks, first[path]) == (name == "static")
    assert len({sum(int(masks[i].sum()) for masks in last.values()) for i in range(MEMBERS)}) == 1
    if name == "gradual, ERK":  # 80 weights; raw densities 14/48 and 12/32, of which 24 are to stay
        assert [int(masks[0].sum()) for masks in last.values()] == [round(14 * 24 / 26), round(12 * 24 / 26)]


@pytest.mark.parametrize("name", ["rigl", "set", "gradual, ERK"])
def test_members_whose_updates_are_due_at_other_steps(name):
    """An ensemble of ensembles, in which all, some or none of the members are due at a step."""
    pruner = PRUNERS[name](optax.adam(0.05))
    make = lambda key: [eqx.nn.Linear(8, 6, key=key)]
    nets = eqx.filter_vmap(eqx.filter_vmap(make))(jax.random.split(KEY, (2, 2)))
    twice = lambda f: eqx.filter_jit(eqx.filter_vmap(eqx.filter_vmap(f)))
    model, state = twice(pruner.init)(nets)
    state = eqx.tree_at(lambda s: s.step, state, state.step + jnp.array([[0, 1], [0, 0]], state.step.dtype))
    alone = {at: pick(pick((model, state), at[0]), at[1]) for at in np.ndindex(2, 2)}
    for t in range(STEPS):
        grads = random_like(model, t)
        model, state = twice(pruner.step)(model, grads, state)
        for i, j in alone:
            alone[i, j] = pruner.step(alone[i, j][0], pick(pick(grads, i), j), alone[i, j][1])
            alike(pick(pick((model, state), i), j), alone[i, j])
