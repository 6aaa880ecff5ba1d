"""A step is traced once for one optimiser object, whatever numbers come in, and updates only when they are due."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
RUNS = eqsparse.NM(2, 4)  # compiles fastest


def counting(optim=None):
    """An optimiser, and a list that grows each time its update is traced."""
    optim, traced = optim or optax.sgd(0.1), []

    def update(grads, state, params=None, **extra):
        traced.append(1)
        return optax.with_extra_args_support(optim).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optim.init, update), traced


def model_of():
    return [eqx.nn.Linear(8, 8, key=KEY)]


def ones(model):
    return jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))


def kept(model):
    return [int(mask.sum()) for mask in eqsparse.get_masks(model).values()]


@pytest.mark.parametrize(
    "pruner_type, packed",
    [("magnitude", False), ("magnitude", True), ("random", True), ("global saliency", False), ("no pruning", False)],
)
def test_once_through_updates_and_between(pruner_type, packed):
    optim, traced = counting(optax.adam(0.1))
    common = {"schedule": eqsparse.Polynomial(1, 4, 2), "packed": packed}
    pruner = {
        "magnitude": lambda: eqsparse.MagnitudePruning(optim, distribution=0.5, structure=RUNS, **common),
        "random": lambda: eqsparse.RandomPruning(optim, distribution=0.5, structure=RUNS, key=KEY, **common),
        "global saliency": lambda: eqsparse.GlobalSaliencyPruning(optim, distribution=0.5, **common),
        "no pruning": lambda: eqsparse.NoPruning(optim, **common),
    }[pruner_type]()
    model, state = pruner.init(model_of())
    for _ in range(7):
        model, state = pruner.step(model, ones(model), state)
    assert len(traced) == 1
    # Another run, and the same pruner rebuilt from its parts.
    again, state = jax.tree.unflatten(jax.tree.structure(pruner), jax.tree.leaves(pruner)), pruner.init(model_of())[1]
    again.step(pruner.init(model_of())[0], ones(pruner.init(model_of())[0]), state)
    assert len(traced) == 1


def numbers(kind):
    """The same settings as Python's, NumPy's and JAX's numbers."""
    of = {
        "python": (float, int),
        "numpy scalars": (np.float64, np.int64),
        "numpy single": (np.float32, np.int32),
        "numpy arrays": (lambda x: np.asarray(x), lambda x: np.asarray(x)),
        "jax": (jnp.asarray, jnp.asarray),
    }
    return of[kind]


KINDS = ["python", "numpy scalars", "numpy single", "numpy arrays", "jax"]


def test_once_as_optax_in_a_loop_that_is_not_compiled():
    optim, traced = counting(optax.adam(0.1))
    schedule = eqsparse.Polynomial(1, 4, 2)
    tx = eqsparse.MagnitudePruning(optim, distribution=0.5, structure=RUNS, schedule=schedule).as_optax()
    params = {"w": jax.random.normal(KEY, (8, 8))}
    state = tx.init(params)
    for _ in range(6):
        updates, state = tx.update({"w": jnp.ones((8, 8))}, state, params)
        params = optax.apply_updates(params, updates)
    assert len(traced) == 1 and np.count_nonzero(params["w"]) == 32


def test_settings_of_any_kind():
    """PREDECESSOR row 24: float and int settings are leaves or not by accident, so steps trace twice."""
    optim, traced = counting()
    for i, kind in enumerate(KINDS):
        real, whole = numbers(kind)
        pruner = eqsparse.MagnitudePruning(
            optim, structure=RUNS, distribution=eqsparse.Uniform(real(0.25), overrides={"0.weight": real(0.5 - i / 100)}),
            schedule=eqsparse.Polynomial(whole(0), whole(i), whole(i + 1), real(1 + i)),
        )  # fmt: skip
        model, state = pruner.init(model_of())
        for _ in range(i + 1):
            model, state = pruner.step(model, ones(model), state)
        assert kept(model) == [32 if i == 0 else 48]
    assert len(traced) == 1


@pytest.mark.parametrize("make", ["Uniform", "a float", "ERK", "Global", "PerPath"])
def test_another_target_through_a_compiled_function(make):
    """Pruners passed as arguments: another sparsity, another schedule, no other trace."""
    optim, _ = counting()
    traced = []

    @eqx.filter_jit
    def train(pruner, model, grads, state):
        traced.append(1)
        return pruner.step(model, grads, state)

    distribution = {
        "Uniform": eqsparse.Uniform, "a float": lambda s: s, "ERK": eqsparse.ERK, "Global": eqsparse.Global,
        "PerPath": lambda s: eqsparse.PerPath({"0.*": s}),
    }[make]  # fmt: skip
    for s, stop, k in ((0.5, 0, 32), (np.float32(0.75), 1, 64), (jnp.asarray(0.25), 0, 48)):
        pruner = eqsparse.MagnitudePruning(optim, distribution=distribution(s), schedule=eqsparse.OneShot(stop))
        model, state = pruner.init(model_of())
        model, state = train(pruner, model, ones(model), state)
        assert kept(model) == [k]
    assert len(traced) == 1


