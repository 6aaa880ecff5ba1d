"""Any Optax optimiser: all that `optax` and `optax.contrib` have, each with three kinds of pruner."""

import functools
import inspect
import re
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from optimisers import CHAINS, EXTRA, MODEL, OPTIMISERS, PARAMETERS, UNUSABLE, WRAPPERS

import eqsparse
from eqsparse._pruner import optimiser

KEY = jax.random.key(0)
WEIGHT = "[0].layer.weight"
RUNS = eqsparse.NM(2, 4)  # compiles fastest
STEPS, DUE = {"gradual": 7, "drop and grow": 7, "straight-through": 4}, (1, 3, 5)
PRUNERS = {
    "gradual": lambda optim: eqsparse.MagnitudePruning(
        optim, distribution=0.5, structure=RUNS, schedule=eqsparse.Polynomial(1, 5, 2, power=1)
    ),
    "drop and grow": lambda optim: eqsparse.RigL(
        optim, distribution=0.5, structure=RUNS, schedule=eqsparse.Periodic(1, 5, 2), key=KEY,
        drop_fraction=optax.constant_schedule(0.5),
    ),
    "straight-through": lambda optim: eqsparse.MagnitudeSTE(optim, distribution=0.5, structure=RUNS),
}  # fmt: skip

# What an optimiser writes behind the mask in its own step, which is gone before the next: where, and at most how much.
# A constant in second moments; what functions that it is given return there; what earlier parts of a chain hand on.
EPSILON, ANY = 1e-8, np.inf
WRITE_BEHIND = {
    "adabelief": ("nu", EPSILON),
    "adafactor, whole": ("v", EPSILON),
    "adamax": ("nu", EPSILON),
    "adamaxw": ("nu", EPSILON),
    "contrib.acprop": ("nu", EPSILON),
    "clipping and moments": ("nu", EPSILON),
    "more moments": ("nu", EPSILON),
    "lbfgs": ("grad", ANY),
    "scale_by_backtracking_linesearch": ("grad", ANY),
    "history and line search": ("grad", ANY),
    "contrib.sam, opaque": ("mu|nu", ANY),
    "contrib.sophia": ("nu", ANY),
    "curvature": ("trace", ANY),
    "filling in": (".*", ANY),
}

# How many parts of a state belong to the weight.
PARTS = {
    "adam": 2, "flatten": 0, "lamb": 2, "lbfgs": 5, "lion": 1, "masked": 2, "MultiSteps": 3, "partition": 2, "sgd": 1,
    "sign_sgd": 0, "contrib.prodigy": 4, "contrib.schedule_free": 3,
}  # fmt: skip

# Optimisers that keep weights as they were: where they started, or a second sequence of them.
POSITIONS = {
    "contrib.cocob", "contrib.dog", "contrib.dowg", "contrib.madgrad", "contrib.mechanize", "contrib.prodigy",
    "contrib.sam", "contrib.schedule_free", "contrib.schedule_free_adamw", "contrib.schedule_free_sgd",
}  # fmt: skip
# Optimisers with statistics of a weight that have another shape, which masks do not reach.
SHARED = {"adafactor, factored", "novograd", "sm3"}


def grouped(parts):
    return lambda: optax.chain(*[make() for name, make in parts.items() if there(name) and name not in broken()])


@functools.cache
def broken():
    """Of Optax 0.2.5: it mixes up three arguments, and any negative gradient becomes NaN, whoever calls it."""
    optim, name = optax.scale_by_distance_over_gradients(), "scale_by_distance_over_gradients"
    updates, _ = optim.update(-jnp.ones(3), optim.init(jnp.ones(3)), jnp.ones(3))
    return {name} if jnp.isnan(updates).any() else set()


def found(name):
    """What Optax has under a name, `None` if this version has no such thing."""
    module, name = (optax.contrib, name.removeprefix("contrib.")) if "contrib." in name else (optax, name)
    return getattr(module, name.split(",")[0], None)


