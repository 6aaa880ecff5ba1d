"""`save` and `load`: what comes back is what went in, or an error that says where it is not."""

import functools
import hashlib
import json
import os
import re
import stat
import struct as binary
import subprocess
import sys
import weakref
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse
from eqsparse._export._file import container
from eqsparse._export._layout import LAYOUTS

KEY = jax.random.key(0)
RAISES = functools.partial(pytest.raises, ValueError)


def mlp(width=6, depth=1, **kwargs):
    return eqx.nn.MLP(3, 2, width, depth, key=KEY, **kwargs)


def pruned(model=None, density=0.3, packed=False):
    """The masked model, random weights kept."""
    masked = eqsparse.sparsify(mlp() if model is None else model, packed=packed)
    draw = np.random.default_rng(0).random
    return eqsparse.set_masks(masked, {path: draw(m.shape) < density for path, m in eqsparse.get_masks(masked).items()})


def same(got, expected):
    """Equal bit for bit, in type and structure too."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        if not hasattr(b, "dtype"):
            assert type(a) is type(b) and (callable(b) or a == b or repr(a) == repr(b))
            continue
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def struct(tree):
    """The tree as `eqx.filter_eval_shape` gives it."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x, tree)


def roundtrip(path, tree, like=None):
    eqsparse.save(path, tree)
    got = eqsparse.load(path, tree if like is None else like)
    same(got, tree)
    return got


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.eqs"


# What comes back.

DTYPES = [
    "bfloat16",
    "float16",
    "float32",
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int32",
    "uint32",
    "complex64",
    "int4",
    "float8_e4m3fn",
]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (65, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_bit_for_bit(path, dtype, shape):
    n = int(np.prod(shape))
    host = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 8, n).reshape(shape).astype(jnp.dtype(dtype))
    roundtrip(path, {"jax": jnp.asarray(host), "numpy": host})


def test_special_floats(path):
    bits = np.array([0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x7FA00000], np.uint32)
    roundtrip(path, [jnp.asarray(bits.view(np.float32)), jnp.arange(2**16, dtype=jnp.uint16).view(jnp.bfloat16)])


def test_numbers_none_and_functions(path):
    numbers = [True, False, 0, -(10**30), 0.1, float("inf"), float("nan"), 5e-324, 1 + 2j, complex("nan")]
    tree = {"numbers": numbers, "none": (None, []), "function": jnp.tanh, "text": "b"}
    zeros = {**tree, "numbers": [type(x)(0) for x in numbers], "function": jax.nn.relu}
    eqsparse.save(path, tree)
    same(eqsparse.load(path, zeros), {**tree, "function": jax.nn.relu})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys(path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    tree = (keys[0], keys, jax.random.PRNGKey(0))
    roundtrip(path, tree)
    roundtrip(path, tree, jax.eval_shape(lambda: tree))


def test_numpy_keeps_its_width_and_kind(path):
    tree = [np.arange(3.0), np.float32(2.5), np.arange(6, dtype=">f4").reshape(2, 3).T, np.float64(0.1)]
    eqsparse.save(path, tree)
    got = eqsparse.load(path, tree)
    for a, b in zip(got, tree, strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype.newbyteorder("=")
        np.testing.assert_array_equal(a, b)
    with RAISES(match="like.*float32.*holds float64"):
        eqsparse.load(path, [jnp.zeros(3), *tree[1:]])
    with RAISES(match="jax_enable_x64.*float64"):
        eqsparse.load(path, [jax.ShapeDtypeStruct((3,), np.dtype("float64")), *tree[1:]])


OPTIMISERS = {
    "adam": optax.adam(1e-3),
    "chain": optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)),
    "multi": optax.MultiSteps(optax.lion(1e-3), 2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_states_of_optimisers(path, name):
    make = lambda: OPTIMISERS[name].init(eqx.filter(mlp(), eqx.is_inexact_array))
    roundtrip(path, make(), eqx.filter_eval_shape(make))


def test_training_goes_on_as_if_nothing_had_been(path):
    pruner = eqsparse.StaticSparse(OPTIMISERS["adam"], distribution=0.7, key=KEY, packed=True)
    grads = eqx.filter_grad(lambda m: (jax.vmap(m)(jnp.ones((4, 3))) ** 2).sum())
    step = eqx.filter_jit(lambda model, state: pruner.step(model, grads(model), state))
    make = lambda: pruner.init(eqx.nn.Linear(3, 2, key=KEY))
    model, state = step(*make())
    loaded = roundtrip(path, (model, state), struct((model, state)))
    same(step(*loaded), step(model, state))


def test_states_that_remember(path):
    """Top-KAST has masks of what trains, a lottery ticket the weights it winds back to."""
    for pruner in (
        eqsparse.TopKAST(distribution=0.7, backward_sparsity=0.4),
        eqsparse.LotteryTicket(distribution=0.7, rounds=1, steps=3),
    ):
        make = lambda: pruner.init(eqx.nn.Linear(3, 2, key=KEY))
        roundtrip(path, make(), eqx.filter_eval_shape(make))


class Everything(eqx.Module):
    """Convolution, embedding, cell, norm with state, dropout, tied weights, a stack."""

    layers: list
    stack: eqx.nn.Linear
    tied: eqx.nn.Shared

    def __init__(self, key):
        conv, embedding = eqx.nn.Conv2d(2, 3, 3, padding="SAME", key=key), eqx.nn.Embedding(5, 4, key=key)
        cell, norm = eqx.nn.GRUCell(2, 3, key=key), eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.layers = [
            conv,
            embedding,
            cell,
            norm,
            eqx.nn.Dropout(0.3),
            eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=key)),
        ]
        self.stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))(jax.random.split(key, 4))
        pair = (eqx.nn.Embedding(5, 4, key=key), eqx.nn.Linear(4, 5, key=key))
        self.tied = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)


