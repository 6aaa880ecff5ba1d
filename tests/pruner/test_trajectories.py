"""Each algorithm beside a plain NumPy re-telling of its paper: 50 steps, equal masks, weights to 1e-6.

With two weights; where it is told again, with another optimiser or setting, with one.
"""

import math
import zlib
from fractions import Fraction

import algorithms_retold as told
import equinox as eqx
import gradual_retold as common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(3)
SHAPES = ((16, 12), (8, 16))
STEPS = 50
SGD, ADAM = (optax.sgd(0.05), common.sgd(0.05)), (optax.adam(0.02), common.adam(0.02))
WINDOW = {"start": 4, "stop": 37, "every": 5}
PERIODIC = eqsparse.Periodic(**WINDOW)
TWICE = [(SGD, (), 1), (ADAM, ("mu", "nu"), 2)]
KEEP = [round(0.25 * math.prod(s)) for s in SHAPES]


def model_of(weights):
    layers = [eqx.nn.Linear(s[1], s[0], key=KEY) for s in SHAPES[: len(weights)]]
    return eqx.tree_at(lambda m: [x.weight for x in m], layers, [jnp.asarray(w) for w in weights])


def drawn(seed):
    rng = np.random.default_rng(seed)
    draw = lambda: [rng.normal(size=s).astype(np.float32) for s in SHAPES]
    return draw(), [draw() for _ in range(STEPS)]


def follow(pruner, retell, moments=(), sites=2):
    """Runs both side by side. `retell(weights, gradients, masks)` makes the re-telling, from the masks of `init`."""
    weights, gradients = drawn(0)
    weights, gradients = weights[:sites], [g[:sites] for g in gradients]
    model, state = pruner.init(model_of(weights))
    masks = [np.asarray(m) for m in eqsparse.get_masks(model).values()]
    trees = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    step = eqx.filter_jit(pruner.step)
    changes = []
    for g, (w, m, s) in zip(gradients, retell(list(weights), gradients, list(masks)), strict=True):
        grads = eqx.tree_at(lambda t: [x.layer.weight for x in t], trees, [jnp.asarray(x) for x in g])
        model, state = step(model, grads, state)
        new = [np.asarray(x) for x in eqsparse.get_masks(model).values()]
        for i in range(sites):
            np.testing.assert_array_equal(new[i], m[i], err_msg=f"step {state.step - 1}, site {i}")
            np.testing.assert_allclose(model[i].layer.weight, w[i], rtol=0, atol=1e-6)
            for name, want in zip(moments, s[i] if s else (), strict=True):
                np.testing.assert_allclose(getattr(state.optim[0], name)[i].layer.weight, want, rtol=0, atol=1e-6)
        changes.append(any((a != b).any() for a, b in zip(new, masks, strict=True)))
        masks = new
    return changes


def due(window, steps=STEPS):
    start, stop, every = window["start"], window["stop"], window["every"]
    return [start <= t <= stop and ((t - start) % every == 0 or t == stop) for t in range(steps)]


@pytest.mark.parametrize("optims, sites", [(SGD, 1), (ADAM, 2)], ids=["sgd", "adam"])
def test_magnitude_ste(optims, sites):
    pruner = eqsparse.MagnitudeSTE(optims[0], distribution=0.75)
    changes = follow(pruner, lambda w, g, m: told.straight_through(w, g, KEEP[:sites], optims[1]), sites=sites)
    assert sum(changes) > 10


def test_sr_ste():
    pruner = eqsparse.SRSTE(SGD[0], distribution=0.75, decay=0.3)
    follow(pruner, lambda w, g, m: told.straight_through(w, g, KEEP, SGD[1], decay=0.3))


def lots_of(role):
    """The lots that a role's criterion draws at a step: 32 bits for each weight, from a key for each path."""

    def lots(step):
        key = jax.random.fold_in(KEY, step)
        key = jax.random.fold_in(key, zlib.crc32(role)) if role else key
        keys = [jax.random.fold_in(key, zlib.crc32(path.encode())) for path in ("0.weight", "1.weight")]
        return [np.asarray(jax.random.bits(k, s, jnp.uint32)) for k, s in zip(keys, SHAPES, strict=True)]

    return lots


def test_random_ste():
    pruner = eqsparse.RandomSTE(SGD[0], distribution=0.75, key=KEY)
    retell = lambda w, g, m: told.random_straight_through(w, g, KEEP, SGD[1], lots_of(b""))
    assert all(follow(pruner, retell))


def test_static():
    pruner = eqsparse.StaticSparse(ADAM[0], distribution=0.75, key=KEY)
    changes = follow(pruner, lambda w, g, m: told.static(w, g, m, ADAM[1]), ("mu", "nu"))
    assert not any(changes)


@pytest.mark.parametrize("optims, moments, sites", TWICE, ids=["sgd", "adam"])
def test_rigl(optims, moments, sites):
    """An update replaces the step, and the optimiser's count stands still with it."""
    pruner = eqsparse.RigL(optims[0], distribution=0.75, schedule=PERIODIC, key=KEY)
    changes = follow(pruner, lambda w, g, m: told.rigl(w, g, m, optims[1], 0.3, **WINDOW), moments, sites)
    assert sum(changes) >= 5 and not any(c and not d for c, d in zip(changes, due(WINDOW), strict=True))


