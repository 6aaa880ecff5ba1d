"""What all distributions share: targets by path, overrides, errors; and `Uniform` and `PerPath` themselves."""

import re
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse import ERK, Global, PerPath, Uniform
from eqsparse._sites import read

ALL = {
    "Uniform": lambda s, overrides=None: Uniform(s, overrides),
    "ERK": lambda s, overrides=None: ERK(s, overrides),
    "Global": lambda s, overrides=None: Global(s, overrides=overrides),
    "PerPath": lambda s, overrides=None: PerPath(overrides or {}, default=s),
}


def tree():
    """Two layers that are pruned, biases that are not, a table of integers, and a step counter."""
    return {
        "body": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(8)},
        "head": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(4)},
        "ids": jnp.arange(12).reshape(3, 4),
        "step": jnp.asarray(0),
    }


KERNELS = ["body.kernel", "head.kernel"]


# Targets.


@pytest.mark.parametrize("sparsity", [0.0, 0.1234567, 0.5, 0.9, 1.0])
def test_uniform_asks_the_same_of_all(sparsity):
    assert Uniform(sparsity).targets(tree()) == dict.fromkeys(KERNELS, sparsity)
    assert Global(sparsity).targets(tree()) == dict.fromkeys(KERNELS, sparsity)
    assert PerPath({}, default=sparsity).targets(tree()) == dict.fromkeys(KERNELS, sparsity)


@pytest.mark.parametrize("name", ALL)
def test_integers_and_vectors_are_left_alone(name):
    """PREDECESSOR row 28: integer arrays of rank 2 are pruned too there."""
    assert set(ALL[name](0.5).targets(tree())) == set(KERNELS)
    pruned = eqsparse.MagnitudePruning(distribution=ALL[name](0.5)).prune(tree())
    for path in (("ids",), ("step",), ("body", "bias"), ("head", "bias")):
        before, after = tree(), pruned
        for part in path:
            before, after = before[part], after[part]
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert sum(int((pruned[p]["kernel"] == 0).sum()) for p in ("body", "head")) == 40


def test_trees_and_models_of_any_kind(getkey):
    w, b = jnp.ones((4, 6)), jnp.ones(4)
    assert Uniform(0.5).targets(w) == {"": 0.5}
    assert Uniform(0.5).targets([w, b]) == {"0": 0.5}
    assert Uniform(0.5).targets((w, {"x": [w]})) == {"0": 0.5, "1.x.0": 0.5}
    linear, conv = eqx.nn.Linear(6, 4, key=getkey()), eqx.nn.Conv1d(3, 4, 2, key=getkey())
    assert Uniform(0.5).targets([linear, conv]) == {"0.weight": 0.5, "1.weight": 0.5}
    assert Uniform(0.5).targets(eqsparse.sparsify([linear, conv])) == {"0.weight": 0.5, "1.weight": 0.5}


def test_per_path():
    model = tree()
    assert PerPath({"body.*": 0.3}).targets(model) == {"body.kernel": 0.3, "body.bias": 0.3, "head.kernel": None}
    assert PerPath({"body.kernel": 0.3}, default=0.8).targets(model) == {"body.kernel": 0.3, "head.kernel": 0.8}
    assert PerPath({"body.kernel": None}, default=0.8).targets(model) == {"body.kernel": None, "head.kernel": 0.8}
    assert PerPath({}).targets(model) == dict.fromkeys(KERNELS)


def test_a_number_stands_for_uniform():
    for number in (0.5, np.float64(0.5), jnp.asarray(0.5)):
        pruner = eqsparse.MagnitudePruning(distribution=number)
        assert isinstance(pruner.distribution, Uniform)
        assert pruner.distribution.targets(tree()) == dict.fromkeys(KERNELS, 0.5)