@pytest.mark.parametrize("prune", [lambda m: m, eqsparse.sparsify, pruned], ids=["plain", "sparsify", "pruned"])
def test_models_of_all_kinds_with_state(path, prune):
    make = lambda: (lambda model, state: (prune(model), state))(*eqx.nn.make_with_state(Everything)(KEY))
    roundtrip(path, make(), struct(make()))


def test_arrays_return_to_the_devices_of_like(path):
    """On 8 virtual devices."""
    script = Path(__file__).parent / "sharded_script.py"
    python_path = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "error", str(script), str(path)]
    environment = os.environ | {"PYTHONPATH": python_path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


# Exported models, whose sizes nobody knows but the file.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exported_into_plain_masked_and_exported(path, dtype):
    masked = pruned(mlp(dtype=dtype))
    exported = eqsparse.to_bcoo(masked)
    other = eqsparse.to_bcoo(pruned(mlp(dtype=dtype), 0.8))
    for like in (eqx.filter_eval_shape(mlp, dtype=dtype), mlp(dtype=dtype), masked, exported, other):
        roundtrip(path, exported, like)
    x = jnp.ones((4, 3), dtype)
    np.testing.assert_array_equal(jax.vmap(eqsparse.load(path, mlp(dtype=dtype)))(x), jax.vmap(exported)(x))


def test_exported_ensembles_and_scalars(path):
    make = lambda key: eqx.nn.MLP("scalar", "scalar", 6, 1, key=key)
    ensemble = eqx.filter_vmap(make)(jax.random.split(KEY, 3))
    exported = eqsparse.to_bcoo(pruned(ensemble))
    roundtrip(path, [exported, jnp.ones(2)], [ensemble, jnp.zeros(2)])
    with RAISES(match=r"at `0.layers.0.weight`"):
        eqsparse.load(path, [make(KEY), jnp.zeros(2)])


def test_exported_among_all_kinds(path):
    plain, state = eqx.nn.make_with_state(Everything)(KEY)
    masked = pruned(plain)
    exported = eqsparse.to_bcoo(masked)
    assert isinstance(exported.stack, eqsparse.BCOOLinear) and isinstance(exported.layers[0], eqx.nn.Conv2d)
    like = eqx.tree_at(lambda m: m.tied, masked, plain.tied)  # layers within `WeightNorm` stay masked
    roundtrip(path, (exported, state), (like, state))


def test_loaded_can_be_donated_and_trained(path):
    eqsparse.save(path, eqsparse.to_bcoo(pruned()))
    loaded = eqsparse.load(path, mlp())
    x = jnp.ones((4, 3))
    grads = eqx.filter_grad(lambda m: jax.vmap(m)(x).sum())(loaded)
    assert jax.tree.structure(eqx.filter(grads, eqx.is_array)) == jax.tree.structure(
        eqx.filter(loaded, eqx.is_inexact_array)
    )
    eqx.filter_jit(lambda m: jax.tree.map(lambda a: a + 1 if eqx.is_inexact_array(a) else a, m), donate="all")(loaded)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(loaded) if eqx.is_inexact_array(leaf))


