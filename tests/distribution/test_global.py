"""`Global`: one competition for all, with floors; the total is exact."""

import math
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse import Block, Channel, Global, GlobalMagnitudePruning, MagnitudePruning, Polynomial, Unstructured
from eqsparse._distribution.normalisers import by_what_is_larger


def wanted(n, sparsity):
    return (n * (1 - Fraction(round(sparsity * 10**7), 10**7)) + Fraction(1, 2)).__floor__()


def prune(tree, distribution, **kwargs):
    return GlobalMagnitudePruning(distribution=distribution, **kwargs).prune(tree)


def nonzero(tree):
    return [np.asarray(leaf) != 0 for leaf in jax.tree.leaves(tree)]


def expected(arrays, sparsity, normalise, floor):
    """By a stable sort of all magnitudes: floors of each array first, then the rest."""
    scores = [np.abs(np.asarray(a).astype(np.float64)) for a in arrays]
    if normalise:
        scores = [s / np.linalg.norm(s.ravel()) for s in scores]
    flat = np.concatenate([s.ravel() for s in scores])
    k, order = wanted(flat.size, sparsity), np.argsort(-flat, kind="stable")
    ends = np.cumsum([s.size for s in scores])[:-1]
    best = np.zeros(flat.size, bool)
    best[order[:k]] = True
    floors = [min(floor, s.size) for s in scores]
    if any(part.sum() < f for part, f in zip(np.split(best, ends), floors, strict=True)):
        seeds = np.zeros(flat.size, bool)
        for i, (s, f) in enumerate(zip(scores, floors, strict=True)):
            start = ends[i - 1] if i else 0
            seeds[start + np.argsort(-s.ravel(), kind="stable")[:f]] = True
        order = [*np.flatnonzero(seeds), *(i for i in order if not seeds[i])]
        best = np.zeros(flat.size, bool)
        best[order[: max(k, int(seeds.sum()))]] = True
    return [part.reshape(s.shape) for part, s in zip(np.split(best, ends), scores, strict=True)]


def draw(scales=(1.0, 0.01), dtype=jnp.float32):
    """Two arrays, as most tests take: one program then serves them all. A third scale draws a third."""
    rng = np.random.default_rng(0)
    shapes = [(8, 9), (5, 2, 3, 3), (20, 3)][: len(scales)]
    return [jnp.asarray(s * rng.standard_normal(z), dtype) for s, z in zip(scales, shapes, strict=True)]


@pytest.mark.parametrize("normalise, floor", [(True, 1), (False, 0), (True, 7)])
def test_all_weights_compete(normalise, floor):
    arrays = draw()
    total = sum(a.size for a in arrays)
    for sparsity in (0.0, 0.3, 0.9, 0.97):
        found = nonzero(prune(arrays, Global(sparsity, normalise, floor=floor)))
        for mask, other in zip(found, expected(arrays, sparsity, normalise, floor), strict=True):
            np.testing.assert_array_equal(mask, other)
        assert sum(int(m.sum()) for m in found) == max(wanted(total, sparsity), 2 * floor)


def test_scores_are_divided_by_the_norm_of_the_layer():
    """By hand: norms 5 and 13, so 3/5 and 4/5 against 5/13 and 12/13; 12/13 is the largest, then 4/5."""
    arrays = [jnp.asarray([[3.0, 4.0]]), jnp.asarray([[5.0, 12.0]])]
    jitted = eqx.filter_jit(lambda s, normalise: prune(arrays, Global(s, normalise, floor=0)))
    kept = lambda s, normalise: [m.ravel().tolist() for m in nonzero(jitted(jnp.float32(s), normalise))]
    assert kept(0.75, True) == [[False, False], [False, True]]
    assert kept(0.5, True) == [[False, True], [False, True]]
    assert kept(0.25, True) == [[True, True], [False, True]]
    assert kept(0.25, False) == [[False, True], [True, True]]
    assert kept(0.5, False) == [[False, False], [True, True]]


@pytest.mark.parametrize("kind", ["dict", "list", "tuple", "array", "module", "nested"])
def test_containers_of_any_kind(kind, getkey):
    """PREDECESSOR row 11: lists, tuples, modules and single arrays fail there."""
    a, b = draw()
    if kind == "module":
        a, b = eqx.nn.Linear(9, 8, key=getkey()), eqx.nn.Conv1d(3, 5, 2, key=getkey())
        pruned = prune([a, b], Global(0.8))
        masks = [np.asarray(m) for m in eqsparse.get_masks(pruned).values()]
        layers = [a.weight, b.weight]
    else:
        trees = {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (a, b), "array": a, "nested": {"x": [a, (b,)]}}
        pruned = prune(trees[kind], Global(0.8))
        assert jax.tree.structure(pruned) == jax.tree.structure(trees[kind])
        masks, layers = nonzero(pruned), [a] if kind == "array" else [a, b]
    for mask, other in zip(masks, expected(layers, 0.8, True, 1), strict=True):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.parametrize("floor", [1, 20])