def there(name):
    return found(name) is not None


CASES = {**OPTIMISERS, **WRAPPERS, **{name: grouped(parts) for name, parts in CHAINS.items()}}
# Gradual pruning with all. The others, which take longer to compile, with those that hold state in a way of their own:
# not where it is Adam's, a trace or the same second sequence once more, or where no part has a weight's shape.
SAME_STATE = {
    "adamaxw", "adamw", "fromage", "lamb", "lars", "nadam", "nadamw", "noisy_sgd", "optimistic_adam", "polyak_sgd",
    "sign_sgd", "signum", "contrib.schedule_free_sgd",
}  # fmt: skip
HOLDERS = ("chain", "MultiSteps", "inject_hyperparams", "masked", "partition", "apply_if_finite", "flatten")
OTHERS = [name for name in OPTIMISERS if name not in SAME_STATE]
PAIRS = [(name, "gradual") for name in CASES]
PAIRS += [(name, "drop and grow") for name in (*OTHERS, *HOLDERS)]
PAIRS += [(name, "straight-through") for name in OTHERS]
LISTED = [*OPTIMISERS, *WRAPPERS, *UNUSABLE, *(name for parts in CHAINS.values() for name in parts)]


def made(name):
    if not any(map(there, CHAINS.get(name, [name]))):
        pytest.skip(f"not in Optax {optax.__version__}")
    with jax.numpy_dtype_promotion("standard"):
        optim = {**CASES, **UNUSABLE}[name]()
    return optax.GradientTransformationExtraArgs(optim.init, optax.with_extra_args_support(optim).update)


def with_weight(parameters, change):
    return eqx.tree_at(lambda p: p[0].layer.weight, parameters, replace_fn=change)


def value(target, mask, parameters):
    """A loss of the effective weights, and its gradient with respect to them."""
    effective = with_weight(parameters, lambda w: jnp.where(mask, w, 0.0))
    terms = jax.tree.map(lambda p, t: 0.5 * jnp.sum((p - t) ** 2), effective, target)
    return sum(jax.tree.leaves(terms))


def gradient(target, mask, parameters, i=0):
    effective = with_weight(parameters, lambda w: jnp.where(mask, w, 0.0))
    return jax.tree.map(lambda p, t: p - t, effective, target)


def targets():
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    return [jax.tree.map(draw, PARAMETERS) for _ in range(max(STEPS.values()))]


def extra_at(name, target, mask, parameters):
    made = {
        "value": lambda: value(target, mask, parameters),
        "grad": lambda: gradient(target, mask, parameters),
        "value_fn": lambda: Partial(value, target, mask),
        "obj_fn": lambda: Partial(value, target, mask),
        "grad_fn": lambda: Partial(gradient, target, mask),
    }
    return {key: made[key]() for key in EXTRA.get(name, ())}


def of_weight(state):
    """The parts of the weight's shape at the places that end like its path, with a further axis for a history."""
    found = jax.tree_util.tree_flatten_with_path(eqx.filter(state, eqx.is_inexact_array))[0]
    paths = {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}
    fits = lambda x: (6, 8) in (x.shape, x.shape[1:])
    return {path: x for path, x in paths.items() if path.endswith(WEIGHT) and fits(x)}


def finite(tree):
    return all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))


def mask_of(model):
    return np.asarray(eqsparse.get_masks(model)["0.weight"])


@functools.cache
def begun(kind):
    """As `init` gives it without an optimiser."""
    return PRUNERS[kind](None).init(MODEL)


