"""Masked twins pass for the layers they mask."""

import copy
import inspect
import io
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import make_plain, random_masks, same_bits, with_zeros, ZOO

import eqsparse

KINDS = [pytest.param(kind, id=name) for name, kind in ZOO.items()]
MAIN = [pytest.param(ZOO[name], id=name) for name in ("Linear", "Conv2d", "ConvTranspose1d", "Embedding", "GRUCell")]


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_full_mask_gives_the_same_bits(kind, packed):
    plain = make_plain(kind)
    made = kind.twin(*kind.args, **kind.kwargs, packed=packed, key=jax.random.key(3))
    wrapped = kind.twin.from_layer(plain, packed=packed)
    x = kind.inputs(jnp.float32)
    assert same_bits(made(*x), plain(*x))
    assert same_bits(wrapped(*x), plain(*x))
    assert same_bits(eqx.filter_jit(wrapped)(*x), eqx.filter_jit(plain)(*x))
    assert same_bits(made.materialise(), plain)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_zeros_written_in(kind, packed):
    plain, masks = make_plain(kind), random_masks(kind)
    one = masks["weight"] if len(masks) == 1 else masks
    layer = kind.twin.from_layer(plain, one, packed)
    want = with_zeros(plain, masks)
    x = kind.inputs(jnp.float32)
    assert same_bits(layer(*x), want(*x))
    assert type(layer.materialise()) is type(plain)
    assert same_bits(layer.materialise(), want)
    assert sorted(layer.masks) == sorted(kind.weights)
    for name, mask in masks.items():
        assert same_bits(getattr(layer, name), getattr(plain, name))  # stored weights are untouched
        assert same_bits(layer.effective(name), getattr(want, name))
        held = layer.masks[name]
        assert held.shape == mask.shape == kind.weights[name]
        assert held.dense().dtype == jnp.bool_
        assert np.array_equal(held.dense(), mask)
        assert held.nnz() == mask.sum()
        assert np.array_equal(held.bits, np.packbits(mask, axis=-1) if packed else mask)
        assert held.bits.dtype == (jnp.uint8 if packed else jnp.bool_)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_at_construction(kind):
    masks = random_masks(kind)
    one = masks["weight"] if len(masks) == 1 else masks
    layer = kind.twin(*kind.args, **kind.kwargs, mask=one, key=jax.random.key(3))
    assert same_bits(layer, kind.twin.from_layer(make_plain(kind), one))


