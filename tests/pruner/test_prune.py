"""`prune`: one shot, on models and on arrays in any PyTree."""

import equinox as eqx
import gradual_retold as told
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(8, 8)).astype(np.float32)
V = RNG.normal(size=(4, 8)).astype(np.float32)
B = RNG.normal(size=8).astype(np.float32)


def zeroed(w, density=0.5):
    return np.where(told.unstructured(np.abs(w), density), w, 0)


TREES = {
    "array": (lambda: jnp.asarray(W), lambda: zeroed(W)),
    "numpy": (lambda: W.copy(), lambda: zeroed(W)),
    "list": (lambda: [jnp.asarray(W), jnp.asarray(B)], lambda: [zeroed(W), B]),
    "tuple": (lambda: (jnp.asarray(W), None, jnp.asarray(V)), lambda: (zeroed(W), None, zeroed(V))),
    "dict": (
        lambda: {"l0": {"kernel": jnp.asarray(W), "bias": jnp.asarray(B)}, "l1": [jnp.asarray(V)], "name": "x", "n": 3},
        lambda: {"l0": {"kernel": zeroed(W), "bias": B}, "l1": [zeroed(V)], "name": "x", "n": 3},
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_plain_pytrees(name):
    """PREDECESSOR row 11: lists, tuples and single arrays fail. They come back as they are, with zeros."""
    tree, want = (make() for make in TREES[name])
    found = eqsparse.MagnitudePruning(distribution=0.5).prune(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not eqx.is_array(b) or a.dtype == b.dtype
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(TREES[name][0]()), strict=True):
        np.testing.assert_array_equal(a, b)  # what was given is as it was


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("numpy", [True, False], ids=["numpy", "jax"])
def test_weights_and_dtypes_are_otherwise_untouched(dtype, numpy):
    if dtype is np.float64 and not numpy:
        pytest.skip("64-bit arrays of JAX's own are made under x64 only")
    w = np.random.default_rng(1).normal(size=(8, 8)).astype(dtype)
    found = eqsparse.MagnitudePruning(distribution=0.25).prune([w if numpy else jnp.asarray(w)])[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(found), np.where(told.unstructured(np.abs(w), 0.75), w, np.zeros((), dtype))
    )


STRUCTURES = {
    "unstructured": (eqsparse.Unstructured(), told.unstructured),
    "rows": (eqsparse.Unstructured("row"), told.rows),
    "2:4": (eqsparse.NM(2, 4), told.two_of_four),
    "blocks": (eqsparse.Block((4, 4)), told.blocks),
    "channels": (eqsparse.Channel(0), told.channels),
}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name, dtype):
    """PREDECESSOR row 8: blocks with bfloat16 are an error. Multiples of 1/32 tie, and average exactly."""
    structure, keep = STRUCTURES[name]
    w = (np.random.default_rng(2).integers(-90, 91, (8, 16)) / 32).astype(dtype)
    found = eqsparse.MagnitudePruning(distribution=0.5, structure=structure).prune({"w": jnp.asarray(w)})["w"]
    want = np.where(keep(np.abs(w.astype(np.float32)), 0.5), w, np.zeros((), dtype))
    np.testing.assert_array_equal(found, want)


def two_of_four(sparsity=0.5, n=2, **common):
    return eqsparse.MagnitudePruning(distribution=sparsity, structure=eqsparse.NM(n, 4), **common)


def test_a_model_comes_back_masked():
    net = eqx.nn.MLP(8, 4, 8, 1, key=KEY)
    model = two_of_four(packed=True).prune(net)
    for i in range(2):
        layer, was = model.layers[i], np.asarray(net.layers[i].weight)
        mask = told.two_of_four(np.abs(was), 0.5)
        assert type(layer) is eqsparse.MaskedLinear and layer.masks["weight"].packed
        np.testing.assert_array_equal(layer.masks["weight"].dense(), mask)
        np.testing.assert_array_equal(layer.weight, np.where(mask, was, 0))  # zeros in the stored weight
        np.testing.assert_array_equal(layer.bias, net.layers[i].bias)
    # Further, on what is left; how masks are stored stays.
    again = two_of_four(0.75, 1, packed=False).prune(model)
    for i in range(2):
        was = np.abs(np.asarray(net.layers[i].weight))
        largest = was.reshape(-1, 4).argmax(1)
        mask = (np.arange(4) == largest[:, None]).reshape(was.shape)
        np.testing.assert_array_equal(again.layers[i].masks["weight"].dense(), mask)
        assert again.layers[i].masks["weight"].packed
    # Less than there is gone already: nothing comes back.
    assert eqx.tree_equal(two_of_four().prune(again), again)


def test_global():
    """One competition: the total is exact, and follows the scores over the layer's norm."""
    found = eqsparse.GlobalMagnitudePruning(distribution=0.6).prune({"a": jnp.asarray(W), "b": jnp.asarray(V * 100)})
    scores = np.concatenate([(np.abs(w) / np.linalg.norm(w)).ravel() for w in (W, V * 100)])
    mask = told.top(scores, told.counted(96, 0.4))
    np.testing.assert_array_equal(np.asarray(found["a"]).ravel() != 0, mask[:64])
    np.testing.assert_array_equal(np.asarray(found["b"]).ravel() != 0, mask[64:])
    raw = eqsparse.MagnitudePruning(distribution=eqsparse.Global(0.6, normalise=False))
    found = raw.prune([jnp.asarray(W), jnp.asarray(V * 100)])
    assert int((found[1] != 0).sum()) == 32 and int((found[0] != 0).sum()) == told.counted(96, 0.4) - 32


@pytest.mark.parametrize("structure", [eqsparse.Unstructured(), eqsparse.Channel(0), eqsparse.Block((2, 2))])
def test_global_leaves_no_layer_empty(structure):
    """PREDECESSOR row 11: global pruning takes unstructured only; a small layer can collapse."""
    tree = {"big": jnp.asarray(W) * 1000, "small": jnp.asarray(V) / 1000}
    distribution = eqsparse.Global(0.75, normalise=False, floor=1)
    found = eqsparse.MagnitudePruning(distribution=distribution, structure=structure).prune(tree)
    kept = {name: int((w != 0).sum()) for name, w in found.items()}
    group = {eqsparse.Unstructured: 1, eqsparse.Channel: 8, eqsparse.Block: 4}[type(structure)]
    assert kept == {"big": 24 - group, "small": group}


def test_gradients_by_path():
    """Gradients come as the model is: of a plain one, of a masked one, of a PyTree."""
    linear = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(8, 8, key=KEY), jnp.asarray(W))
    g = RNG.normal(size=(8, 8)).astype(np.float32)
    want = np.where(told.unstructured(np.abs(W * g), 0.5), W, 0)
    pruner = eqsparse.SaliencyPruning(distribution=0.5)
    of = lambda model: eqx.tree_at(lambda m: m.weight, eqx.filter(model, eqx.is_inexact_array), jnp.asarray(g))
    np.testing.assert_array_equal(pruner.prune({"w": jnp.asarray(W)}, grads={"w": jnp.asarray(g)})["w"], want)
    np.testing.assert_array_equal(pruner.prune(linear, grads=of(linear)).weight, want)
    masked = eqsparse.sparsify(linear)
    np.testing.assert_array_equal(pruner.prune(masked, grads=of(masked)).weight, want)


