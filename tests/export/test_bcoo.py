"""`to_bcoo` and `BCOOLinear`: the same predictions and gradients as the dense weight, in fewer bytes."""

import contextlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from eqsparse._export import BCOOLinear, BCSRLayout, SparseLayer, to_bcoo
from eqsparse._kernels import operations_of_jax, spmm
from eqsparse._layers import Masked, MaskedConv2d, MaskedEmbedding, MaskedLinear
from eqsparse._model import nbytes, sparsify

IN, OUT = 7, 5
KERNEL = "cpu_csr_sparse_dense_ffi"
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2, jnp.float16: 2e-3}
DTYPES = list(TOLERANCE)


def make(key, density=0.4, in_features=IN, out_features=OUT, packed=False, **kwargs):
    """A masked layer, and its effective weight in NumPy."""
    shape = tuple(1 if size == "scalar" else size for size in (out_features, in_features))
    mask = np.array(jax.random.uniform(jax.random.fold_in(key, 1), shape) < density)
    masked = MaskedLinear(in_features, out_features, mask=mask, packed=packed, key=key, **kwargs)
    return masked, np.where(mask, np.asarray(masked.layer.weight), 0).astype(np.float64), mask


def reference(weight, layer, x):
    bias = 0 if layer.bias is None else np.asarray(layer.bias, np.float64)
    return np.asarray(x, np.float64) @ weight.T + bias


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance)


def on_batch(layer, x):
    """The layer under one `vmap` for each batch axis of `x`."""
    run = layer
    for _ in x.shape[:-1]:
        run = jax.vmap(run)
    return run(x)