@pytest.mark.parametrize("kind", KINDS)
def test_signature_is_that_of_the_layer(kind):
    """Positional arguments in the layer's order; `mask` and `packed` by keyword, full and unpacked by default."""
    ours = inspect.signature(kind.twin).parameters
    theirs = inspect.signature(kind.plain).parameters
    kept = [n for n in ours if n not in ("mask", "packed")]
    assert kept == list(theirs)
    assert all(ours[n].kind == theirs[n].kind and ours[n].default == theirs[n].default for n in kept)
    assert ours["mask"].kind is ours["packed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ours["mask"].default is None and ours["packed"].default is False


@pytest.mark.parametrize("kind", [k for k in KINDS if k.values[0].bad is not None])
def test_same_errors(kind):
    plain = make_plain(kind)
    with pytest.raises(Exception) as theirs:
        plain(*kind.bad)
    with pytest.raises(Exception) as ours:
        kind.twin.from_layer(plain)(*kind.bad)
    assert ours.type is theirs.type
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("kind", KINDS)
def test_same_errors_when_made(kind):
    with pytest.raises(Exception) as theirs:
        kind.plain(*kind.args, nonsense=1, key=jax.random.key(0))
    with pytest.raises(Exception) as ours:
        kind.twin(*kind.args, nonsense=1, key=jax.random.key(0))
    assert ours.type is theirs.type is TypeError


@pytest.mark.parametrize("kind", MAIN)
def test_same_dtype_promotion(kind):
    plain = make_plain(kind, jnp.bfloat16)
    layer = kind.twin.from_layer(plain, packed=True)
    x16, x32 = kind.inputs(jnp.bfloat16), kind.inputs(jnp.float32)
    assert same_bits(layer(*x16), plain(*x16))
    for promotion in ("strict", "standard"):
        with jax.numpy_dtype_promotion(promotion):
            theirs, ours = _outcome(plain, x32), _outcome(layer, x32)
        assert ours == theirs if isinstance(theirs, str) else same_bits(ours, theirs)


def _outcome(layer, inputs):
    """What the layer gives, or the error that it raises: Equinox's convolutions refuse mixed dtypes."""
    try:
        return layer(*inputs)
    except Exception as error:
        return f"{type(error)}: {error}"


def test_half_precision_weights_stay():
    layer = eqsparse.MaskedLinear(4, 3, dtype=jnp.float16, key=jax.random.key(0))
    assert layer.weight.dtype == layer.effective("weight").dtype == jnp.float16


@pytest.mark.parametrize("features", [("scalar", 3), (4, "scalar"), ("scalar", "scalar")])
def test_scalar_features(features):
    plain = eqx.nn.Linear(*features, key=jax.random.key(0))
    layer = eqsparse.MaskedLinear(*features, packed=True, key=jax.random.key(0))
    x = jnp.asarray(0.7) if features[0] == "scalar" else jnp.arange(4.0)
    assert layer.in_features == features[0] and layer.out_features == features[1]
    assert same_bits(layer(x), plain(x))


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
@pytest.mark.parametrize("kind", MAIN)
def test_pickle_copy_serialise(kind, packed):
    masks = random_masks(kind)
    layer = kind.twin.from_layer(make_plain(kind), masks, packed)
    x = kind.inputs(jnp.float32)
    for other in (pickle.loads(pickle.dumps(layer)), copy.copy(layer), copy.deepcopy(layer)):
        assert type(other) is type(layer)
        assert same_bits(other, layer)
        assert same_bits(other(*x), layer(*x))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, layer)
    file.seek(0)
    skeleton = eqx.filter_eval_shape(kind.twin, *kind.args, **kind.kwargs, packed=packed, key=jax.random.key(0))
    loaded = eqx.tree_deserialise_leaves(file, skeleton)
    assert same_bits(loaded, layer)
    assert same_bits(loaded(*x), layer(*x))


@pytest.mark.parametrize("kind", MAIN)
def test_tree_at_on_weights(kind):
    """`eqx.tree_at` through the read-through field changes the stored weight, and nothing else."""
    masks = random_masks(kind)
    layer = kind.twin.from_layer(make_plain(kind), masks)
    name = sorted(kind.weights)[0]
    new = jnp.full(kind.weights[name], 2.0)
    changed = eqx.tree_at(lambda m: getattr(m, name), layer, new)
    assert same_bits(getattr(changed, name), new)
    assert same_bits(changed.masks, layer.masks)
    assert same_bits(changed.effective(name), jnp.asarray(np.where(masks[name], 2.0, 0.0), jnp.float32))


def test_bias_reads_through_and_is_no_mask():
    layer = eqsparse.MaskedLinear(4, 3, key=jax.random.key(0))
    assert layer.bias is layer.layer.bias
    assert (layer.in_features, layer.out_features, layer.use_bias) == (4, 3, True)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = layer.nothing_here
    assert not hasattr(layer, "nothing_here")