def steps(name, kind, optim):
    """Where each step starts, and ends: its number, extra arguments, gradient, masks, model, state."""
    pruner = PRUNERS[kind](optim)
    if kind == "gradual":
        model, state = pruner.init(MODEL)
    else:  # `init` compiles anew for each optimiser: once by each is enough
        model, state = begun(kind)
        begins = optimiser.start(optim, eqx.filter(model, eqx.is_inexact_array))
        state = eqx.tree_at(lambda s: s.optim, state, begins, is_leaf=lambda x: x is None)
    for step, target in enumerate(targets()[: STEPS[kind]]):
        parameters, before = eqx.filter(model, eqx.is_inexact_array), mask_of(model)
        grads, extra = gradient(target, before, parameters), extra_at(name, target, before, parameters)
        model, state = pruner.step(model, grads, state, **extra)
        yield step, extra, grads, before, model, state


def counting(optim):
    """The optimiser, and a list that grows each time its update is traced."""
    traced = []

    def update(grads, state, params=None, **extra):
        traced.append(1)
        return optim.update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optim.init, update), traced


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name, kind", PAIRS)
def test_any_optimiser(name, kind):
    """PREDECESSOR rows 16, 18 and 19: crashes with all but SGD and Adam; moments stay alive at pruned positions;
    optimisers whose update takes extra arguments crash."""
    optim = made(name)
    counted, traced = counting(optim)
    kept, plain = [], None
    for step, extra, grads, before, model, state in steps(name, kind, counted):
        mask, parameters = mask_of(model), eqx.filter(model, eqx.is_inexact_array)
        weight = np.asarray(model[0].layer.weight)
        kept.append(int(mask.sum()))
        assert finite((model, state.optim))
        if kind == "straight-through":
            assert weight.all()
            if not set(EXTRA.get(name, ())) & {"value_fn", "obj_fn"}:  # trains as Optax alone does; these take seconds
                plain = alone(optim, plain or (PARAMETERS, start(optim, PARAMETERS)), grads, extra)
                np.testing.assert_allclose(weight, plain[0][0].layer.weight, rtol=1e-4, atol=1e-5)
            continue
        assert not weight[~mask].any()
        parts = of_weight(state.optim)
        assert len(parts) == PARTS.get(name, len(parts))
        exact = kind == "drop and grow" and step in DUE  # where the update replaces the optimiser's step
        where, most = WRITE_BEHIND.get(name, ("", 0))
        for path, part in parts.items():
            may = not exact and re.search(rf"\.({where}){re.escape(WEIGHT)}$", path)
            assert np.abs(part[..., ~mask]).max(initial=0) <= (most if may else 0), path
        if exact:
            grown, fresh = mask & ~before, of_weight(start(optim, parameters))
            assert grown.any()
            for path, part in parts.items():
                np.testing.assert_array_equal(part[..., grown], fresh[path][..., grown], err_msg=path)
        if "schedule_free" in name:
            evaluated = optax.contrib.schedule_free_eval_params(state.optim, parameters)
            assert not np.asarray(evaluated[0].layer.weight)[~mask].any()
    assert kept == ([48, 48, 48, 36, 36, 24, 24] if kind == "gradual" else [24] * STEPS[kind])
    assert len(traced) == 1
    assert (weight[mask] != np.asarray(MODEL[0].weight)[mask]).any() or name == "nothing"


def start(optim, parameters):
    with jax.numpy_dtype_promotion("standard"):
        return optim.init(parameters)