def as_arguments(layer):
    """The layer as a function of its arrays, and these."""
    arrays, rest = eqx.partition(layer, eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays


# What is stored.


@pytest.mark.parametrize("packed", [False, True])
def test_weight_is_sorted_unique_bcoo_of_the_mask(getkey, packed):
    masked, weight, mask = make(getkey(), packed=packed)
    bcoo = to_bcoo(masked).weight
    assert isinstance(bcoo, sparse.BCOO) and bcoo.shape == (OUT, IN)
    assert bcoo.indices_sorted and bcoo.unique_indices and bcoo.indices.dtype == jnp.int32
    np.testing.assert_array_equal(bcoo.indices, np.argwhere(mask))
    np.testing.assert_array_equal(bcoo.data, weight[mask].astype(np.float32))
    np.testing.assert_array_equal(bcoo.todense(), weight.astype(np.float32))
    np.testing.assert_array_equal(to_bcoo(masked).to_dense(), weight.astype(np.float32))


def test_the_layer_is_a_sparse_layer_that_reads_through(getkey):
    masked, weight, _ = make(getkey())
    exported = to_bcoo(masked)
    assert type(exported.layer) is SparseLayer and type(exported.layer.weight) is BCSRLayout
    assert (exported.in_features, exported.out_features, exported.use_bias, exported.shape) == (
        IN,
        OUT,
        True,
        (OUT, IN),
    )
    assert exported.bias is exported.layer.layer.bias
    np.testing.assert_array_equal(exported.materialise().weight, weight.astype(np.float32))
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'kernel'"):
        exported.kernel  # noqa: B018


def test_kept_zeros_stay_and_masked_values_go(getkey):
    masked, _, mask = make(getkey())
    weight = np.full((OUT, IN), np.nan, np.float32)
    weight[mask] = 0
    exported = to_bcoo(eqx.tree_at(lambda m: m.layer.weight, masked, jnp.asarray(weight)))
    assert exported.weight.nse == mask.sum()
    np.testing.assert_array_equal(exported.layer.weight.values, np.zeros(mask.sum()))
    close(exported(jnp.ones(IN)), np.asarray(masked.layer.bias))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_kept_and_all_kept(getkey, density):
    masked, weight, _ = make(getkey(), density)
    exported = to_bcoo(masked)
    x = jax.random.normal(getkey(), (4, IN))
    assert exported.weight.nse == density * IN * OUT
    close(jax.vmap(exported)(x), reference(weight, masked, x))
    close(jax.grad(lambda x: jax.vmap(exported)(x).sum())(x), np.ones((4, OUT)) @ weight)
    got = eqx.filter_grad(lambda layer: jax.vmap(layer)(x).sum())(exported).layer.weight.values
    close(got, np.broadcast_to(np.asarray(x).sum(0), (OUT, IN)).ravel()[: exported.weight.nse])


def test_empty_rows_and_columns(getkey):
    masked, _, mask = make(getkey(), 0.7)
    mask[[0, 2, 4]] = False
    mask[:, [0, 6]] = False
    masked = MaskedLinear.from_layer(masked.layer, mask=mask)
    weight, x = np.where(mask, np.asarray(masked.layer.weight), 0), jax.random.normal(getkey(), (4, IN))
    close(jax.vmap(to_bcoo(masked))(x), reference(weight, masked, x))
    np.testing.assert_array_equal(to_bcoo(masked).to_dense(), weight)


@pytest.mark.parametrize("in_features, out_features", [(0, OUT), (IN, 0)])
def test_layers_without_weights(getkey, in_features, out_features):
    masked = MaskedLinear(in_features, out_features, key=getkey())
    x = jnp.ones((3, in_features))
    np.testing.assert_array_equal(jax.vmap(to_bcoo(masked))(x), jax.vmap(masked)(x))
    assert jax.grad(lambda x: jax.vmap(to_bcoo(masked))(x).sum())(x).shape == x.shape


# What is computed.


@pytest.mark.parametrize("dtype, use_bias", [*((dtype, True) for dtype in DTYPES), (jnp.float32, False)])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (16,), (2, 3), (2, 1, 3)])
def test_equals_masked_layer(getkey, dtype, use_bias, batch):
    masked, weight, _ = make(getkey(), dtype=dtype, use_bias=use_bias)
    exported = to_bcoo(masked)
    assert exported.layer.weight.values.dtype == dtype
    x = jax.random.normal(getkey(), (*batch, IN), dtype)
    expected = on_batch(masked, x)
    for y in (on_batch(exported, x), eqx.filter_jit(on_batch)(exported, x)):
        assert y.dtype == expected.dtype and y.shape == (*batch, OUT)
        close(y, reference(weight, masked, x), TOLERANCE[dtype])
        close(y, np.asarray(expected, np.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("in_axes, out_axes", [(1, 0), (0, 1), (1, 1), (-1, -1)])
def test_any_axis_can_be_mapped(getkey, in_axes, out_axes):
    masked, weight, _ = make(getkey())
    x = np.asarray(jax.random.normal(getkey(), (3, IN)))
    y = jax.vmap(to_bcoo(masked), in_axes, out_axes)(jnp.asarray(np.moveaxis(x, 0, in_axes)))
    close(np.moveaxis(np.asarray(y), out_axes, 0), reference(weight, masked, x))


@pytest.mark.parametrize("in_features, out_features", [("scalar", OUT), (IN, "scalar"), ("scalar", "scalar")])
def test_scalar_features(getkey, in_features, out_features):
    masked, _, _ = make(getkey(), 0.8, in_features, out_features)
    exported = to_bcoo(masked)
    x = jax.random.normal(getkey(), (3,) if in_features == "scalar" else (3, IN))
    close(exported(x[0]), np.asarray(masked(x[0])))
    close(jax.vmap(exported)(x), np.asarray(jax.vmap(masked)(x)))


def test_float64_and_complex64(getkey):
    with jax.enable_x64(True):
        masked, weight, _ = make(getkey(), dtype=jnp.float64)
        x = jax.random.normal(getkey(), (3, IN), jnp.float64)
        close(jax.vmap(to_bcoo(masked))(x), reference(weight, masked, x), 1e-14)
    masked = MaskedLinear(IN, OUT, dtype=jnp.complex64, mask=np.eye(OUT, IN, dtype=bool), key=getkey())
    x = jax.random.normal(getkey(), (3, IN), jnp.complex64)
    np.testing.assert_allclose(jax.vmap(to_bcoo(masked))(x), jax.vmap(masked)(x), rtol=1e-5)


def test_dtype_of_mixed_arguments_is_that_of_the_dense_layer(getkey):
    masked, _, _ = make(getkey())
    half, single = jnp.ones(IN, jnp.bfloat16), jnp.ones(IN, jnp.float32)
    with pytest.raises(Exception, match="strict"):
        to_bcoo(masked)(half)
    with jax.numpy_dtype_promotion("standard"):
        assert to_bcoo(masked)(half).dtype == masked(half).dtype == jnp.float32
        assert to_bcoo(masked)(jnp.ones(IN, int)).dtype == jnp.float32
        low = make(getkey(), dtype=jnp.bfloat16)[0]
        assert to_bcoo(low)(single).dtype == low(single).dtype == jnp.float32


@pytest.mark.parametrize("nest", [1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_vmap_reaches_one_kernel(getkey, nest, own, kernels):
    exported = to_bcoo(make(getkey())[0])
    x = jax.random.normal(getkey(), (*(4, 3)[:nest], IN))
    with contextlib.nullcontext() if own else operations_of_jax():
        text = jax.jit(lambda x: on_batch(exported, x)).lower(x).as_text()
    kernel = "eqsparse_csr" if own and kernels else KERNEL
    assert text.count(f"call @{kernel}(") == 1 and "while" not in text


# Derivatives.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("jit", [False, True])
def test_gradients(getkey, dtype, batch, jit):
    check_gradients(getkey, IN, OUT, dtype, batch, jit)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradients_in_chunks(getkey, batch, monkeypatch):
    monkeypatch.setattr("eqsparse._kernels.csr._CHUNK", 13)
    check_gradients(getkey, 9, 8, jnp.float32, batch, True)  # sizes of its own: nothing compiled before is used


def check_gradients(getkey, in_features, out_features, dtype, batch, jit):
    """Against NumPy: for L = Σ sin(y), dL/dx = cos(y) W and dL/dW = cos(y)ᵀ x where kept."""
    masked, weight, mask = make(getkey(), 0.4, in_features, out_features, dtype=dtype)
    exported = to_bcoo(masked)
    x = jax.random.normal(getkey(), (*batch, in_features), dtype)

    def loss(args):
        return jnp.sum(jnp.sin(on_batch(*args).astype(jnp.float32)))

    got, got_x = (eqx.filter_jit if jit else lambda f: f)(eqx.filter_grad(loss))((exported, x))
    dy = np.cos(reference(weight, masked, x)).reshape(-1, out_features)
    flat = np.asarray(x, np.float64).reshape(-1, in_features)
    tolerance = 3 * TOLERANCE[dtype]
    assert got_x.dtype == got.layer.weight.values.dtype == dtype
    close(got_x.reshape(-1, in_features), dy @ weight, tolerance)
    close(got.layer.weight.values, (dy.T @ flat)[mask], tolerance)
    close(got.bias, dy.sum(0), tolerance)


def test_gradient_of_values_by_finite_differences(getkey):
    with jax.enable_x64(True):
        exported = to_bcoo(make(getkey(), dtype=jnp.float64)[0])
        x = jax.random.normal(getkey(), (4, IN), jnp.float64)
        loss = lambda v: jnp.sum(jax.vmap(eqx.tree_at(lambda m: m.layer.weight.values, exported, v))(x) ** 3)
        got, step = jax.grad(loss)(exported.layer.weight.values), 1e-5
        for i, place in enumerate(np.eye(got.size) * step):
            slope = (loss(exported.layer.weight.values + place) - loss(exported.layer.weight.values - place)) / (
                2 * step
            )
            np.testing.assert_allclose(got[i], slope, rtol=1e-6, atol=1e-6)


def test_gradients_per_example_and_of_second_order(getkey):
    masked, weight, mask = make(getkey())
    arrays, rest = eqx.partition(to_bcoo(masked), eqx.is_inexact_array)
    x = jax.random.normal(getkey(), (3, IN))
    loss = lambda arrays, x: jnp.sum(jnp.sin(eqx.combine(arrays, rest)(x)))
    y = reference(weight, masked, x)
    each = jax.vmap(jax.grad(loss), (None, 0))(arrays, x).layer.weight.values
    close(each, np.einsum("bo,bi->boi", np.cos(y), np.asarray(x))[:, mask])
    close(jax.hessian(loss, 1)(arrays, x[0]), weight.T @ (-np.sin(y[0])[:, None] * weight))
    tangent = jax.random.normal(getkey(), (IN,))
    _, slope = jax.jvp(lambda x: loss(arrays, x), (x[0],), (tangent,))
    close(slope, np.cos(y[0]) @ weight @ np.asarray(tangent))


def test_gradients_in_shard_map(getkey):
    masked, weight, mask = make(getkey())
    arrays, rest = eqx.partition(to_bcoo(masked), eqx.is_inexact_array)
    x = jax.random.normal(getkey(), (4, IN))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = jax.sharding.PartitionSpec("data")
    run = lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x)
    run = jax.shard_map(run, mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), data), out_specs=data)
    got, got_x = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(run(*args))), (0, 1)))(arrays, x)
    dy = np.cos(reference(weight, masked, x))
    close(got_x, dy @ weight)
    close(got.layer.weight.values, (dy.T @ np.asarray(x))[mask])


