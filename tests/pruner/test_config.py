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


@pytest.mark.parametrize("name", sorted({*NAMES} - {"LotteryTicket"}))
def test_one_script_runs_all_from_a_list(name):
    more = {"GradualPruning": {"criterion": "Magnitude"}, "StraightThrough": {"criterion": "Magnitude"},
            "DynamicSparse": {"drop": "Magnitude", "grow": "Random"}, "TopKAST": {"backward_sparsity": 0.25}}  # fmt: skip
    pruner = eqsparse.from_config({
        "algorithm": name, "distribution": {"name": "Uniform", "sparsity": 0.5}, "schedule": {"name": "OneShot", "step": 0},
        "key": np.int64(1), "optim": {"name": "adam", "learning_rate": 0.1}, **more.get(name, {}),
    })  # fmt: skip
    model, data = [eqx.nn.Linear(8, 4, key=KEY)], jnp.ones((2, 8))
    if name in ("SNIP", "GraSP"):
        model = pruner.prune(model, loss=lambda m, x: jnp.mean(jnp.sin(jax.vmap(m[0])(x))), data=data)
    if name == "SynFlow":
        model = pruner.prune(model, data=data, forward=lambda m, x: jax.vmap(m[0])(x))
    if name in ("Wanda", "RIA", "SparseGPT"):
        kind = "gram" if name == "SparseGPT" else "second_moment"
        forward = lambda m, x: jax.vmap(m[0])(x)
        model = pruner.prune(model, statistics=eqsparse.calibrate(model, [data], statistics=kind, forward=forward))
    model, state = pruner.init(model)
    model, state = pruner.step(model, jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array)), state)
    assert [int(m.sum()) for m in eqsparse.get_masks(model).values()] == [32 if name == "NoPruning" else 16]


def test_classes_and_objects_may_stand_where_names_do():
    class Mine(eqsparse.AbstractPruner):
        criterion = eqsparse.Magnitude()

    optim = optax.sgd(0.1)
    pruner = eqsparse.from_config({
        "algorithm": Mine, "distribution": {"name": eqsparse.ERK, "sparsity": 0.5}, "schedule": eqsparse.NoSchedule,
        "structure": "Unstructured", "optim": optim,
    })  # fmt: skip
    assert type(pruner) is Mine and type(pruner.distribution) is eqsparse.ERK and pruner.optim is optim


def test_own_classes_are_read_by_name():
    class Mine(eqsparse.AbstractPruner):
        criterion = eqsparse.Magnitude()

    class Half(eqsparse.AbstractSchedule):
        mode: str = eqx.field(static=True, default="slow")

        def is_due(self, step):
            return step == 0

        def sparsity(self, target, step):
            return target / 2

        def last(self):
            return None

    config = Mine(distribution=0.5, schedule=Half()).to_config()
    assert config["algorithm"] == "Mine" and config["schedule"] == {"name": "Half", "mode": "slow"}
    pruner = eqsparse.from_config(json.loads(json.dumps(config)), classes=[Mine, Half])
    assert type(pruner) is Mine and type(pruner.schedule) is Half
    with pytest.raises(ValueError, match="`algorithm` must be one of .* Got 'Mine'"):
        eqsparse.from_config(config)


def test_keys_of_other_generators():
    """The rule for keys goes with them."""
    pruner = eqsparse.StaticSparse(distribution=0.5, key=jax.random.key(3, impl="rbg"))
    again = eqsparse.from_config(json.loads(json.dumps(pruner.to_config())))
    assert jax.random.key_impl(again.key) == jax.random.key_impl(pruner.key)
    np.testing.assert_array_equal(jax.random.key_data(again.key), jax.random.key_data(pruner.key))


def test_a_pattern_may_be_called_as_the_key_that_holds_a_name():
    pruner = eqsparse.MagnitudePruning(
        distribution=eqsparse.Uniform(0.5, {"name": 0.25}), structure={"name": eqsparse.NM(2, 4)}
    )
    again = eqsparse.from_config(json.loads(json.dumps(pruner.to_config())))
    assert again.to_config() == pruner.to_config() and type(again.structure) is type(pruner.structure)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"distribution": 0.5}, r"`from_config\(config\)` must be a dict with the key 'algorithm'"),
        ({"algorithm": "Rigl", "distribution": 0.5}, r"`algorithm` must be one of .*'RigL'.* Got 'Rigl'. Did you mean 'RigL'"),
        ({"algorithm": "RigL", "distributions": 0.5}, r"`RigL` must be given keys of .*Got 'distributions'. Did you mean 'distribution'"),
        ({"algorithm": "SET", "distribution": {"name": "ERC"}}, r"`name` must be one of .*'ERK'.* Got 'ERC'"),
        ({"algorithm": "SET", "distribution": {"name": "ERK", "s": 1}}, r"`ERK` must be given keys of \['sparsity', 'overrides', 'power'\]. Got 's'"),
        ({"algorithm": "SET", "distribution": 0.5, "optim": {"name": "adamm"}}, r"`optim: name` must be one of .*'adam'"),
        ({"algorithm": "SET", "distribution": 0.5, "optim": {"name": "adam", "lr": 1}}, r"`optax.adam` must be given keys of .*Got 'lr'"),
        ({"algorithm": "SET", "distribution": 0.5, "optim": {"name": "adam"}}, r"`optax.adam` must be given \['learning_rate'\]"),
        ({"algorithm": eqsparse.Magnitude}, r"`algorithm` must be one of .* Got <class"),
        ({"algorithm": "SET", "distribution": {"name": int}}, r"`name` must be one of .* Got <class 'int'>"),
        ({"algorithm": "SET", "distribution": 0.5, "key": {"data": [0, 0]}}, r"`key` must be a seed, or what `to_config`"),
        ({"algorithm": "SET", "key": 0}, r"`SET` must be given \['distribution'\]"),
        ({"algorithm": "GradualPruning", "distribution": 0.5}, r"`GradualPruning` must be given \['criterion'\]"),
        ({"algorithm": "MagnitudePruning", "distribution": "ERK"}, r"`ERK` must be given \['sparsity'\]"),
        ({"algorithm": "MagnitudePruning", "distribution": 0.5, "schedule": "Magnitude"}, r"`MagnitudePruning\(schedule=...\)` must be a schedule"),
    ],
)  # fmt: skip
def test_unknown_names_and_keys(config, message):
    with pytest.raises(ValueError, match=message):
        eqsparse.from_config(config)


def test_code_is_no_data():
    with pytest.raises(ValueError, match="`to_config` needs plain data, so `drop_fraction` can't be a function"):
        eqsparse.RigL(distribution=0.5, key=KEY, drop_fraction=optax.constant_schedule(0.1)).to_config()


def test_none_where_it_is_not_the_default():
    pruner = eqsparse.TopKAST(distribution=0.9, backward_sparsity=0.5, decay=None)
    assert pruner.to_config()["decay"] is None and eqsparse.from_config(pruner.to_config()).decay is None


def test_an_optimiser_without_its_name():
    with pytest.raises(ValueError, match=r"`from_config\(optim=...\)` must have a `name`"):
        eqsparse.from_config({"algorithm": "RigL", "distribution": 0.5, "optim": {"learning_rate": 0.1}})
