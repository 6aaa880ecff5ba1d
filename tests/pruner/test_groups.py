"""Sites that share no budget are updated one after the other; what may weigh them against each other sees all."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse
from eqsparse._pruner.plan import apart, Plan

KEY = jax.random.key(0)
PATHS = [f"layers.{i}.weight" for i in range(3)]


class Budget:
    def __init__(self, *paths):
        self.paths = paths


@pytest.mark.parametrize(
    "budgets, groups",
    [
        ([["a"], ["b"], ["c"]], [("a",), ("b",), ("c",)]),
        ([["a", "c"], ["b"]], [("a", "c"), ("b",)]),
        ([["a", "b"], ["b", "c"]], [("a", "b", "c")]),
        ([["a", "b"], ["c", "elsewhere"]], [("a", "b"), ("c",)]),
    ],
)
def test_sites_without_a_common_budget_are_apart(budgets, groups):
    sites = dict.fromkeys("abc")
    both = [Plan(sites, [Budget(*paths)], {}) for paths in budgets]
    assert apart([Plan(sites, [Budget(*paths) for paths in budgets], {})]) == groups
    assert apart(both) == groups  # the budgets of all plans count


def train(pruner, steps=4):
    model, state = pruner.init(eqx.nn.MLP(6, 6, 6, 2, key=KEY))
    for t in range(steps):
        draw = lambda x, t=t: jax.random.normal(jax.random.fold_in(KEY, t), x.shape)
        model, state = pruner.step(model, jax.tree.map(draw, eqx.filter(model, eqx.is_inexact_array)), state)
    return model, state


class Watching(eqsparse.AbstractTransition):
    """Notes what it is shown."""

    inner: eqsparse.AbstractTransition
    shown: list = eqx.field(static=True)
    split: bool = eqx.field(static=True)

    def criteria(self):
        return self.inner.criteria()

    def groups(self, moment):
        return self.inner.groups(moment) if self.split else super().groups(moment)

    def start(self, masks, moment):
        return self.inner.start(masks, moment)

    def update(self, masks, moment):
        self.shown.append(sorted(masks))
        return self.inner.update(masks, moment)


class Pruner(eqsparse.AbstractPruner):
    transition: eqsparse.AbstractTransition
    criterion: eqsparse.AbstractCriterion

    def __init__(self, transition, criterion, **common):
        self.transition, self.criterion = transition, criterion
        super().__init__(optax.adam(0.1), schedule=eqsparse.Periodic(0, 10, 2), key=KEY, **common)


def pruner_with(transition, criterion=None, distribution=0.5):
    return Pruner(transition, criterion or eqsparse.Magnitude(), distribution=distribution)


@pytest.mark.parametrize("inner", [eqsparse.Monotone(), eqsparse.DropGrow(eqsparse.GradientMagnitude(), 0.5)])
def test_groups_make_no_difference_but_to_what_is_seen(inner):
    apart, together = [], []
    one = train(pruner_with(Watching(inner, apart, True)))
    other = train(pruner_with(Watching(inner, together, False)))
    assert apart == [[path] for path in PATHS]
    assert together == [PATHS]  # compiled once: all that an update does is in the program, due or not
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if eqx.is_array(a) and not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


def test_sites_of_one_budget_are_together():
    shown = []
    train(pruner_with(Watching(eqsparse.Monotone(), shown, True), distribution=eqsparse.Global(0.5)), 1)
    assert shown == [PATHS]


def test_a_criterion_that_sees_all_sites_keeps_them_together():
    class Relative(eqsparse.AbstractCriterion):
        def score(self, weight):
            return jnp.abs(weight)

        def scores(self, weights, **inputs):
            found = super().scores(weights, **inputs)
            most = jnp.stack([score.max() for score in found.values()]).max()
            return {path: score / most for path, score in found.items()}

    shown = []
    train(pruner_with(Watching(eqsparse.Monotone(), shown, True), Relative()), 1)
    assert shown == [PATHS]
