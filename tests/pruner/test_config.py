"""Pruners to plain data and back."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(5)
SOME = {
    "SNIP": {}, "GraSP": {}, "SynFlow": {"rounds": 7}, "NoPruning": {}, "StaticSparse": {"key": KEY},
    "SET": {"key": KEY, "drop_fraction": 0.2}, "RigL": {"key": KEY}, "SNFS": {"key": KEY, "momentum": 0.8},
    "RandomPruning": {"key": KEY}, "RandomSTE": {"key": KEY}, "SRSTE": {"decay": 1e-3},
    "TopKAST": {"backward_sparsity": 0.5}, "ACDC": {"reset": False}, "LotteryTicket": {"rounds": 3, "steps": 10, "rewind": 2},
    "GradualPruning": {"criterion": eqsparse.Saliency()}, "StraightThrough": {"criterion": eqsparse.Fisher(0.9)},
    "DynamicSparse": {"drop": eqsparse.Magnitude(), "grow": eqsparse.GradientMomentum(0.5), "order": eqsparse.After(), "key": KEY},
}  # fmt: skip
NAMES = sorted(
    n for n, c in vars(eqsparse).items()
    if isinstance(c, type) and issubclass(c, eqsparse.AbstractPruner) and not n.startswith("Abstract")
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    """Through JSON, to an equal pruner."""
    common = {"distribution": 0.75, "structure": {"0.*": eqsparse.Block((2, 2), "max"), "1.*": eqsparse.NM(1, 4)}}
    common |= {"where": ["0.*", "1.*"], "packed": True}
    if name != "LotteryTicket":
        common["schedule"] = eqsparse.Polynomial(1, 10, 2)
    pruner = getattr(eqsparse, name)(**common, **SOME.get(name, {}))
    config = json.loads(json.dumps(pruner.to_config()))
    again = eqsparse.from_config(config)
    assert type(again) is type(pruner) and again.to_config() == pruner.to_config()
    assert jax.tree.structure(again) == jax.tree.structure(pruner)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(pruner), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "distribution",
    [
        eqsparse.Uniform(0.9, {"a.*": None, "b": 0.5}), eqsparse.ERK(0.9, power=0.5), eqsparse.LAMP(0.7),
        eqsparse.Global(0.3, normalise=False, floor=3), eqsparse.PerPath({"x": 0.1, "y": None}, default=0.9),
    ],
    ids=lambda d: type(d).__name__,
)  # fmt: skip
def test_distributions(distribution):
    config = eqsparse.MagnitudePruning(distribution=distribution).to_config()
    again = eqsparse.from_config(json.loads(json.dumps(config)))
    assert repr(again.distribution) == repr(distribution)


def test_one_script_runs_all_from_a_list():
    for name in ("MagnitudePruning", "SET", "MagnitudeSTE"):
        pruner = eqsparse.from_config({
            "algorithm": name, "distribution": 0.5, "schedule": {"name": "OneShot", "step": 0}, "key": 1,
            "optim": {"name": "adam", "learning_rate": 0.1}, "structure": {"name": "NM", "n": 2, "m": 4},
        })  # fmt: skip
        model, state = pruner.init([eqx.nn.Linear(8, 4, key=KEY)])
        model, state = pruner.step(model, jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array)), state)
        assert [int(m.sum()) for m in eqsparse.get_masks(model).values()] == [16]


def test_classes_and_objects_may_stand_where_names_do():
    class Mine(eqsparse.AbstractPruner):
        criterion = eqsparse.Magnitude()

    optim = optax.sgd(0.1)
    pruner = eqsparse.from_config({
        "algorithm": Mine, "distribution": {"name": eqsparse.ERK, "sparsity": 0.5}, "schedule": eqsparse.NoSchedule,
        "structure": "Unstructured", "optim": optim,
    })  # fmt: skip
    assert type(pruner) is Mine and type(pruner.distribution) is eqsparse.ERK and pruner.optim is optim


@pytest.mark.parametrize(
    "config, message",
    [
        ({"distribution": 0.5}, r"`from_config\(config\)` must be a dict with the key 'algorithm'"),
        ({"algorithm": "Rigl", "distribution": 0.5}, r"`algorithm` must be one of .*'RigL'.* Got 'Rigl'. Did you mean 'RigL'"),
        ({"algorithm": "RigL", "distributions": 0.5}, r"`RigL` must be given keys of .*Got 'distributions'. Did you mean 'distribution'"),
        ({"algorithm": "SET", "distribution": {"name": "ERC"}}, r"`name` must be one of .*'ERK'.* Got 'ERC'"),
        ({"algorithm": "SET", "distribution": {"name": "ERK", "s": 1}}, r"`ERK` must be given keys of \['sparsity', 'overrides', 'power'\]. Got 's'"),
        ({"algorithm": "SET", "distribution": 0.5, "optim": {"name": "adamm"}}, r"`optim: name` must be one of .*'adam'"),
    ],
)  # fmt: skip
def test_unknown_names_and_keys(config, message):
    with pytest.raises(ValueError, match=message):
        eqsparse.from_config(config)


def test_code_is_no_data():
    with pytest.raises(ValueError, match="`to_config` needs plain data, so `drop_fraction` can't be a function"):
        eqsparse.RigL(distribution=0.5, key=KEY, drop_fraction=optax.constant_schedule(0.1)).to_config()
