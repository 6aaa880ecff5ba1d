"""Patterns on weight paths: globs, regular expressions, callables, lists, and what happens when none matches."""

import re

import jax.numpy as jnp
import pytest

import eqsparse
from eqsparse._sites import as_patterns, PatternMap, pick

PATHS = [
    "encoder.0.weight",
    "encoder.1.weight",
    "encoder.10.weight",
    "decoder.weight_hh",
    "decoder.weight_ih",
    "head.weight",
]
ARRAYS = {path: jnp.zeros((i + 1, 2)) for i, path in enumerate(PATHS)}
TREE = {"encoder": [jnp.ones((4, 4)), jnp.ones((4, 8))], "head": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}


@pytest.mark.parametrize(
    "where, picked",
    [
        (None, PATHS),
        ("*", PATHS),
        ("head.weight", ["head.weight"]),
        ("encoder.*", PATHS[:3]),  # `*` crosses dots
        ("*weight", [p for p in PATHS if p.endswith("weight")]),
        ("encoder.?.weight", PATHS[:2]),
        ("encoder.[!0]*", PATHS[1:3]),
        ("*_[hi]h", PATHS[3:5]),
        (["head.*", "decoder.*"], PATHS[3:]),
        (("encoder.0.*", "encoder.*"), PATHS[:3]),
        (re.compile(r"\.1\."), ["encoder.1.weight"]),  # anywhere in the path
        (re.compile(r"^weight"), None),
        (re.compile("ENCODER", re.IGNORECASE), PATHS[:3]),
        (lambda path, array: array.shape[0] > 4, PATHS[4:]),
        (lambda path, array: path.startswith("h"), ["head.weight"]),
        ([re.compile("hh$"), lambda path, array: array.shape[0] == 1, "head.*"], [PATHS[0], PATHS[3], PATHS[5]]),
        ({"head.*"}, ["head.weight"]),
        ("weight", None),  # a glob matches the whole path
        ("ENCODER.*", None),
        ("", None),
    ],
)
def test_pick(where, picked):
    if picked is None:
        with pytest.raises(ValueError, match="where"):
            pick(where, ARRAYS)
    else:
        assert pick(where, ARRAYS) == set(picked)


def test_a_path_with_brackets_matches_itself():
    """A dict key may hold characters that mean something in a glob."""
    arrays = {"block[0].w": jnp.ones((2, 2)), "block0.w": jnp.ones((2, 2))}
    assert pick("block[0].w", arrays) == set(arrays)


def test_a_generator_of_patterns_serves_more_than_once():
    patterns = as_patterns(p for p in ("head.*", "decoder.*"))
    assert pick(patterns, ARRAYS) == pick(patterns, ARRAYS) == set(PATHS[3:])
    assert hash(patterns) is not None


@pytest.mark.parametrize(
    "where, nearest",
    [
        ("haed.weight", "head.weight"),
        ("encoder.2.weight", "encoder.0.weight"),
        ("decoder.weights_ih", "decoder.weight_ih"),
        (["head.*", "decodre.weight_hh"], "decoder.weight_hh"),  # every pattern of a list has to match
        (re.compile(r"decoder\.weight_xh"), "decoder.weight_hh"),
    ],
)
def test_no_match_lists_the_nearest_paths(where, nearest):
    with pytest.raises(ValueError) as caught:
        pick(where, ARRAYS, "sparsify(where=...)")
    message = str(caught.value)
    shown = where[-1] if isinstance(where, list) else getattr(where, "pattern", where)
    assert "`sparsify(where=...)`" in message
    assert repr(shown) in message
    assert nearest in message.split("Nearest:")[1]


def test_a_callable_without_match_is_an_error():
    with pytest.raises(ValueError, match="where"):
        pick(lambda path, array: False, ARRAYS)


@pytest.mark.own_message
@pytest.mark.parametrize("where", [3, [3], ["*", None], b"head.weight"])
def test_what_is_no_pattern(where):
    with pytest.raises(ValueError, match="glob.*regular expression.*callable"):
        as_patterns(where)
    if isinstance(where, bytes):  # shown whole, not the number that its first byte is
        with pytest.raises(ValueError, match=r"Got b'head.weight'"):
            as_patterns(where)
    with pytest.raises(ValueError, match="glob.*regular expression.*callable"):
        eqsparse.MagnitudePruning(distribution=0.5, where=where)