def test_set():
    pruner = eqsparse.SET(ADAM[0], distribution=0.75, schedule=PERIODIC, key=KEY)
    retell = lambda w, g, m: told.evolve(w, g, m, ADAM[1], 0.3, **WINDOW, lots=lots_of(b"gain"))
    follow(pruner, retell, ("mu", "nu"))


def test_sparse_momentum():
    pruner = eqsparse.SNFS(ADAM[0], distribution=0.75, schedule=PERIODIC, key=KEY)
    retell = lambda w, g, m: told.sparse_momentum(w, g, m, ADAM[1], 0.5, **WINDOW, momentum=0.9)
    assert sum(follow(pruner, retell, ("mu", "nu"))) >= 5


def test_a_drop_fraction_of_ones_own():
    """Any function of the step, as Optax's schedules."""
    fraction = optax.linear_schedule(0.5, 0.1, 30)
    pruner = eqsparse.RigL(SGD[0], distribution=0.75, schedule=PERIODIC, key=KEY, drop_fraction=fraction)

    def retell(w, g, m):
        plain = told.cosine
        told.cosine = lambda _, step, stop: float(fraction(step))
        try:
            yield from told.rigl(w, g, m, SGD[1], None, **WINDOW)
        finally:
            told.cosine = plain

    follow(pruner, retell, sites=1)


@pytest.mark.parametrize("optims, moments, sites", TWICE, ids=["sgd", "adam"])
def test_top_kast(optims, moments, sites):
    train = [round(0.5 * math.prod(s)) for s in SHAPES[:sites]]
    pruner = eqsparse.TopKAST(optims[0], distribution=0.75, backward_sparsity=0.5, decay=0.01, schedule=PERIODIC)
    retell = lambda w, g, m: told.top_kast(w, g, KEEP[:sites], train, optims[1], 0.01, **WINDOW)
    assert any(follow(pruner, retell, moments, sites))


@pytest.mark.parametrize("reset, sites", [(True, 2), (False, 1)])
def test_acdc(reset, sites):
    phases = {"start": 5, "stop": 40, "dense_steps": 6, "sparse_steps": 8}
    pruner = eqsparse.ACDC(ADAM[0], distribution=0.75, schedule=eqsparse.Alternating(**phases), reset=reset)
    retell = lambda w, g, m: told.alternate(w, g, KEEP[:sites], ADAM[1], **phases, reset=reset)
    changes = follow(pruner, retell, ("mu", "nu"), sites)
    assert [t for t, changed in enumerate(changes) if changed][:5] == [5, 13, 19, 27, 33]


@pytest.mark.parametrize("rewind, sites", [(0, 1), (3, 2)])
def test_lottery_ticket(rewind, sites):
    pruner = eqsparse.LotteryTicket(ADAM[0], distribution=0.75, rounds=4, steps=11, rewind=rewind)
    changes = follow(pruner, lambda w, g, m: told.lottery(w, g, 0.75, ADAM[1], 4, 11, rewind), ("mu", "nu"), sites)
    assert [t for t, changed in enumerate(changes) if changed] == [11, 22, 33, 44]


def cubic(target):
    def kept_at(n, step):
        share = 1 - (1 - Fraction(step - WINDOW["start"], WINDOW["stop"] - WINDOW["start"])) ** 3
        return common.counted(n, 1 - float(target * share)) if step < WINDOW["stop"] else round(n * (1 - target))

    return kept_at


def test_movement():
    pruner = eqsparse.MovementPruning(ADAM[0], distribution=0.75, schedule=eqsparse.Polynomial(**WINDOW))
    retell = lambda w, g, m: told.by_memory(
        w, g, cubic(0.75), ADAM[1], lambda s, w, g: s - w * g, lambda w, s, _: s, **WINDOW, comes_back=True
    )
    follow(pruner, retell, ("mu", "nu"))


@pytest.mark.parametrize("own", [True, False], ids=["own running mean", "the optimiser's second moment"])
def test_fisher(own):
    optims, moments = (SGD, ()) if own else (ADAM, ("mu", "nu"))
    pruner = eqsparse.FisherPruning(optims[0], distribution=0.75, schedule=eqsparse.Polynomial(**WINDOW))
    sites = 2 if own else 1
    _, state = pruner.init(model_of(drawn(0)[0][:sites]))
    assert bool(state.memory) == own  # nothing is kept twice
    remember = lambda s, w, g: np.float32(0.999) * s + np.float32(0.001) * g * g
    score = lambda w, s, state: w * w * (s if own else state[1])
    retell = lambda w, g, m: told.by_memory(w, g, cubic(0.75), optims[1], remember, score, **WINDOW, comes_back=False)
    follow(pruner, retell, moments, sites)


def test_fisher_waits_for_the_optimisers_first_real_step():
    """Micro-steps leave Adam's second moment at zero: until it has one, this gradient's square counts."""
    pruner = eqsparse.FisherPruning(
        optax.MultiSteps(optax.adam(0.02), 4), distribution=0.75, schedule=eqsparse.OneShot(2)
    )
    ws, gradients = drawn(0)
    model, state = pruner.init(model_of(ws))
    trees = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    for g in gradients[:3]:
        grads = eqx.tree_at(lambda t: [x.layer.weight for x in t], trees, [jnp.asarray(x) for x in g])
        model, state = pruner.step(model, grads, state)
    for w, g, k, mask in zip(ws, gradients[2], KEEP, eqsparse.get_masks(model).values(), strict=True):
        np.testing.assert_array_equal(mask, told.top((w * g) ** 2, k))