def test_no_layer_collapses(floor):
    """PREDECESSOR row 11: 6 of 4,096 are kept there. The floor is filled first, the total stays."""
    arrays = draw((1.0, 1e-9))
    found = nonzero(prune(arrays, Global(0.7, normalise=False, floor=floor)))
    assert sum(int(m.sum()) for m in found) == wanted(162, 0.7)
    assert int(found[1].sum()) == floor
    for mask, other in zip(found, expected(arrays, 0.7, False, floor), strict=True):
        np.testing.assert_array_equal(mask, other)


def test_floors_larger_than_the_budget_or_the_layer():
    arrays = draw()
    found = nonzero(prune(arrays, Global(0.99, floor=7)))  # 2 asked for, 14 in the floors
    assert [int(m.sum()) for m in found] == [7, 7]
    found = nonzero(prune(arrays, Global(0.1, floor=10**6)))
    assert [m.all() for m in found] == [True, True]


def test_sparsity_one_empties_all_whatever_the_floor():
    assert not any(m.any() for m in nonzero(prune(draw(), Global(1.0, floor=7))))


@pytest.mark.parametrize("floor, groups", [(16, 1), (17, 2)])
def test_floors_are_counted_in_weights_whatever_the_structure(floor, groups):
    """PREDECESSOR row 11: whole groups where a group holds more than the floor, no more of them than it takes.

    Tiles of 16 weights, and rows of 16: 128 weights are asked for, and `a` takes what the floors leave.
    """
    tree = {"a": 1 + jnp.arange(128.0).reshape(16, 8), "b": jnp.full((16, 8), 1e-6), "c": jnp.full((8, 16), 1e-6)}
    structure = {"[ab]": Block((4, 4)), "c": Channel(0)}
    found = nonzero(prune(tree, Global(2 / 3, normalise=False, floor=floor), structure=structure))
    assert [int(m.sum()) for m in found] == [128 - 32 * groups, 16 * groups, 16 * groups]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("normalise", [True, False])
def test_any_dtype(dtype, normalise):
    arrays = draw((1.0, 1.0), dtype)
    found = nonzero(prune(arrays, Global(0.6, normalise)))
    assert sum(int(m.sum()) for m in found) == wanted(162, 0.6)
    if not normalise:
        for mask, other in zip(found, expected(arrays, 0.6, False, 1), strict=True):
            np.testing.assert_array_equal(mask, other)


def test_layers_of_different_dtypes_compete_by_value():
    arrays = [jnp.asarray([[1.0, 4.0, 2.5]], jnp.bfloat16), jnp.asarray([[3.0, 2.0, 9.0]], jnp.float32)]
    found = nonzero(prune(arrays, Global(0.5, normalise=False)))
    assert [m.ravel().tolist() for m in found] == [[False, True, False], [True, False, True]]
    with jax.enable_x64(True):
        arrays = [jnp.asarray([[1.0, 4.0, 2.5]], jnp.float32), jnp.asarray([[3.0, 2.0, 9.0]], jnp.float64)]
        found = nonzero(prune(arrays, Global(0.5, normalise=False)))
        assert [m.ravel().tolist() for m in found] == [[False, True, False], [True, False, True]]


def test_ties_go_to_the_earlier_array_and_the_lower_index():
    """PREDECESSOR row 2. Twelve entries of each array are not zero, so norms are equal, too."""
    a, b = (np.zeros(x.shape, np.float32) for x in draw())
    a.flat[5:65:5], b.flat[5:65:5] = 2.0, -2.0
    for normalise in (True, False):
        found = nonzero(prune([jnp.asarray(a), jnp.asarray(b)], Global(1 - 17 / 162, normalise)))
        np.testing.assert_array_equal(found[0], a != 0)
        np.testing.assert_array_equal(np.flatnonzero(found[1]), [5, 10, 15, 20, 25])


def test_extreme_weights_do_not_upset_the_norms():
    """Squares would overflow or vanish in float32; infinities and NaNs are no part of a norm."""
    a, b = draw((1.0, 1.0))
    reference = nonzero(prune([a, b], Global(0.8)))
    largest = 2.0 ** (127 - math.ceil(math.log2(float(jnp.abs(a).max()))))
    for scale in (largest, 2.0**100, 2.0**-100):
        for mask, other in zip(nonzero(prune([a * scale, b], Global(0.8))), reference, strict=True):
            np.testing.assert_array_equal(mask, other)
    hurt = a.at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)
    masks = nonzero(prune([hurt, b], Global(0.8)))
    assert sum(int(m.sum()) for m in masks) == wanted(162, 0.8)
    assert masks[0][1, 1] and not masks[0][0, 0]
    masks = nonzero(prune([jnp.zeros_like(a), b], Global(0.3, floor=1)))
    assert masks[1].all()  # the zeros, of norm 0, go first


def test_lamp_does_not_depend_on_scale():
    """Up to the largest numbers that float32 has."""
    scores = jnp.abs(draw((1.0, 1.0))[0])
    scores = scores / scores.max()
    reference = by_what_is_larger(scores, scores.ndim)
    for scale in (1.9 * 2.0**127, 2.0**100, 2.0**-100):
        np.testing.assert_allclose(by_what_is_larger(scores * scale, scores.ndim), reference, rtol=1e-5)