# Overrides.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "pattern",
    ["body.kernel", "body.k*", "b*l", re.compile(r"^body\.k"), re.compile("y.k"), lambda path, a: a.shape == (8, 6)],
    ids=["path", "glob", "wide glob", "regex", "part", "callable"],
)
def test_any_pattern_overrides(name, pattern):
    targets = ALL[name](0.5, {pattern: 0.25}).targets(tree())
    assert targets["body.kernel"] == 0.25 and targets["head.kernel"] == 0.5 and len(targets) == 2
    assert ALL[name](0.5, {pattern: None}).targets(tree()) == {"body.kernel": None, "head.kernel": 0.5}


@pytest.mark.parametrize("name", ALL)
def test_the_first_pattern_that_matches_counts(name):
    targets = ALL[name](0.5, {"head.kernel": 0.75, "head.*": 0.1, "*.kernel": None}).targets(tree())
    assert targets == {"body.kernel": None, "head.kernel": 0.75, "head.bias": 0.1}


@pytest.mark.parametrize("name", ALL)
def test_overrides_win_over_the_default_choice_of_sites(name):
    """PREDECESSOR row 15: a leaf that is filtered out is honoured by uniform there and not by ERK."""
    targets = ALL[name](0.5, {"body.bias": 0.25}).targets(tree())
    assert targets["body.bias"] == 0.25 and set(targets) == {*KERNELS, "body.bias"}
    pruned = eqsparse.MagnitudePruning(distribution=ALL[name](0.5, {"body.bias": 0.25})).prune(tree())
    assert int((pruned["body"]["bias"] == 0).sum()) == 2 and int((pruned["head"]["bias"] == 0).sum()) == 0


@pytest.mark.parametrize("name", ALL)
def test_a_site_that_is_not_pruned_by_default_may_be_named_dense(name):
    assert ALL[name](0.5, {"*.bias": None}).targets(tree()).get("body.bias") is None


@pytest.mark.parametrize("name", ALL)
def test_all_overridden(name):
    """PREDECESSOR row 15: a division by zero there."""
    assert ALL[name](0.5, {"*.kernel": 0.25}).targets(tree()) == dict.fromkeys(KERNELS, 0.25)
    assert ALL[name](0.5, {"*.kernel": None}).targets(tree()) == dict.fromkeys(KERNELS)


@pytest.mark.parametrize("name", ALL)
def test_a_misspelt_pattern_is_an_error_that_lists_the_nearest(name):
    """PREDECESSOR row 15: ignored in silence there."""
    for overrides in ({"body.kernal": 0.25}, {"body.kernel": 0.25, "body.kernal": None}):
        with pytest.raises(ValueError, match=r"must match one weight.*'body.kernal'.*Nearest: \['body.kernel'"):
            ALL[name](0.5, overrides).targets(tree())
        with pytest.raises(ValueError, match=r"body\.kernal"):
            eqsparse.MagnitudePruning(distribution=ALL[name](0.5, overrides)).prune(tree())


# Traced.


@pytest.mark.parametrize("name", ["Uniform", "Global", "PerPath"])
def test_sweeps_over_sparsities(name):
    """Mapped and compiled: as many weights as each sparsity asks for, without a second trace."""
    model = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((8, 6)), jnp.float32)}
    traces = []

    @jax.jit
    @jax.vmap
    def kept(sparsity):
        traces.append(1)
        pruner = eqsparse.MagnitudePruning(distribution=ALL[name](sparsity))
        return jnp.sum(pruner.prune(model)["w"] != 0)

    sweep = np.asarray([0.0, 0.25, 0.5, 0.99, 1.0], np.float32)
    assert kept(sweep).tolist() == [48, 36, 24, 1, 0]
    assert kept(sweep[::-1]).tolist() == [0, 1, 24, 36, 48]
    assert len(traces) == 1


@pytest.mark.parametrize("name", ALL)
def test_numbers_are_leaves_and_all_else_is_static(name):
    """The same structure for every sparsity: a compiled function that takes a distribution traces once."""
    traces = []

    @eqx.filter_jit
    def densities(distribution, model):
        traces.append(1)
        return {p: b.density for b in distribution.budgets(read(model)) for p in b.paths}

    for sparsity in (0.5, np.float32(0.8), jnp.asarray(0.9), 0, 1):
        found = densities(ALL[name](sparsity, {"body.bias": sparsity}), tree())
        exact = 1 - Fraction(round(float(sparsity) * 10**7), 10**7)
        assert int(found["body.bias"]) == min((exact * 2**32).__ceil__(), 2**32 - 1)
    assert len(traces) == 1