def test_every_sparse_layer_can_be_loaded():
    """Whoever adds a layout to the room lists it in `LAYOUTS`; `fit` knows the two layers that hold them."""
    found, todo = set(), [eqx.Module]
    while todo:
        cls = todo.pop()
        todo.extend(cls.__subclasses__())
        if cls.__module__.startswith("eqsparse._export") and not cls.__name__.startswith(("Abstract", "_")):
            found.add(cls)
    assert {cls.__name__ for cls in found} == {cls.__name__ for cls in LAYOUTS.values()} | {"SparseLayer", "BCOOLinear"}


LAYERS = {
    "linear": lambda: eqx.nn.Linear(8, 8, key=KEY),
    "conv": lambda: eqx.nn.Conv2d(4, 8, 3, key=KEY),
    "embedding": lambda: eqx.nn.Embedding(8, 8, key=KEY),
    "gru": lambda: eqx.nn.GRUCell(8, 8, key=KEY),
    "stack": lambda: eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(jax.random.split(KEY, 3)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("layout", ["auto", "bcsr"])
def test_exported_layers(path, make, layout):
    """By the plain layer, the masked one, their outlines, and themselves."""
    exported = eqsparse.export({"a": pruned(make())}, layout)
    assert isinstance(exported["a"], eqsparse.SparseLayer)
    roundtrip(path, exported)
    for like in ({"a": make()}, {"a": pruned(make())}, struct({"a": make()})):
        roundtrip(path, exported, like)
    with RAISES(match=r"Got int32\[8, 8\] at `a.* holds"):
        eqsparse.load(path, jax.tree.map(lambda x: x, {"a": jnp.zeros((8, 8), jnp.int32)}))


@pytest.mark.parametrize("layout", ["bcoo", "bcsr", "bitmask", "delta", "block", "dense"])
def test_exported_layouts(path, layout):
    exported = eqsparse.export({"a": pruned(eqx.nn.Linear(8, 8, key=KEY))}, layout)
    roundtrip(path, exported, {"a": eqx.nn.Linear(8, 8, key=KEY)})
    with RAISES(match=r"Got float32\[6, 8\] at `a.weight`, where the file holds float32\[8, 8\]"):
        eqsparse.load(path, {"a": eqx.nn.Linear(8, 6, key=KEY)})


def test_only_eqsparse_classes_are_made(path):
    """A class of the same name elsewhere is not taken for one of eqsparse's, nor is any other made."""

    class BCOOLinear(eqx.Module):
        values: jax.Array

    roundtrip(path, BCOOLinear(jnp.ones(3)))
    with RAISES(match=r"Got Linear at the root, where the file holds BCOOLinear"):
        eqsparse.load(path, eqx.nn.Linear(2, 2, key=KEY))


def test_sparse_layer_with_a_function_in_it_is_not_saved(path):
    exported = eqsparse.to_bcoo(pruned())
    with RAISES(match=r"`save\(tree=...\)`.*sparse layers. Got function at `layers.1.layer.weights.weight.values`"):
        eqsparse.save(path, eqx.tree_at(lambda m: m.layers[1].layer.weight.values, exported, lambda x: x))
    assert not path.exists()


# A `like` that does not fit.

MISFITS = {
    "width": (mlp(), lambda: mlp(7), "float32[7, 3] at `layers.0.weight`, where the file holds float32[6, 3]"),
    "missing layer": (mlp(), lambda: mlp(depth=2), "Linear at `layers.2`, where the file holds nothing"),
    "extra layer": (mlp(), lambda: mlp(depth=0), "nothing at `layers.1`, where the file holds Linear"),
    "dtype": (mlp(), lambda: mlp(dtype=jnp.bfloat16), "bfloat16[6, 3] at `layers.0.weight`, where the file holds float32[6, 3]"),
    "no bias": (mlp(), lambda: mlp(use_bias=False), "None at `layers.0.bias`, where the file holds float32[6]"),
    "bias": (mlp(use_bias=False), mlp, "float32[6] at `layers.0.bias`, where the file holds None"),
    "not masked": (pruned(), mlp, "Linear at `layers.0`, where the file holds eqsparse.MaskedLinear"),
    "masked": (mlp(), pruned, "eqsparse.MaskedLinear at `layers.0`, where the file holds Linear"),
    "packed": (pruned(), lambda: pruned(packed=True), "uint8[6, 1] at `layers.0.masks.weight.bits`, where the file holds bool[6, 3]"),
    "packed width": (
        eqsparse.Mask(jnp.ones((2, 9), bool), packed=True),
        lambda: eqsparse.Mask(jnp.ones((2, 10), bool), packed=True),
        "10 at `last`, where the file holds 9",
    ),
    "plain for exported": (mlp(), lambda: eqsparse.to_bcoo(pruned()), "eqsparse.BCOOLinear at `layers.0`, where the file holds Linear"),
    "exported shape": (eqsparse.to_bcoo(pruned()), lambda: mlp(7), "float32[7, 3] at `layers.0.weight`, where the file holds float32[6, 3]"),
    "exported dtype": (eqsparse.to_bcoo(pruned()), lambda: mlp(dtype=jnp.float16), "float16[6, 3] at `layers.0.weight`, where the file holds float32[6, 3]"),
    "exported bias": (eqsparse.to_bcoo(pruned()), lambda: mlp(use_bias=False), "None at `layers.0.bias`, where the file holds float32[6]"),
    "exported other layer": (
        [eqsparse.to_bcoo(pruned()).layers[0]],
        lambda: [eqx.nn.Conv1d(3, 6, 1, use_bias=False, key=KEY)],
        "float32[6, 3, 1] at `0.weight`, where the file holds float32[6, 3]",
    ),
    "exported for other array": ([eqsparse.to_bcoo(pruned()).layers[0]], lambda: [jnp.ones((6, 3))], "float32[6, 3] at `0`"),
    "padding": (
        eqx.nn.Conv2d(1, 1, 3, padding="SAME", key=KEY),
        lambda: eqx.nn.Conv2d(1, 1, 3, padding="VALID", key=KEY),
        "'VALID' at `padding`, where the file holds 'SAME'",
    ),
    "stride": (
        eqx.nn.Conv2d(1, 1, 3, stride=2, key=KEY),
        lambda: eqx.nn.Conv2d(1, 1, 3, key=KEY),
        "(1, 1) at `stride`, where the file holds (2, 2)",
    ),
    "container": ((jnp.ones(2),), lambda: [jnp.ones(2)], "list at the root, where the file holds tuple"),
    "key": ({"a": 1.0}, lambda: {"b": 1.0}, "nothing at `a`, where the file holds float"),
    "number": ([1.0], lambda: [1], "int at `0`, where the file holds float"),
    "number for array": ([jnp.ones(())], lambda: [1.0], "float at `0`, where the file holds float32[]"),
    "function": ([jnp.ones(2)], lambda: [jnp.sin], "at `0`, where the file holds float32[2]"),
    "array for function": ([jnp.sin], lambda: [jnp.ones(2)], "float32[2] at `0`, where the file holds "),
    "key impl": ([KEY], lambda: [jax.random.key(0, impl="rbg")], "key<rbg>[] at `0`, where the file holds key<fry>[]"),
    "raw key": ([KEY], lambda: [jax.random.PRNGKey(0)], "uint32[2] at `0`, where the file holds key<fry>[]"),
    "empty": (jnp.ones(2), lambda: None, "None at the root, where the file holds float32[2]"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_named(path, name):
    tree, make, message = MISFITS[name]
    eqsparse.save(path, tree)
    for like in (make(), struct(make())):
        with RAISES(
            match=re.escape(f"`load(like=...)` must fit the file. Got {message}" if message[0].isupper() else message)
        ):
            eqsparse.load(path, like)


def test_static_fields_of_another_version_are_let_pass(path):
    eqsparse.save(path, mlp())
    header = header_of(path)
    header["tree"]["static"]["from_the_future"] = 3
    del header["tree"]["static"]["depth"]
    rewrite(path, header)
    same(eqsparse.load(path, mlp()), mlp())


# Files that are not whole.


def header_of(path):
    data = path.read_bytes()
    return json.loads(data[48 : 48 + binary.unpack("<Q", data[8:16])[0]])


def rewrite(path, header):
    """The file with another header, its checksum right."""
    data = path.read_bytes()
    path.write_bytes(container._encode(header) + data[48 + binary.unpack("<Q", data[8:16])[0] :])


@pytest.fixture
def small(path):
    tree = [jnp.arange(20, dtype=jnp.float32), {"a": jnp.array([True, False, True]), "b": 0.5}]
    eqsparse.save(path, tree)
    return tree, path.read_bytes()


def test_the_file_is_as_described(path, small):
    data = path.read_bytes()
    length = binary.unpack("<Q", data[8:16])[0]
    assert data[:8] == b"\x89EQS\r\n\x1a\n" and (48 + length) % 64 == 0
    header = header_of(path)
    assert header["format"] == 1 and [a["path"] for a in header["arrays"]] == ["0", "1.a"]
    assert [a["offset"] for a in header["arrays"]] == [0, 128] and len(data) == 48 + length + 192
    np.testing.assert_array_equal(np.frombuffer(data[48 + length :][:80], "<f4"), np.arange(20))
    assert data[48 + length + 128 :][:3] == b"\1\0\1"


def test_truncated_anywhere(path, small):
    tree, data = small
    for end in [*range(0, 64), *range(64, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:end])
        with RAISES(match="whole file. Got one that is truncated"):
            eqsparse.load(path, tree)


def test_a_bit_flipped_anywhere(path, small):
    tree, data = small
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with RAISES(match="corrupted|another kind" if place < 16 else "is corrupted"):
            eqsparse.load(path, tree)
    with RAISES(match="array at `1.a` does not match"):
        eqsparse.load(path, tree)


def test_bytes_added_or_exchanged(path, small):
    tree, data = small
    path.write_bytes(data + b"\0")
    with RAISES(match="is corrupted: it has"):
        eqsparse.load(path, tree)
    path.write_bytes(data[:-192] + data[-64:] + data[-192:-64])
    with RAISES(match="array at `0` does not match"):
        eqsparse.load(path, tree)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 a zip", b"\x93NUMPY", b"\x80\x04N.", b"x" * 500, b"\x89EQX\r\n\x1a\n"]
)
def test_foreign_files(path, content):
    path.write_bytes(content)
    with RAISES(match="that `eqsparse.save` has written"):
        eqsparse.load(path, mlp())


def test_mangled_line_ends_are_told(path, small):
    tree, data = small
    path.write_bytes(data.replace(b"\r\n", b"\n"))
    with RAISES(match="another kind"):
        eqsparse.load(path, tree)


def test_a_later_format_is_told(path, small):
    header = header_of(path)
    rewrite(path, {**header, "format": 2, "eqsparse": "9.1"})
    with RAISES(match="format 1. Got format 2, written by eqsparse 9.1"):
        eqsparse.load(path, small[0])


def test_an_unknown_field_of_a_sparse_layer_is_told(path):
    eqsparse.save(path, eqsparse.to_bcoo(pruned()))
    header = header_of(path)
    linear = header["tree"]["children"][0][1]["children"][0][1]
    layer = linear["children"][0][1]
    layout = dict(layer["children"])["weights"]["children"][0][1]
    for record, name in ((linear, "BCOOLinear"), (layer, "SparseLayer"), (layout, "BCSRLayout")):
        record["static"]["order"] = 2
        rewrite(path, header)
        with RAISES(match=rf"this version of eqsparse knows. Got {name} with other fields \['order'\] at `layers.0"):
            eqsparse.load(path, mlp())
        del record["static"]["order"]


# Headers that somebody has made by hand: their checksums are right.


def forged(header):
    """The header with each of its parts left out, and replaced by things of other kinds, in turn."""
    junk = [None, -1, 2**70, "?", [[]], {}, {"other": "x"}]

    def spoil(node):
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            whole = node[key]
            for bad in junk:
                node[key] = bad
                yield
            node[key] = whole
            yield from spoil(whole)
            if isinstance(node, dict):
                rest = dict(node)
                del node[key]
                yield
                node.clear()
                node.update(rest)
            else:
                del node[key]
                yield
                node.insert(key, whole)

    yield from spoil(header)


def sparse_linear():
    return eqsparse.MaskedLinear(8, 4, mask=np.eye(4, 8, dtype=bool), key=KEY)


FORGED = {
    "training": lambda: ({"m": sparse_linear(), "state": (jnp.float32(0.5), [1.5, True, KEY])}, None),
    "exported": lambda: (eqsparse.to_bcoo(sparse_linear()), eqx.nn.Linear(8, 4, key=KEY)),
}


def load_or_be_told(path, header, like):
    """Whether an error was raised, which must be one of ours."""
    rewrite(path, header)
    try:
        eqsparse.load(path, like)
    except ValueError as error:
        assert re.match(r"`load\((path|like)=...\)` must ", str(error)), error
        return True
    return False


@pytest.mark.parametrize("name", FORGED)
def test_forged_headers_load_or_are_told(path, name):
    tree, like = FORGED[name]()
    eqsparse.save(path, tree)
    header = header_of(path)
    whole = json.dumps(header)
    told = [load_or_be_told(path, header, tree if like is None else like) for _ in forged(header)]
    assert json.dumps(header) == whole and np.mean(told) > 0.9  # the rest, say the version, has no meaning


@pytest.mark.parametrize("name", LAYOUTS)
def test_forged_layouts_load_or_are_told(path, name):
    mask = np.kron(np.eye(2, 4, dtype=bool) | np.eye(2, 4, 2, dtype=bool), np.ones((2, 2), bool))
    like = np.ones((4, 8), np.float32)
    eqsparse.save(path, LAYOUTS[name].from_dense(like, mask))
    header = header_of(path)
    told = [load_or_be_told(path, header, like) for _ in forged(header["tree"]["static"])]
    assert np.mean(told) > 0.5


def test_forged_headers_name_the_place_and_the_file(path, small):
    tree, _ = small
    header = header_of(path)
    del header["tree"]["children"][1][1]["children"][0][1]["dtype"]
    rewrite(path, header)
    with RAISES(match=rf"a header that `save` does not write: no 'dtype' in `1.a`: {path}"):
        eqsparse.load(path, tree)
    for text in (b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 5000, b"1" * 5000, b"[]", b"null"):
        data = binary.pack("<8sQ32s", container.MAGIC, len(text), hashlib.sha256(text).digest()) + text
        path.write_bytes(data)
        with RAISES(match=rf"a header that .*: {path}"):
            eqsparse.load(path, tree)


def test_random_bytes(path, small):
    tree, data = small
    rng = np.random.default_rng(0)
    for i in range(300):
        start, length = rng.integers(0, len(data), 2)
        noise = rng.bytes(int(length) + 1)
        path.write_bytes([data[:start] + noise, data[:start] + noise + data[start + len(noise) :], noise][i % 3])
        with RAISES(match=r"`load\(path=...\)` must be "):
            eqsparse.load(path, tree)


# Writing: the old file or the new one.


def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["write", "fsync", "replace", "array"])
def test_failure_at_any_stage_leaves_the_old_file(path, tmp_path, monkeypatch, stage):
    eqsparse.save(path, [jnp.zeros(3)])
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    targets = {
        "write": "eqsparse._export._file.container._write_array",
        "fsync": "os.fsync",
        "replace": "os.replace",
        "array": "eqsparse._export._file.files.on_host",
    }
    with monkeypatch.context() as patched:
        patched.setattr(targets[stage], fail)
        with pytest.raises(KeyboardInterrupt):
            eqsparse.save(path, [jnp.ones(3)])
    assert path.read_bytes() == before and left(tmp_path) == ["model.eqs"]
    eqsparse.save(path, [jnp.ones(3)])
    same(eqsparse.load(path, [jnp.zeros(3)]), [jnp.ones(3)])


def test_killed_between_write_and_rename_leaves_the_old_file(path, tmp_path, monkeypatch):
    """A process that dies cannot tidy up; its unfinished file has a name of its own, and another save works."""
    eqsparse.save(path, [jnp.zeros(3)])

    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", die)
        patched.setattr("pathlib.Path.unlink", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            eqsparse.save(path, [jnp.ones(3)])
    same(eqsparse.load(path, [jnp.zeros(3)]), [jnp.zeros(3)])
    assert len(left(tmp_path)) == 2
    roundtrip(path, [jnp.ones(3)])


def test_no_permission_and_no_folder(path, tmp_path, monkeypatch):
    eqsparse.save(path, [jnp.zeros(3)])
    before = path.read_bytes()

    def refuse(*args, **kwargs):
        raise PermissionError

    with monkeypatch.context() as patched:  # root may write everywhere
        patched.setattr("builtins.open", refuse)
        with pytest.raises(PermissionError):
            eqsparse.save(path, [jnp.ones(3)])
    assert path.read_bytes() == before and left(tmp_path) == ["model.eqs"]
    with pytest.raises(FileNotFoundError):
        eqsparse.save(tmp_path / "none" / "model.eqs", [jnp.ones(3)])
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        eqsparse.save(tmp_path / "folder", [jnp.ones(3)])
    assert left(tmp_path) == ["folder", "model.eqs"]
    with pytest.raises(FileNotFoundError):
        eqsparse.load(tmp_path / "none", [jnp.ones(3)])


def test_links_and_modes_stay(path, tmp_path):
    eqsparse.save(path, [jnp.zeros(3)])
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    eqsparse.save(str(link), [jnp.ones(3)])
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    same(eqsparse.load(path, [jnp.zeros(3)]), [jnp.ones(3)])


def test_a_long_name(tmp_path):
    roundtrip(tmp_path / ("n" * 255), [jnp.ones(3)])


# What cannot be saved.


@pytest.mark.own_message
@pytest.mark.parametrize("bad", [3, None, b"model.eqs", open])
def test_path_must_be_one(bad):
    with RAISES(match=r"`save\(path=...\)` must be the path of a file"):
        eqsparse.save(bad, mlp())
    with RAISES(match=r"`load\(path=...\)` must be the path of a file"):
        eqsparse.load(bad, mlp())


@pytest.mark.parametrize(
    "bad", [np.array(["a"]), np.array([None]), np.zeros(2, "datetime64[s]"), np.zeros(2, "i4,f4"), np.str_("a")]
)
def test_arrays_must_hold_numbers(path, bad):
    with RAISES(match=r"`save\(tree=...\)` must hold arrays of numbers. Got dtype .* at `0`"):
        eqsparse.save(path, [bad])
    assert not path.exists()


def test_arrays_must_be_known(path):
    with RAISES(match=r"outside `jax.jit`. Got ShapeDtypeStruct at `layers.0.weight`"):
        eqsparse.save(path, eqx.filter_eval_shape(mlp))
    with RAISES(match=r"outside `jax.jit`. Got .*Tracer at `0`"):
        jax.jit(lambda x: eqsparse.save(path, [x]))(jnp.ones(2))
    assert not path.exists()


def test_one_array_at_a_time(path, monkeypatch):
    """Neither way holds the whole model a second time."""
    alive, most = set(), 0

    def watched(function):
        def run(*args):
            nonlocal most
            array = function(*args)
            alive.add(id(array))
            most = max(most, len(alive))
            weakref.finalize(array, alive.discard, id(array))
            return array

        return run

    monkeypatch.setattr("eqsparse._export._file.files.on_host", watched(lambda leaf: np.array(leaf)))
    monkeypatch.setattr("eqsparse._export._file.files.read_array", watched(container.read_array))
    tree = [jnp.full(1000, i) for i in range(8)]
    eqsparse.save(path, tree)
    assert most <= 2
    most = 0
    same(eqsparse.load(path, tree), tree)
    assert most <= 2


def test_plain_numbers_of_a_pruner_are_compared(tmp_path):
    """A run goes on with the criterion it began with, also one of the user's own that holds a Python number."""

    class Between(eqsparse.AbstractCriterion):
        power: float

        def score(self, weight):
            return jnp.abs(weight) ** self.power

    make = lambda power: eqsparse.GradualPruning(criterion=Between(power), distribution=0.5)
    eqsparse.save(tmp_path / "run", make(0.5))
    assert eqsparse.load(tmp_path / "run", make(0.5)).criterion.power == 0.5
    with pytest.raises(ValueError, match=r"Got 1.0 at `criterion.power`, where the file holds 0.5"):
        eqsparse.load(tmp_path / "run", make(1.0))