# Stacks and ensembles.


def make_stack(key, layers, size):
    """A stack of layers as `eqx.filter_vmap` makes it, with masks of unequal counts."""
    keys = jax.random.split(key, layers)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(size, size, key=key))(keys)
    densities = np.linspace(0, 0.9, layers)[:, None, None]
    mask = np.asarray(jax.random.uniform(keys[0], (layers, size, size))) < densities
    return MaskedLinear.from_layer(stack, mask=mask), np.where(mask, np.asarray(stack.weight), 0), mask


def test_stack_under_scan(getkey):
    masked, weight, mask = make_stack(getkey(), 3, IN)
    exported, x = to_bcoo(masked), jax.random.normal(getkey(), (4, IN))
    np.testing.assert_array_equal(exported.to_dense(), weight)
    np.testing.assert_array_equal(exported.weight.todense(), weight)
    arrays, rest = eqx.partition(exported, eqx.is_array)

    def run(values, x):
        layers = eqx.tree_at(lambda m: m.layer.weight.values, arrays, values)
        return jax.lax.scan(lambda x, layer: (jax.vmap(eqx.combine(layer, rest))(x), None), x, layers)[0]

    def run_dense(weight, x):
        bias = masked.layer.bias
        step = lambda x, layer: (x @ layer[0].T + jnp.expand_dims(layer[1], 0), None)
        return jax.lax.scan(step, x, (weight, bias))[0]

    close(run(exported.layer.weight.values, x), run_dense(jnp.asarray(weight), x))
    got, got_x = jax.jit(jax.grad(lambda *a: run(*a).sum(), (0, 1)))(exported.layer.weight.values, x)
    dense, dense_x = jax.grad(lambda *a: run_dense(*a).sum(), (0, 1))(jnp.asarray(weight), x)
    close(got_x, np.asarray(dense_x))
    for i, kept in enumerate(mask):
        close(got[i, : kept.sum()], np.asarray(dense[i])[kept], 1e-4)
        np.testing.assert_array_equal(got[i, kept.sum() :], 0)  # padding is no entry: nothing can grow there


