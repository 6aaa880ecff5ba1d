"""`sparsify` and `materialise`: the same model, masked, and back."""

import io
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)


class Net(eqx.Module):
    """One of everything, and raw parameters besides."""

    embed: eqx.nn.Embedding
    conv: eqx.nn.Conv1d
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    drop: eqx.nn.Dropout
    norm: eqx.nn.LayerNorm
    head: eqx.nn.MLP
    scale: jax.Array
    ids: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Embedding(11, 4, key=keys[0])
        self.conv = eqx.nn.Conv1d(4, 4, 3, padding=1, key=keys[1])
        self.attention = eqx.nn.MultiheadAttention(2, 4, dropout_p=0.5, key=keys[2])
        self.cell = eqx.nn.GRUCell(4, 4, key=keys[3])
        self.drop = eqx.nn.Dropout(0.5)
        self.norm = eqx.nn.LayerNorm(4)
        self.head = eqx.nn.MLP(4, "scalar", 8, 1, key=keys[4])
        self.scale = jnp.ones((4, 4))
        self.ids = jnp.arange(5)
        self.name = "net"

    def __call__(self, key=None):
        x = jax.vmap(self.embed)(self.ids)
        x = self.conv(x.T).T @ self.scale
        x = self.attention(x, x, x, key=key)
        x = jax.vmap(self.norm)(self.drop(x, key=key))
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(4), x)
        return self.head(h)


PATHS = [
    "embed.weight", "conv.weight", "attention.query_proj.weight", "attention.key_proj.weight",
    "attention.value_proj.weight", "attention.output_proj.weight", "cell.weight_hh", "cell.weight_ih",
    "head.layers.0.weight", "head.layers.1.weight",
]  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return Net(KEY)


def random_masks(model, seed=0):
    rng = np.random.default_rng(seed)
    return {path: rng.random(mask.shape) < 0.6 for path, mask in eqsparse.get_masks(model).items()}


def arrays(tree):
    return [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_same_outputs_and_back(net, packed):
    model = eqsparse.sparsify(net, packed=packed)
    assert list(eqsparse.get_masks(model)) == PATHS
    assert all(mask.all() for mask in eqsparse.get_masks(model).values())
    assert np.asarray(model(KEY)).tobytes() == np.asarray(net(KEY)).tobytes()  # the same dropout, too
    assert eqx.tree_equal(eqsparse.materialise(model), net)
    dtypes = {x.dtype for x in arrays(model)} - {x.dtype for x in arrays(net)}
    assert dtypes == {jnp.dtype("uint8" if packed else "bool")}


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_materialise_writes_zeros(net, packed):
    model = eqsparse.sparsify(net, packed=packed)
    masks = random_masks(model)
    model = eqsparse.set_masks(model, masks)
    plain = eqsparse.materialise(model)
    assert jax.tree.structure(plain) == jax.tree.structure(net)
    for path, mask in masks.items():
        *places, field = path.split(".")
        layer, was = plain, net
        for place in places:
            layer, was = ((x[int(place)] if place.isdigit() else getattr(x, place)) for x in (layer, was))
        want = np.where(mask, np.asarray(getattr(was, field)), np.float32(0))
        assert np.asarray(getattr(layer, field)).tobytes() == want.tobytes()
    assert np.asarray(model(KEY)).tobytes() == np.asarray(plain(KEY)).tobytes()
    assert eqx.tree_equal(eqsparse.materialise(plain), plain)  # nothing left to do


@pytest.mark.parametrize(
    "where, paths",
    [
        (None, PATHS),
        ("*", PATHS),
        ("attention.*", PATHS[2:6]),
        (["embed.*", "head.layers.1.*"], [PATHS[0], PATHS[9]]),
        (re.compile(r"weight_[hi]h|embed"), [PATHS[0], PATHS[6], PATHS[7]]),
        ("cell.weight_hh", ["cell.weight_hh"]),
        (lambda path, array: array.ndim == 3, ["conv.weight"]),
        (lambda path, array: array.size == 8, ["head.layers.1.weight"]),
    ],
)
def test_where(net, where, paths):
    model = eqsparse.sparsify(net, where)
    assert list(eqsparse.get_masks(model)) == paths
    assert eqx.tree_equal(eqsparse.materialise(model), net)
    assert np.asarray(model(KEY)).tobytes() == np.asarray(net(KEY)).tobytes()


def test_idempotent(net):
    once = eqsparse.set_masks(eqsparse.sparsify(net, packed=True), random_masks(eqsparse.sparsify(net)))
    assert eqx.tree_equal(eqsparse.sparsify(once), once)
    assert eqx.tree_equal(eqsparse.sparsify(once, "cell.*", packed=False), once)


def test_in_several_calls(net):
    first = eqsparse.sparsify(net, "cell.weight_hh", packed=True)
    masks = random_masks(first)
    first = eqsparse.set_masks(first, masks)
    both = eqsparse.sparsify(first, ["cell.*", "embed.*"])
    found = eqsparse.get_masks(both)
    assert list(found) == ["embed.weight", "cell.weight_hh", "cell.weight_ih"]
    np.testing.assert_array_equal(found["cell.weight_hh"], masks["cell.weight_hh"])
    assert both.cell.masks["weight_hh"].packed and not both.cell.masks["weight_ih"].packed
    assert found["cell.weight_ih"].all()


def test_in_any_container():
    linear = eqx.nn.Linear(3, 2, key=KEY)
    for tree in (linear, [linear], (linear, {"a": linear, "b": [None, 3, "x"]})):
        model = eqsparse.sparsify(tree)
        assert jax.tree.structure(eqsparse.materialise(model)) == jax.tree.structure(tree)
        assert eqx.tree_equal(eqsparse.materialise(model), tree)
    assert isinstance(eqsparse.sparsify(linear), eqsparse.MaskedLinear)


def test_a_layer_inside_a_masked_module():
    class Outer(eqx.Module):
        w: jax.Array
        inner: eqx.nn.Linear

        def __call__(self, x):
            return self.inner(self.w @ x)

    outer = Outer(jnp.arange(9.0).reshape(3, 3), eqx.nn.Linear(3, 2, key=KEY))
    model = eqsparse.sparsify([eqsparse.Masked(outer, "w")])
    assert sorted(eqsparse.get_masks(model)) == ["0.inner.weight", "0.w"]
    assert eqx.tree_equal(eqsparse.materialise(model), [outer])
    masks = random_masks(model)
    model = eqsparse.set_masks(model, masks)
    x = np.linspace(-1, 1, 3)
    w, inner = (np.where(masks[f"0.{p}"], a, 0) for p, a in (("w", outer.w), ("inner.weight", outer.inner.weight)))
    np.testing.assert_allclose(model[0](jnp.asarray(x, jnp.float32)), inner @ (w @ x) + outer.inner.bias, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_stacks_and_ensembles(packed):
    make = eqx.filter_vmap(lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key))
    stack = make(jax.random.split(KEY, 3))
    model = eqsparse.sparsify(stack, packed=packed)
    inside = eqx.filter_vmap(lambda m: eqsparse.sparsify(m, packed=packed))(stack)
    assert eqx.tree_equal(model, inside)
    masks = random_masks(model)
    model = eqsparse.set_masks(model, masks)
    assert masks["layers.0.weight"].shape == (3, 4, 3)
    x = jnp.linspace(-1.0, 1.0, 3)
    out = eqx.filter_vmap(lambda m: m(x))(model)
    for i in range(3):
        one = jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, stack)
        w0, w1 = (np.where(masks[f"layers.{j}.weight"][i], one.layers[j].weight, 0) for j in range(2))
        h = np.maximum(w0 @ np.asarray(x) + one.layers[0].bias, 0)
        np.testing.assert_allclose(out[i], w1 @ h + one.layers[1].bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_every_leaf_has_its_own_buffer(net, packed):
    """So that the model can be donated: also where one array stands in two places."""
    linear = eqx.nn.Linear(3, 3, key=KEY)
    for tree in (net, [linear, linear]):
        model = eqsparse.sparsify(jax.tree.map(lambda x: x, tree), packed=packed)
        pointers = [x.unsafe_buffer_pointer() for x in arrays(model)]
        assert len(set(pointers)) == len(pointers)


def test_donation(net):
    want = np.asarray(net(KEY))
    model = eqsparse.sparsify(jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, net))
    moved = eqx.filter_jit(lambda m: m, donate="all")(model)
    assert np.asarray(moved(KEY)).tobytes() == want.tobytes()