def test_first_pattern_counts():
    mapping = PatternMap({"encoder.0.*": 1, "encoder.*": 2, re.compile("head"): 3})
    assert mapping.lookup(ARRAYS, "overrides") == {
        "encoder.0.weight": 1, "encoder.1.weight": 2, "encoder.10.weight": 2, "head.weight": 3,
    }  # fmt: skip
    assert PatternMap(None).lookup(ARRAYS, "overrides") == {}


def test_a_pattern_behind_another_still_has_to_match():
    with pytest.raises(ValueError, match=r"overrides.*'tail\.\*'"):
        PatternMap({"encoder.*": 1, "tail.*": 2}).lookup(ARRAYS, "overrides")


@pytest.mark.parametrize(
    "overrides, want",
    [
        (None, {"encoder.0": 0.5, "encoder.1": 0.5, "head.kernel": 0.5}),
        ({"encoder.*": 0.25}, {"encoder.0": 0.25, "encoder.1": 0.25, "head.kernel": 0.5}),
        ({"head.kernel": None}, {"encoder.0": 0.5, "encoder.1": 0.5, "head.kernel": None}),
        (
            {re.compile("1$"): 0.75, "*": 0.0},
            {"encoder.0": 0.0, "encoder.1": 0.75, "head.kernel": 0.0, "head.bias": 0.0},
        ),
        ({lambda path, array: array.shape == (2, 4): 1.0}, {"encoder.0": 0.5, "encoder.1": 0.5, "head.kernel": 1.0}),
    ],
)
@pytest.mark.parametrize("distribution", [eqsparse.Uniform, eqsparse.PerPath])
def test_overrides(distribution, overrides, want):
    """An override wins over the default choice of sites: `*` reaches the bias too."""
    made = (
        eqsparse.Uniform(0.5, overrides=overrides)
        if distribution is eqsparse.Uniform
        else eqsparse.PerPath(overrides or {}, default=0.5)
    )
    assert made.targets(TREE) == want


@pytest.mark.parametrize(
    "make",
    [
        lambda overrides: eqsparse.Uniform(0.5, overrides),
        lambda overrides: eqsparse.ERK(0.5, overrides),
        lambda overrides: eqsparse.Global(0.5, overrides=overrides),
        lambda overrides: eqsparse.PerPath(overrides),
    ],
    ids=["Uniform", "ERK", "Global", "PerPath"],
)
def test_misspelt_override(make):
    """PREDECESSOR row 15: a misspelt override is ignored in silence."""
    pruner = eqsparse.MagnitudePruning(distribution=make({"head.kernle": 0.1}))
    with pytest.raises(ValueError, match=r"'head\.kernle'.*Nearest.*head\.kernel"):
        pruner.prune(TREE)
    with pytest.raises(ValueError, match=r"'head\.kernle'.*Nearest.*head\.kernel"):
        pruner.distribution.targets(TREE)


@pytest.mark.parametrize(
    "make",
    [
        lambda overrides: eqsparse.Uniform(0.5, overrides),
        lambda overrides: eqsparse.ERK(0.5, overrides),
        lambda overrides: eqsparse.Global(0.5, overrides=overrides),
        lambda overrides: eqsparse.PerPath(overrides, default=0.5),
    ],
    ids=["Uniform", "ERK", "Global", "PerPath"],
)
def test_override_of_a_leaf_that_is_not_pruned_by_default(make):
    """PREDECESSOR row 15: an override of a filtered-out leaf is honoured by uniform and not by ERK."""
    tree = {"w": jnp.arange(1.0, 17.0).reshape(4, 4), "bias": jnp.asarray([4.0, 1.0, 3.0, 2.0])}
    pruned = eqsparse.MagnitudePruning(distribution=make({"bias": 0.5})).prune(tree)
    assert pruned["bias"].tolist() == [4.0, 0.0, 3.0, 0.0]
    assert int((pruned["w"] != 0).sum()) == 8
    untouched = eqsparse.MagnitudePruning(distribution=make({"w": 0.5})).prune(tree)
    assert untouched["bias"].tolist() == [4.0, 1.0, 3.0, 2.0]