@pytest.mark.parametrize(
    "structure, width", [(eqsparse.Block((2, 2)), 2), (eqsparse.Block((2, 2), "max"), 2), (eqsparse.Channel(1), 1)]
)
def test_groups_that_are_there_in_part(structure, width):
    """Weights pruned one by one before: groups compete by what is left of them, and by lots as any others."""
    w = np.asarray([[1, 9, 5, 2]] * 2, np.float32).repeat(width, axis=1)
    before = np.ones(w.shape, bool)
    before[0, ::2] = False
    linear = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(w.shape[1], 2, key=KEY), jnp.asarray(w))
    layer = eqsparse.MaskedLinear.from_layer(linear, before)
    masked = lambda pruner: np.asarray(pruner.prune(layer).masks["weight"].dense())
    found = masked(eqsparse.MagnitudePruning(distribution=0.5, structure=structure))
    np.testing.assert_array_equal(found, before & (w >= 5))  # averages of 3/4 (or 1/2, for two) of 1, 9, 5, 2
    draw = lambda i: eqsparse.RandomPruning(distribution=0.5, structure=structure, key=jax.random.key(i))
    assert len({masked(draw(i)).tobytes() for i in range(4)}) > 1


def test_integers_are_not_pruned():
    """PREDECESSOR row 28: integer arrays of rank 2 are pruned too."""
    tree = {
        "w": jnp.asarray(W),
        "ids": jnp.arange(64).reshape(8, 8),
        "mask": jnp.ones((8, 8), bool),
        "n": np.arange(4).reshape(2, 2),
    }
    found = eqsparse.MagnitudePruning(distribution=0.5).prune(tree)
    for name in ("ids", "mask", "n"):
        np.testing.assert_array_equal(found[name], tree[name])
        assert found[name].dtype == tree[name].dtype
    np.testing.assert_array_equal(found["w"], zeroed(W))