@pytest.mark.parametrize("in_axis", [0, None])
@pytest.mark.parametrize("order", ["members outside", "batch outside", "members only"])
def test_ensemble_under_filter_vmap(getkey, in_axis, order):
    masked, weight, mask = make_stack(getkey(), 3, IN)
    exported = to_bcoo(masked)
    x = np.asarray(jax.random.normal(getkey(), (3, 4, IN) if in_axis == 0 else (4, IN)))
    members = lambda f: eqx.filter_vmap(f, in_axes=(eqx.if_array(0), in_axis))

    def run(layer, x):
        if order == "members outside":
            return members(lambda layer, x: jax.vmap(layer)(x))(layer, x)
        if order == "batch outside":
            each = members(lambda layer, x: layer(x))
            return jax.vmap(lambda x: each(layer, x), 1 if in_axis == 0 else 0, 1)(x)
        return members(lambda layer, x: layer(x))(layer, x[..., 0, :])[:, None]

    expected = np.broadcast_to(x, (3, 4, IN)) @ np.swapaxes(weight, 1, 2) + np.asarray(masked.layer.bias)[:, None]
    used = 1 if order == "members only" else 4
    close(eqx.filter_jit(run)(exported, jnp.asarray(x)), expected[:, :used])
    got = eqx.filter_grad(lambda layer: jnp.sum(jnp.sin(run(layer, jnp.asarray(x)))))(exported).layer.weight.values
    dense = np.einsum("eno,eni->eoi", np.cos(expected)[:, :used], np.broadcast_to(x, (3, 4, IN))[:, :used])
    for i, kept in enumerate(mask):
        close(got[i, : kept.sum()], dense[i][kept])


