"""Models and PyTrees read into sites: paths, cores, stacks; and written back."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._sites import leaves_by_path, map_layers, read, replace_fields, weights_of, write

KEY = jax.random.key(0)

# Layer, its sites: field → (core shape, contraction axis).
LAYERS = {
    "Linear": (lambda key: eqx.nn.Linear(6, 5, key=key), {"weight": ((5, 6), 1)}),
    "Conv": (lambda key: eqx.nn.Conv(2, 4, 6, 3, groups=2, key=key), {"weight": ((6, 2, 3, 3), 1)}),
    "Conv1d": (lambda key: eqx.nn.Conv1d(3, 4, 5, key=key), {"weight": ((4, 3, 5), 1)}),
    "Conv2d": (lambda key: eqx.nn.Conv2d(3, 4, 2, key=key), {"weight": ((4, 3, 2, 2), 1)}),
    "Conv3d": (lambda key: eqx.nn.Conv3d(3, 4, 2, key=key), {"weight": ((4, 3, 2, 2, 2), 1)}),
    "ConvTranspose": (lambda key: eqx.nn.ConvTranspose(1, 3, 4, 5, key=key), {"weight": ((4, 3, 5), 1)}),
    "ConvTranspose1d": (lambda key: eqx.nn.ConvTranspose1d(3, 4, 5, key=key), {"weight": ((4, 3, 5), 1)}),
    "ConvTranspose2d": (lambda key: eqx.nn.ConvTranspose2d(3, 4, 2, key=key), {"weight": ((4, 3, 2, 2), 1)}),
    "ConvTranspose3d": (lambda key: eqx.nn.ConvTranspose3d(3, 4, 2, key=key), {"weight": ((4, 3, 2, 2, 2), 1)}),
    "Embedding": (lambda key: eqx.nn.Embedding(7, 5, key=key), {"weight": ((7, 5), 1)}),
    "GRUCell": (lambda key: eqx.nn.GRUCell(4, 3, key=key), {"weight_hh": ((9, 3), 1), "weight_ih": ((9, 4), 1)}),
    "LSTMCell": (lambda key: eqx.nn.LSTMCell(4, 3, key=key), {"weight_hh": ((12, 3), 1), "weight_ih": ((12, 4), 1)}),
}


STACKS = [(name, stack) for name in LAYERS for stack in ((), (2,))] + [("Linear", (2, 3))]


@pytest.mark.parametrize("name, stack", STACKS)
def test_layers(name, stack):
    """PREDECESSOR row 22: axes before the core are a stack, no fan; biases are no sites, stacked or not."""
    make, fields = LAYERS[name]
    keys = jax.random.split(KEY, stack)
    for _ in stack:
        make = eqx.filter_vmap(make)
    layer = make(keys)
    for tree, path in ((layer, ""), ({"a": [layer]}, "a.0.")):
        plain, masked = read(tree), read(eqsparse.sparsify(tree, packed=True))
        assert sorted(plain) == sorted(masked) == [path + field for field in sorted(fields)]
        for field, (core, contraction) in fields.items():
            for sites in (plain, masked):
                site = sites[path + field]
                assert (site.core, site.stack, site.contraction_axis) == (core, stack, contraction)
                assert (site.slice_size, site.slices) == (np.prod(core), np.prod(stack, dtype=int))
                assert site.default
                np.testing.assert_array_equal(site.weight, getattr(layer, field))
            assert plain[path + field].mask is None
            assert masked[path + field].mask.shape == (*stack, *core)


def test_paths_of_composite_layers():
    class Net(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        mlp: eqx.nn.MLP
        norm: eqx.nn.LayerNorm
        cells: dict
        act: object = jax.nn.relu

    net = Net(
        eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=KEY),
        eqx.nn.MLP("scalar", 4, 8, 2, key=KEY),
        eqx.nn.LayerNorm((4, 4)),  # rank 2, but no layer that can be masked
        {"b": eqx.nn.Sequential([eqx.nn.Lambda(jnp.sin), eqx.nn.Linear(2, 2, key=KEY)])},
    )
    want = [
        "attention.query_proj.weight", "attention.key_proj.weight", "attention.value_proj.weight",
        "attention.output_proj.weight", "mlp.layers.0.weight", "mlp.layers.1.weight", "mlp.layers.2.weight",
        "cells.b.layers.1.weight",
    ]  # fmt: skip
    assert list(read(net)) == want
    assert list(read(eqsparse.sparsify(net))) == want


def test_integer_keys_tuples_and_named_tuples():
    Pair = collections.namedtuple("Pair", "left right")
    linear = eqx.nn.Linear(2, 2, key=KEY)
    tree = ({7: linear}, Pair(linear, [None, linear]))
    assert list(read(tree)) == ["0.7.weight", "1.left.weight", "1.right.1.weight"]
    assert list(read(eqsparse.sparsify(tree))) == list(read(tree))


def test_named_fields_of_a_module():
    class Bilinear(eqx.Module):
        w: jax.Array
        v: jax.Array
        inner: eqx.nn.Linear

    module = Bilinear(jnp.ones((2, 3, 4)), jnp.ones(5), eqx.nn.Linear(2, 2, key=KEY))
    assert list(read([module])) == ["0.inner.weight"]  # raw arrays of a module are sites by `Masked` only
    sites = read(eqsparse.sparsify([eqsparse.Masked(module, "w", "v")]))
    assert sorted(sites) == ["0.inner.weight", "0.v", "0.w"]
    assert (sites["0.w"].core, sites["0.w"].contraction_axis) == ((2, 3, 4), 2)
    assert (sites["0.v"].core, sites["0.v"].contraction_axis) == ((5,), 0)


def test_plain_pytrees():
    tree = {
        "l0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "many": [jnp.ones((2, 2), jnp.bfloat16), (np.ones((2, 3, 4), np.float32), None)],
        "ids": jnp.ones((3, 3), jnp.int32),
        "mask": np.ones((3, 3), bool),
        "key": jax.random.key(0),
        "scalar": 3.0,
        "name": "text",
    }
    sites = read(tree)
    assert {path for path, site in sites.items() if site.default} == {"l0.kernel", "many.0", "many.1.0"}
    assert {path for path, site in sites.items() if not site.default} == {"l0.bias"}
    assert sites["many.1.0"].core == (2, 3, 4)
    assert sites["many.1.0"].stack == ()
    assert sites["many.1.0"].contraction_axis == 2  # the last
    assert list(read(jnp.ones((2, 2)))) == [""]
    assert read({}) == read([]) == read(None) == {}


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b": jnp.ones((2, 2))}, "a.b": jnp.ones((2, 2))},
        {"a": [jnp.ones((2, 2))], "a.0": jnp.ones((2, 2))},
        {"a": {"b": eqx.nn.Linear(2, 2, key=KEY)}, "a.b": eqx.nn.Linear(2, 2, key=KEY)},
        {"a": {"b": eqsparse.MaskedLinear(2, 2, key=KEY)}, "a.b": eqsparse.MaskedLinear(2, 2, key=KEY)},
        {"a": {"b": jnp.ones((2, 2))}, "a.b": jnp.ones(2)},
        {"a": {"b": jnp.ones((2, 2))}, "a.b": jnp.ones((2, 2), jnp.int32)},
    ],
    ids=["dicts", "list", "layers", "masked", "rank 1", "integers"],
)
def test_shared_paths(tree):
    """Two leaves that would share a path are an error, also where one of them is no site."""
    with pytest.raises(ValueError, match=r"unique.*`a\.(b|0)"):
        read(tree)
    with pytest.raises(ValueError, match=r"unique.*`a\.(b|0)"):
        eqsparse.MagnitudePruning(distribution=0.5).prune(tree)


def test_sites_of_gradients():
    """What stands at the places of the sites, read off a tree of gradients of a masked model."""
    model = eqsparse.sparsify(eqx.nn.MLP(3, 2, 4, 1, key=KEY))
    g = eqx.filter_grad(lambda m, x: jnp.sum(m(x)))(model, jnp.ones(3))
    found = weights_of(g)
    assert list(found) == ["layers.0.weight", "layers.1.weight"]
    np.testing.assert_array_equal(found["layers.1.weight"], g.layers[1].weight)


def test_write_changes_what_is_named_and_nothing_else():
    model = eqsparse.sparsify(eqx.nn.MLP(3, 2, 4, 1, key=KEY))
    mask = eqsparse.Mask(jnp.zeros((2, 4), bool))
    new = write(model, {"layers.0.weight": jnp.zeros((4, 3))}, {"layers.1.weight": mask})
    assert jax.tree.structure(new) == jax.tree.structure(model)
    assert not new.layers[0].weight.any()
    assert new.layers[0].masks["weight"].nnz() == 12
    assert new.layers[1].weight is model.layers[1].weight
    assert new.layers[1].masks["weight"].nnz() == 0
    assert new.layers[0].bias is model.layers[0].bias
    tree = {"a": [jnp.ones((2, 2)), 3, "x"], "b": None}
    assert write(tree, {"a.0": 7}) == {"a": [7, 3, "x"], "b": None}


def test_map_layers_goes_innermost_first_and_keeps_the_tree():
    class Outer(eqx.Module):
        w: jax.Array
        inner: eqx.nn.Linear

    model = [eqsparse.Masked(Outer(jnp.ones((2, 2)), eqx.nn.Linear(2, 2, key=KEY)), "w"), eqx.nn.Linear(2, 3, key=KEY)]
    seen = []
    same = map_layers(model, lambda path, layer: (seen.append((path, type(layer).__name__)), layer)[1])
    assert seen == [("0.inner", "Linear"), ("0", "Masked"), ("1", "Linear")]
    assert eqx.tree_equal(same, model)


def test_replace_fields_takes_anything():
    layer = eqx.nn.Linear(2, 2, use_bias=False, key=KEY)
    changed = replace_fields(layer, {"bias": "b", "weight": None})
    assert changed.bias == "b" and changed.weight is None and changed.in_features == 2
    assert layer.bias is None


def test_leaves_by_path():
    assert [p for p, _ in leaves_by_path({"a": [1, {"b": 2}], "c": eqx.nn.Linear(1, 1, key=KEY)})] == [
        "a.0", "a.1.b", "c.weight", "c.bias",
    ]  # fmt: skip