def test_vectors_are_pruned_on_demand_only():
    """Rank 1 is dense by default, also if `where` says all; an override is heard."""
    tree = {"w": jnp.asarray(W), "b": jnp.asarray(B)}
    assert (eqsparse.MagnitudePruning(distribution=0.5, where="*").prune(tree)["b"] == B).all()
    found = eqsparse.MagnitudePruning(distribution=eqsparse.Uniform(0.5, {"b": 0.75})).prune(tree)
    np.testing.assert_array_equal(found["b"], np.where(told.top(np.abs(B), 2), B, 0))
    only = eqsparse.MagnitudePruning(distribution=eqsparse.Uniform(0.5, {"b": 0.75})).prune({"b": jnp.asarray(B)})
    np.testing.assert_array_equal(only["b"], found["b"])


def test_sites_that_stay_dense_need_no_structure():
    """PREDECESSOR row 9: a layer of sparsity 0 that does not divide raises, and takes the whole tree with it."""
    tree = {"even": jnp.asarray(W), "odd": jnp.ones((4, 6))}
    for dense in (None, 0.0):
        for distribution in (
            eqsparse.Uniform(0.5, overrides={"odd": dense}),
            eqsparse.PerPath({"even": 0.5}, default=dense),
        ):
            found = eqsparse.MagnitudePruning(distribution=distribution, structure=eqsparse.NM(2, 4)).prune(tree)
            assert (found["odd"] == 1).all()
            np.testing.assert_array_equal(found["even"], np.where(told.two_of_four(np.abs(W), 0.5), W, 0))
    dense = eqsparse.MagnitudePruning(distribution=0.0, structure=eqsparse.NM(2, 4)).prune(tree)
    assert (dense["odd"] == 1).all() and (dense["even"] == W).all()


def test_dense_sites_need_no_structure_in_training():
    """PREDECESSOR row 9, through `init` and `step`."""
    for dense in (None, 0.0):
        pruner = eqsparse.MagnitudePruning(
            distribution=eqsparse.Uniform(0.5, {"1.weight": dense}),
            structure=eqsparse.NM(2, 4),
            schedule=eqsparse.OneShot(0),
        )
        model, state = pruner.init([eqx.nn.Linear(8, 8, key=KEY), eqx.nn.Linear(6, 4, key=KEY)])
        model, state = pruner.step(model, None, state)
        assert [int(m.sum()) for m in eqsparse.get_masks(model).values()] == [32, 24]


@pytest.mark.parametrize("sparsity, k", [(0.0, 64), (1e-9, 64), (0.5, 32), (0.99, 1), (0.9999, 1), (1.0, 0)])
def test_the_ends(sparsity, k):
    """At least one weight stays unless the target is exactly 1."""
    assert int((eqsparse.MagnitudePruning(distribution=sparsity).prune(jnp.asarray(W)) != 0).sum()) == k


def test_inside_compiled_functions_and_ensembles():
    """In `jit`, and one for each member of a `vmap`."""
    pruner = two_of_four()
    want = lambda w: np.where(told.two_of_four(np.abs(w), 0.5), w, 0)
    np.testing.assert_array_equal(jax.jit(lambda tree: pruner.prune(tree))({"w": W})["w"], want(W))
    many = np.stack([W, 2 * W.T, V.repeat(2, 0)])
    found = jax.vmap(pruner.prune)(jnp.asarray(many))
    for i in range(3):
        np.testing.assert_array_equal(found[i], want(many[i]))


def test_empty_arrays():
    found = eqsparse.MagnitudePruning(distribution=0.5).prune({"none": jnp.zeros((0, 4)), "w": jnp.asarray(W)})
    assert found["none"].shape == (0, 4)
    np.testing.assert_array_equal(found["w"], zeroed(W))


def test_complex_weights_by_modulus():
    w = np.random.default_rng(3).normal(size=(4, 4, 2)).astype(np.float32) @ np.asarray([1, 1j], np.complex64)
    found = eqsparse.MagnitudePruning(distribution=0.5).prune(jnp.asarray(w))
    np.testing.assert_array_equal(found, np.where(told.top(np.abs(w), 8), w, 0))