def test_inference_mode(net):
    model = eqx.nn.inference_mode(eqsparse.sparsify(net))
    assert np.asarray(model()).tobytes() == np.asarray(eqx.nn.inference_mode(net)()).tobytes()
    assert model.drop.inference and model.attention.dropout.inference
    assert not eqx.nn.inference_mode(model, value=False).drop.inference


def test_inference_mode_of_a_part(net):
    """A tree of gradients or of trainable leaves only: `None` stands where masks were."""
    trainable, rest = eqsparse.partition(eqsparse.sparsify(net))
    model = eqsparse.combine(trainable, eqx.nn.inference_mode(rest))
    assert model.drop.inference
    assert not hasattr(trainable.head.layers[0], "inference")


def test_serialise(net):
    model = eqsparse.sparsify(net, packed=True)
    model = eqsparse.set_masks(model, random_masks(model))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    skeleton = eqx.filter_eval_shape(lambda: eqsparse.sparsify(Net(jax.random.key(1)), packed=True))
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(file, skeleton), model)


def test_inside_a_compiled_function(net):
    masks = random_masks(eqsparse.sparsify(net))

    @eqx.filter_jit
    def there_and_back(net, masks):
        return eqsparse.materialise(eqsparse.set_masks(eqsparse.sparsify(net, packed=True), masks))

    want = eqsparse.materialise(eqsparse.set_masks(eqsparse.sparsify(net), masks))
    assert eqx.tree_equal(there_and_back(net, masks), want)


@pytest.mark.own_message
@pytest.mark.parametrize(
    "model", [eqx.nn.LayerNorm(4), [eqx.nn.Dropout()], {"w": jnp.ones((4, 4))}, jnp.ones((4, 4)), {}, None]
)
def test_nothing_to_mask(model):
    with pytest.raises(ValueError, match=r"sparsify\(model=\.\.\.\).*Linear.*Got"):
        eqsparse.sparsify(model)


def test_no_match_and_unharmed(net):
    before = arrays(net)
    with pytest.raises(ValueError, match=r"where.*'atention\.\*'.*Nearest.*attention"):
        eqsparse.sparsify(net, "atention.*")
    assert all(a is b for a, b in zip(before, arrays(net), strict=True))