def test_extra_arguments_of_any_kind():
    """`value=float(loss)` is how a loop is often written; it must not compile anew for every loss."""
    for values in ([1.0, 2.0, 3.0], [np.float32(1), np.float32(2)], [jnp.asarray(1.0), jnp.asarray(2.0)]):
        optim, traced = counting(optax.polyak_sgd())
        pruner = eqsparse.MagnitudePruning(optim, distribution=0.5, structure=RUNS)
        model, state = pruner.init(model_of())
        for value in values:
            model, state = pruner.step(model, ones(model), state, value=value)
        assert len(traced) == 1, values


def test_sweep_over_sparsities():
    """Rule 8: target, schedule and power are leaves; `vmap` over them is a sweep, equal to a loop."""
    net = [eqx.nn.Linear(8, 8, key=KEY)]
    make = lambda s, stop: eqsparse.MagnitudePruning(
        distribution=s, schedule=eqsparse.Polynomial(0, stop, 1, power=1.0), packed=True
    )

    def trained(pruner):
        model, state = pruner.init(net)
        for _ in range(2):
            model, state = pruner.step(model, None, state)
        return model[0].masks["weight"].dense()

    sparsities, stops = [0.25, 0.5, 0.9], [1, 2, 4]
    swept = eqx.filter_jit(eqx.filter_vmap(lambda s, stop: trained(make(s, stop))))(
        jnp.asarray(sparsities), jnp.asarray(stops)
    )
    for i in range(3):
        np.testing.assert_array_equal(swept[i], trained(make(sparsities[i], stops[i])))
    # 64 (1 - s · share), at the second step: shares 1, 1/2 and 1/4.
    assert [int(m.sum()) for m in swept] == [48, 48, 50]


def primitives(jaxpr, inside=False):
    """(name, whether within a `while` or `cond`) of every operation on more than single numbers, inner ones included."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if any(v.aval.size > 8 for v in eqn.outvars if hasattr(v.aval, "size")):
            yield name, inside
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, inside or name in ("while", "cond"))


@pytest.mark.parametrize("members", [None, 3], ids=["one", "ensemble"])
def test_the_search_stands_within_a_conditional(members):
    """PREDECESSOR row 21: under vmap the sort runs at every step.

    The keys of the search (a bitcast) and the lots (random bits) are made within the loop that runs only when an
    update is due; and there is no sort at all. (What the compiler leaves there, the next test sees.)
    """
    pruner = eqsparse.RandomPruning(optax.adam(0.1), distribution=0.5, schedule=eqsparse.Periodic(0, 9, 3), key=KEY)
    saliency = eqsparse.SaliencyPruning(optax.adam(0.1), distribution=0.5, schedule=eqsparse.Periodic(0, 9, 3))
    for each, mark in ((pruner, "random_bits"), (saliency, "bitcast_convert_type")):
        init, step, nets = each.init, each.step, model_of()
        if members is not None:
            nets = eqx.filter_vmap(lambda key: [eqx.nn.Linear(8, 8, key=key)])(jax.random.split(KEY, members))
            init, step = eqx.filter_vmap(init), eqx.filter_vmap(step)
        model, state = init(nets)
        arrays, static = eqx.partition((model, ones(model), state), eqx.is_array)
        jaxpr = jax.make_jaxpr(lambda arrays: eqx.filter(step(*eqx.combine(arrays, static)), eqx.is_array))(arrays)
        found = set(primitives(jaxpr.jaxpr))
        assert (mark, True) in found
        assert (mark, False) not in found
        assert not any(name in ("sort", "top_k", "approx_top_k") for name, _ in found)


class Watched(eqsparse.AbstractCriterion):
    """Magnitude, with a count of how often scores are worked out when it runs."""

    runs = []

    def score(self, weight):
        def on_host(w):
            Watched.runs.append(1)
            return np.abs(w)

        return jax.pure_callback(on_host, weight, weight, vmap_method="expand_dims")


@pytest.mark.parametrize("members", [None, 3], ids=["one", "ensemble"])
def test_scores_are_worked_out_only_when_due(members):
    """Counted as the compiled step runs: with members out of step, whenever one of them is due, and it alone changes."""
    pruner = eqsparse.GradualPruning(
        criterion=Watched(), distribution=0.5, structure=RUNS, schedule=eqsparse.Polynomial(2, 5, 3, power=1)
    )
    init, step, nets = pruner.init, pruner.step, model_of()
    if members is not None:
        nets = eqx.filter_vmap(lambda key: [eqx.nn.Linear(8, 8, key=key)])(jax.random.split(KEY, members))
        init, step = eqx.filter_vmap(init), eqx.filter_vmap(step)
    model, state = init(nets)
    if members is not None:
        state = eqx.tree_at(lambda s: s.step, state, jnp.asarray([0, 0, 2], jnp.int32))
    step = eqx.filter_jit(step)
    ran = []
    for _ in range(8):
        Watched.runs.clear()
        model, state = step(model, None, state)
        jax.block_until_ready(model[0].weight)
        ran.append(bool(Watched.runs))
        if members is not None and len(ran) == 4:  # the third is at its target, the others have not set out
            assert [int(m.sum()) for m in eqsparse.get_masks(model)["0.weight"]] == [64, 64, 32]
    due = {2, 5} if members is None else {2, 5, 0, 3}
    assert ran == [t in due for t in range(8)]
    assert int(eqsparse.get_masks(model)["0.weight"].sum()) == 32 * (members or 1)