def test_each_layer_of_a_stack_has_its_own_norm_and_floor(getkey):
    """PREDECESSOR rows 11 and 22: a stack of three layers is as three layers."""
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(6, 5, key=k))(jax.random.split(getkey(), 3))
    scale = jnp.asarray([1.0, 1e-8, 100.0])[:, None, None]
    stack = eqx.tree_at(lambda m: m.weight, stack, stack.weight * scale)
    for normalise in (True, False):
        masks = prune([stack], Global(0.8, normalise, floor=2))
        (found,) = eqsparse.get_masks(masks).values()
        for mask, other in zip(np.asarray(found), expected(list(stack.weight), 0.8, normalise, 2), strict=True):
            np.testing.assert_array_equal(mask, other)


# Overrides.


def test_overridden_sites_do_not_compete():
    """PREDECESSOR row 14."""
    a, b, c = draw((1.0, 0.01, 30.0))
    distribution = Global(0.8, overrides={"b": 0.5, "c": None}, normalise=False)
    pruned = prune({"a": a, "b": b, "c": c}, distribution)
    np.testing.assert_array_equal(np.asarray(pruned["c"]), np.asarray(c))
    for name, sparsity in (("a", 0.8), ("b", 0.5)):
        (mask,) = expected([{"a": a, "b": b}[name]], sparsity, False, 1)
        np.testing.assert_array_equal(np.asarray(pruned[name]) != 0, mask)
    everything = prune({"a": a, "b": b}, Global(0.8, overrides={"*": 0.5}))
    assert [int(m.sum()) for m in nonzero(everything)] == [36, 45]


def test_overridden_sites_follow_the_schedule(getkey):
    """PREDECESSOR row 14: the overridden layers are masked at step 0 there, from signed values."""
    model = [eqx.nn.Linear(10, 10, key=getkey()) for _ in range(3)]
    pruner = GlobalMagnitudePruning(
        distribution=Global(0.8, overrides={"1.*": 0.5, "2.*": None}), schedule=Polynomial(0, 4, 1, power=1)
    )
    model, state = pruner.init(model)
    before = model[1].weight
    kept = []
    for _ in range(6):
        model, state = pruner.step(model, None, state)
        kept.append([int(mask.sum()) for mask in eqsparse.get_masks(model).values()])
    assert [counts[0] for counts in kept] == [100, 80, 60, 40, 20, 20]
    assert [counts[1] for counts in kept] == [100, 88, 75, 63, 50, 50]
    assert all(counts[2:] in ([], [100]) for counts in kept)
    (mask,) = expected([before], 0.5, False, 1)
    np.testing.assert_array_equal(np.asarray(eqsparse.get_masks(model)["1.weight"]), mask)


# Structures.


def by_group(arrays, groups, sparsity):
    """Groups of all arrays by falling average, as many as hold a number of weights nearest to the target."""
    means = [np.abs(np.asarray(a))[g].mean(dtype=np.float64) for a, gs in zip(arrays, groups, strict=True) for g in gs]
    sizes = [np.asarray(a)[g].size for a, gs in zip(arrays, groups, strict=True) for g in gs]
    order = np.argsort(-np.asarray(means), kind="stable")
    off = np.abs(np.concatenate([[0], np.cumsum(np.asarray(sizes)[order])]) - wanted(sum(sizes), sparsity))
    held = set(order[: int(np.flatnonzero(off == off.min())[-1])].tolist())
    masks, i = [], 0
    for array, gs in zip(arrays, groups, strict=True):
        mask = np.zeros(array.shape, bool)
        for g in gs:
            mask[g] = i in held
            i += 1
        masks.append(mask)
    return masks


def tiles(shape, a, b):
    return [(slice(i, i + a), slice(j, j + b)) for i in range(0, shape[0], a) for j in range(0, shape[1], b)]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.75])
def test_groups_of_any_structure_compete(sparsity):
    """PREDECESSOR row 11: unstructured only there. Tiles (with small ones at the edges), rows and single weights."""
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((8, 8), (7, 5), (6, 4), (3, 5))]
    structure = {"[01]": Block((4, 3)), "2": Channel(0)}
    groups = [
        tiles((8, 8), 4, 3),
        tiles((7, 5), 4, 3),
        [(slice(i, i + 1), slice(None)) for i in range(6)],
        tiles((3, 5), 1, 1),
    ]
    found = nonzero(prune(arrays, Global(sparsity, normalise=False, floor=0), structure=structure))
    for mask, other in zip(found, by_group(arrays, groups, sparsity), strict=True):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.own_message
@pytest.mark.parametrize("structure", [Unstructured("row"), eqsparse.NM(2, 4)])
def test_structures_that_compete_within_a_part_of_a_site(structure):
    tree = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8))}
    with pytest.raises(ValueError, match=r"`distribution` must give each site its own share.*at `a`"):
        prune(tree, Global(0.5), structure=structure)
    mixed = MagnitudePruning(distribution=Global(0.5, overrides={"a": 0.5}), structure={"a": structure})
    assert [int(m.sum()) for m in nonzero(mixed.prune(tree))] == [16, 16]