def test_distributions_are_pytrees():
    """Equal in structure, and with the sparsity as the one kind of leaf."""
    for make in ALL.values():
        leaves = jax.tree.leaves(make(0.5, {"body.*": 0.25, "head.*": None}))
        assert sorted(float(x) for x in leaves) == [0.25, 0.5]
        assert all(x.dtype == jnp.float32 for x in leaves)


# Errors.

BUILDERS = {
    "Uniform(sparsity=...)": lambda s: Uniform(s),
    "ERK(sparsity=...)": lambda s: ERK(s),
    "Global(sparsity=...)": lambda s: Global(s),
    "PerPath(default=...)": lambda s: PerPath({"*": 0.5}, default=s),
    "Uniform(overrides=...)['*']": lambda s: Uniform(0.5, {"*": s}),
    "ERK(overrides=...)['*']": lambda s: ERK(0.5, {"*": s}),
    "Global(overrides=...)['*']": lambda s: Global(0.5, overrides={"*": s}),
    "PerPath(...)['*']": lambda s: PerPath({"*": s}),
}


@pytest.mark.own_message
@pytest.mark.parametrize("argument", BUILDERS)
@pytest.mark.parametrize("sparsity", [1.2, -0.1, float("nan"), float("inf"), 2, -1])
def test_sparsities_out_of_range(argument, sparsity):
    with pytest.raises(ValueError) as raised:
        BUILDERS[argument](sparsity)
    assert str(raised.value) == f"`{argument}` must be in [0, 1]. Got {sparsity}."


@pytest.mark.own_message
@pytest.mark.parametrize("argument", BUILDERS)
@pytest.mark.parametrize("sparsity", [np.float32(1.5), np.float64(1.5), np.asarray(1.5), jnp.asarray(1.5)])
def test_arrays_out_of_range_show_their_value(argument, sparsity):
    with pytest.raises(ValueError) as raised:
        BUILDERS[argument](sparsity)
    assert str(raised.value) == f"`{argument}` must be in [0, 1]. Got 1.5."


@pytest.mark.own_message
@pytest.mark.parametrize("argument", BUILDERS)
@pytest.mark.parametrize("sparsity", ["x", "0.5", True, [0.5], 0.5j, {}, np.bool_(True)])
def test_sparsities_that_are_no_numbers(argument, sparsity):
    with pytest.raises(ValueError) as raised:
        BUILDERS[argument](sparsity)
    message = str(raised.value)
    assert message.startswith(f"`{argument}` must be a number. Got ")


@pytest.mark.own_message
@pytest.mark.parametrize("argument", [a for a in BUILDERS if "sparsity" in a])
def test_none_is_no_sparsity(argument):
    with pytest.raises(ValueError) as raised:
        BUILDERS[argument](None)
    assert str(raised.value) == f"`{argument}` must be a number. Got None."


@pytest.mark.own_message
@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda x: Uniform(0.5, x), r"Uniform\(overrides=...\)"),
        (lambda x: ERK(0.5, x), r"ERK\(overrides=...\)"),
        (lambda x: Global(0.5, overrides=x), r"Global\(overrides=...\)"),
        (lambda x: PerPath(x), r"PerPath\(...\)"),
    ],
)
@pytest.mark.parametrize("overrides", [0.5, "body.*", {5: 0.5}])
def test_overrides_must_be_a_dict_from_patterns(make, argument, overrides):
    with pytest.raises(ValueError, match=rf"`{argument}` must .*Got "):
        make(overrides).targets(tree())


@pytest.mark.own_message
@pytest.mark.parametrize("floor", [-1, 0.5, "x", None, float("nan"), float("inf"), [1]])
def test_wrong_floors(floor):
    with pytest.raises(ValueError) as raised:
        Global(0.5, floor=floor)
    assert str(raised.value).startswith("`Global(floor=...)` must be a whole number of at least 0. Got ")