# Models.


def test_whole_model(getkey):
    model = sparsify(eqx.nn.MLP(IN, 3, 16, 2, key=getkey()))
    mask = jax.random.bernoulli(getkey(), 0.3, (16, 16))
    model = eqx.tree_at(lambda m: m.layers[1], model, MaskedLinear.from_layer(model.layers[1].layer, mask=mask))
    exported, x = to_bcoo(model), jax.random.normal(getkey(), (4, IN))
    assert all(isinstance(layer, BCOOLinear) for layer in exported.layers)
    close(eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(exported, x), np.asarray(jax.vmap(model)(x)))
    assert nbytes(exported.layers[1]) == mask.sum() * 6 + 17 * 4 + 16 * 4


def test_other_masked_layers_become_plain(getkey):
    conv = MaskedConv2d(2, 3, 3, mask=jax.random.bernoulli(getkey(), 0.5, (3, 2, 3, 3)), key=getkey())
    generic = Masked(eqx.nn.Linear(IN, OUT, key=getkey()), "weight", mask=np.eye(OUT, IN, dtype=bool))
    linear = make(getkey())[0]
    exported = to_bcoo([conv, generic, linear, "kept as it is"])
    assert [type(part) for part in exported] == [eqx.nn.Conv2d, eqx.nn.Linear, BCOOLinear, str]
    image, x = jax.random.normal(getkey(), (2, 5, 5)), jax.random.normal(getkey(), (IN,))
    np.testing.assert_array_equal(exported[0](image), conv(image))
    np.testing.assert_array_equal(exported[1](x), generic(x))


def test_subclass_of_linear_becomes_plain(getkey):
    class Doubled(eqx.nn.Linear):
        def __call__(self, x, *, key=None):
            return 2 * super().__call__(x)

    masked = sparsify([Doubled(IN, OUT, key=getkey())])
    x = jax.random.normal(getkey(), (IN,))
    np.testing.assert_array_equal(to_bcoo(masked)[0](x), masked[0](x))


def test_shared_weights_still_work(getkey):
    class Tied(eqx.Module):
        embedding: eqx.nn.Embedding
        linear: eqx.nn.Linear

        def __call__(self, token):
            return self.linear(self.embedding(token))

    tied = Tied(eqx.nn.Embedding(9, IN, key=getkey()), eqx.nn.Linear(IN, 9, key=getkey()))
    shared = eqx.nn.Shared(tied, lambda t: t.linear.weight, lambda t: t.embedding.weight)
    mask = np.asarray(jax.random.bernoulli(getkey(), 0.5, (9, IN)))
    model = sparsify([shared, make(getkey())[0]])
    model = eqx.tree_at(
        lambda m: m[0].pytree.embedding, model, replace_fn=lambda e: MaskedEmbedding.from_layer(e.layer, mask=mask)
    )
    exported = to_bcoo(model)
    assert isinstance(exported[1], BCOOLinear)
    close(exported[0]()(jnp.asarray(3)), np.asarray(model[0]()(jnp.asarray(3))))
    np.testing.assert_array_equal(np.asarray(exported[0]().linear.weight) != 0, mask)


def test_weight_norm_stays_masked_and_predicts_the_same(getkey):
    linear, x = make(getkey())[0], jax.random.normal(getkey(), (IN,))
    model = [eqx.nn.WeightNorm(linear), linear]
    exported = to_bcoo(model)
    assert isinstance(exported[0].layer, MaskedLinear) and isinstance(exported[1], BCOOLinear)
    np.testing.assert_array_equal(exported[0](x), model[0](x))


def test_serialises(getkey, tmp_path):
    exported = to_bcoo(make(getkey())[0])
    eqx.tree_serialise_leaves(tmp_path / "layer.eqx", exported)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", jax.tree.map(jnp.zeros_like, exported))
    assert eqx.tree_equal(loaded, exported)


# Bytes.