def alone(optim, at, grads, extra):
    """A step of the optimiser itself, from parameters and its state."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, state = optim.update(grads, at[1], at[0], **extra)
        return optax.apply_updates(at[0], updates), state


def test_all_of_optax_is_listed():
    """What says that it returns a transformation, and what does so without arguments."""
    missing = []
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, thing in vars(module).items():
            if not name.startswith("_") and inspect.isfunction(thing) and makes_transformation(thing):
                missing += [prefix + name] if prefix + name not in {each.split(",")[0] for each in LISTED} else []
    assert missing == []


def makes_transformation(function):
    signature = inspect.signature(function)
    if signature.return_annotation is not inspect.Signature.empty:
        return "GradientTransformation" in str(signature.return_annotation)
    if any(p.default is p.empty for p in signature.parameters.values()):
        return False
    return isinstance(function(), optax.GradientTransformation)


def flat(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_state_that_means_something_else():
    """By name in the docs: those that keep positions beside moments, and those whose statistics weights share."""
    positions, shared = set(), set()
    for name in filter(there, OPTIMISERS):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            whole = start(made(name), PARAMETERS)
        state, weight = eqx.filter(whole, eqx.is_inexact_array), np.asarray(MODEL[0].weight)
        # `dog` of Optax 0.2.5 takes the position at its first step.
        late = "first_step" in {getattr(key, "name", "") for path, _ in flat(whole) for key in path}
        if late or any(np.array_equal(part, weight) for part in of_weight(state).values()):
            positions.add(name)
        leaves = [(jax.tree_util.keystr(path), x) for path, x in flat(state)]
        at_weight = {path: np.size(x) for path, x in leaves if WEIGHT in path and path not in of_weight(state)}
        if any(size > 1 for size in at_weight.values()) or (at_weight and "novograd" in name):
            shared.add(name)
    assert positions == set(filter(there, POSITIONS))
    assert shared == set(filter(there, SHARED))
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    named = {
        name.removeprefix("contrib.").split(",")[0] for name in (*POSITIONS, *SHARED, *UNUSABLE, "flatten", "muon")
    }
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


def test_optimisers_that_cannot_be_used():
    """As the docs say; each for a reason of its own, which it has in any loop but for the first."""
    refused = {
        "contrib.differentially_private_aggregate": (ValueError, "must make one update for each parameter, of its"),
        "contrib.dpsgd": (ValueError, "must make one update for each parameter, of its shape"),
        "lookahead": (AttributeError, "has no attribute 'fast'"),
        "monitor": (ValueError, "`state` must be that of this pruner's optimiser"),
        "measure_with_ema": (ValueError, "must make one update for each parameter, of its shape"),
        "contrib.galore": (AttributeError, "'NoneType' object has no attribute 'dtype'"),
        "contrib.scale_by_galore": (AttributeError, "'NoneType' object has no attribute 'dtype'"),
    }
    assert set(refused) == set(UNUSABLE)
    for name, (error, message) in refused.items():
        if there(name):
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                pruner = eqsparse.NoPruning(made(name))
            with pytest.raises(error, match=message):
                model, state = pruner.init(MODEL)
                for _ in range(2):
                    model, state = pruner.step(model, PARAMETERS, state)


def test_private_gradients():
    """The way round in the docs: aggregated before the step."""
    private = optax.contrib.differentially_private_aggregate(1.0, 0.0, key=0)
    pruner = eqsparse.MagnitudePruning(optax.sgd(1.0), distribution=0.5, structure=RUNS)
    model, state = pruner.init(MODEL)
    of_examples = jax.tree.map(lambda *grads: jnp.stack(grads), *targets())
    grads, _ = private.update(of_examples, private.init(PARAMETERS))
    new, _ = pruner.step(model, grads, state)
    norms = [np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(g))) for g in targets()]
    mean = np.mean([np.asarray(g[0].bias) / max(norm, 1) for g, norm in zip(targets(), norms, strict=True)], axis=0)
    np.testing.assert_allclose(new[0].bias, model[0].bias - mean, atol=1e-5)
    assert not np.asarray(new[0].layer.weight)[~mask_of(new)].any()


@pytest.mark.skipif(not there("contrib.galore"), reason="not in this Optax")
def test_galore_on_a_dict():
    """Its trees must have no empty places: those of an Equinox model have, a dict of arrays has none."""
    optim = optax.contrib.galore(0.02, rank=2)
    params = {"w": MODEL[0].weight, "b": MODEL[0].bias}
    tx = eqsparse.MagnitudePruning(optim, distribution=0.5, structure=RUNS, schedule=eqsparse.OneShot(1)).as_optax()
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert int((params["w"] != 0).sum()) == 24