@pytest.mark.parametrize("kind", MAIN)
def test_leaves(kind):
    """Masks are leaves that no partition by inexact dtype trains."""
    layer = kind.twin.from_layer(make_plain(kind), packed=True)
    trainable, rest = eqx.partition(layer, eqx.is_inexact_array)
    assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(layer.layer))
    assert [x.dtype for x in jax.tree.leaves(rest)] == [jnp.uint8] * len(kind.weights)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_ensemble_is_a_loop(packed):
    masks = np.random.default_rng(0).random((3, 5, 6)) < 0.5
    keys = jax.random.split(jax.random.key(0), 3)
    make = lambda key, mask: eqsparse.MaskedLinear(6, 5, key=key, mask=mask, packed=packed)
    layers = eqx.filter_vmap(make)(keys, masks)
    x = jnp.arange(6.0)
    out = eqx.filter_vmap(lambda layer: layer(x))(layers)
    for i in range(3):
        np.testing.assert_allclose(out[i], make(keys[i], masks[i])(x), rtol=1e-6)
        assert np.array_equal(layers.masks["weight"].dense()[i], masks[i])


def test_vmap_over_a_batch_is_a_loop():
    kind = ZOO["Conv2d"]
    layer = kind.twin.from_layer(make_plain(kind), random_masks(kind), packed=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 6)), jnp.float32)
    out = jax.jit(jax.vmap(layer))(x)
    for i in range(3):
        np.testing.assert_allclose(out[i], layer(x[i]), rtol=1e-5, atol=1e-6)


def test_infinite_and_nan_weights_vanish_behind_the_mask():
    """PREDECESSOR row 6: masking by multiplication turns `inf` into `nan` and leaves negative zeros."""
    weight = jnp.asarray([[jnp.inf, jnp.nan, -1.0, 2.0]])
    plain = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(4, 1, use_bias=False, key=jax.random.key(0)), weight)
    layer = eqsparse.MaskedLinear.from_layer(plain, jnp.asarray([[False, False, False, True]]))
    assert np.asarray(layer.effective("weight")).tobytes() == np.asarray([[0, 0, 0, 2]], np.float32).tobytes()
    assert float(layer(jnp.ones(4))[0]) == 2.0


def test_a_subclass_of_a_layer_is_held_as_it_is():
    class Scaled(eqx.nn.Linear):
        def __call__(self, x, *, key=None):
            return 2 * super().__call__(x, key=key)

    plain = Scaled(4, 3, key=jax.random.key(0))
    layer = eqsparse.MaskedLinear.from_layer(plain)
    x = jnp.arange(4.0)
    assert type(layer.materialise()) is Scaled
    assert same_bits(layer(x), plain(x))


def test_given_mask_is_copied():
    """Donating the layer must not delete the user's array."""
    mask = jnp.ones((3, 4), bool)
    layer = eqsparse.MaskedLinear(4, 3, mask=mask, key=jax.random.key(0))
    moved = eqx.filter_jit(lambda m: m, donate="all")(layer)
    assert bool(mask.all()) and moved.masks["weight"].nnz() == 12


@pytest.mark.own_message
@pytest.mark.parametrize(
    "mask, says",
    [
        (np.ones((3, 4), np.float32), "boolean.*float32"),
        (np.ones((3, 4), np.int32), "boolean.*int32"),
        (np.ones((4, 3), bool), r"shape \(3, 4\).*\(4, 3\)"),
        (np.ones((12,), bool), r"shape \(3, 4\).*\(12,\)"),
        ([[True] * 4] * 3, "boolean.*list"),
        ({"wieght": np.ones((3, 4), bool)}, "weight.*wieght"),
    ],
)
def test_wrong_masks(mask, says):
    plain = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=says):
        eqsparse.MaskedLinear.from_layer(plain, mask)
    with pytest.raises(ValueError, match=says):
        eqsparse.MaskedLinear(4, 3, mask=mask, key=jax.random.key(0))


@pytest.mark.own_message
def test_one_array_for_a_cell_is_an_error():
    with pytest.raises(ValueError, match="weight_ih.*weight_hh"):
        eqsparse.MaskedGRUCell(4, 3, mask=np.ones((9, 4), bool), key=jax.random.key(0))


@pytest.mark.own_message
def test_another_kind_of_layer_is_an_error():
    with pytest.raises(ValueError, match=r"MaskedConv2d\.from_layer.*Conv2d.*Linear"):
        eqsparse.MaskedConv2d.from_layer(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