def test_bytes_at_3072_by_768(planned):
    """PREDECESSOR row 27: `BCOO @ x` under `vmap` took 123 MB of scratch where the dense weight is 9 MB.

    At 90%, batch 128: at most half the dense layer's weight and scratch, and no scratch of the size of the
    dense weight, in the gradient of the input too.
    """
    batch, key = 128, jax.random.key(0)
    masked, _, _ = make(key, 0.1, 768, 3072)
    bytes_of = {}
    for name, layer in (("dense", masked.materialise()), ("sparse", to_bcoo(masked))):
        run, arrays = as_arguments(layer)
        x = jax.ShapeDtypeStruct((batch, 768), jnp.float32)
        used = jax.jit(run).lower(arrays, x).compile(planned).memory_analysis()
        bytes_of[name] = used.argument_size_in_bytes - x.size * 4 + used.temp_size_in_bytes
    assert bytes_of["sparse"] <= bytes_of["dense"] / 2
    run, arrays = as_arguments(to_bcoo(masked))
    compiled = jax.jit(jax.grad(lambda x, arrays: run(arrays, x).sum())).lower(x, arrays).compile(planned)
    assert compiled.memory_analysis().temp_size_in_bytes < 3072 * 768 * 4
    assert "f32[3072,768]" not in compiled.as_text()


def test_weights_are_arguments_not_constants(getkey):
    exported = to_bcoo(make(getkey(), 0.5, 64, 48)[0])
    x = jnp.ones((16, 64))

    def largest_constant(lowered):
        shapes = re.findall(r"stablehlo\.constant dense.*?tensor<((?:\d+x)+)", lowered.as_text())
        return max((np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in shapes), default=0)

    run, arrays = as_arguments(exported)
    assert largest_constant(jax.jit(run).lower(arrays, x)) <= 1
    assert (
        largest_constant(jax.jit(lambda x: run(arrays, x)).lower(x)) >= exported.layer.weight.values.size
    )  # the check sees them
    lowered = eqx.filter_jit(lambda layer, x: jax.vmap(layer)(x)).lower(exported, x).lowered
    assert largest_constant(lowered) <= 1


# Errors.


def test_plain_model_raises(getkey):
    with pytest.raises(ValueError, match=r"`to_bcoo\(model=\.\.\.\)` must contain a masked layer.* Got MLP without"):
        to_bcoo(eqx.nn.MLP(2, 2, 2, 1, key=getkey()))
    with pytest.raises(ValueError, match="must contain a masked layer"):
        to_bcoo(to_bcoo(make(getkey())[0]))


def test_traced_model_raises(getkey):
    model = [make(getkey())[0]]
    with pytest.raises(ValueError, match=r"`to_bcoo\(model=...\)` must .*be called outside `jax.jit`"):
        eqx.filter_jit(to_bcoo)(model)


def test_too_many_for_int32_raises(getkey, monkeypatch):
    masked, _, mask = make(getkey())
    monkeypatch.setattr(BCSRLayout, "bytes_of", lambda *args: None)
    with pytest.raises(ValueError, match=rf"int32.*Got {mask.sum()} .*`0\.weight`"):
        to_bcoo([masked])


def test_wrong_shapes_raise(getkey):
    exported = to_bcoo(make(getkey())[0])
    with pytest.raises(ValueError, match=r"shape \(7,\); use `jax.vmap` for batches. Got \(3, 7\)"):
        exported(jnp.ones((3, IN)))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        to_bcoo(make(getkey(), 0.8, "scalar")[0])(jnp.ones(1))
    with pytest.raises(ValueError, match=r"Got a stack of shape \(3,\)"):
        to_bcoo(make_stack(getkey(), 3, IN)[0])(jnp.ones(IN))


def test_spmm_takes_batches_of_any_rank(getkey):
    masked, weight, _ = make(getkey(), use_bias=False)
    exported = to_bcoo(masked)
    for batch in [(), (0,), (2,), (2, 3)]:
        x = jax.random.normal(getkey(), (*batch, IN))
        y = spmm(
            exported.layer.weight.values,
            exported.layer.weight.columns,
            exported.layer.weight.row_pointers,
            x,
            (OUT, IN),
        )
        close(y, np.asarray(x) @ weight.T)
