import dataclasses
import json
import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse._export import to_bcoo
from eqsparse._layers import Masked, MaskedConv2d, MaskedGRUCell, MaskedLinear
from eqsparse._mask import Mask
from eqsparse._model import materialise, nbytes, sparsify
from eqsparse._report import Report, report
from eqsparse._report.rows import count_by_slice, totals
from eqsparse._report.structure import structure_of
from eqsparse._report.table import in_percent, in_units, shorten, table

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


class Net(eqx.Module):
    layers: list
    norm: eqx.nn.LayerNorm

    def __init__(self, mask, packed):
        first = eqx.nn.Linear(8, 6, dtype=jnp.bfloat16, key=KEY)
        self.layers = [
            MaskedLinear.from_layer(first, mask, packed),
            eqx.filter_jit(MaskedConv2d)(3, 4, 3, key=KEY, packed=packed),
        ]
        self.norm = eqx.nn.LayerNorm(5)


def random_mask(shape, kept, seed=0):
    """A mask without pattern that keeps `kept` entries."""
    flat = np.arange(math.prod(shape)) < kept
    return np.random.default_rng(seed).permutation(flat).reshape(shape)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_and_totals_by_hand(packed):
    model = Net(jnp.asarray(random_mask((6, 8), 10)), packed)
    found = report(model)
    linear, conv = found.rows
    assert linear == {
        "path": "layers.0.weight",
        "shape": (6, 8),
        "stack": (),
        "structure": "unstructured",
        "size": 48,
        "kept": 10,
        "sparsity": 38 / 48,
        "smallest_slice": 10,
        "bytes_dense": 48 * 2,
        "bytes_masked": 48 * 2 + (6 if packed else 48),
        "bytes_exported": 10 * (2 + 2) + 7 * 4,
    }
    assert (conv["path"], conv["shape"], conv["structure"]) == ("layers.1.weight", (4, 3, 3, 3), "dense")
    assert (conv["kept"], conv["size"], conv["sparsity"]) == (108, 108, 0.0)
    # The last axis, of length 3, is packed into one byte.
    assert conv["bytes_masked"] == 432 + (36 if packed else 108)
    assert conv["bytes_exported"] == conv["bytes_dense"] == 432

    # Biases: 6 of bfloat16, 4 of float32; norm: 5 and 5 of float32.
    masks = 42 if packed else 156
    assert found.total == {
        "sites": 2,
        "size": 156,
        "kept": 118,
        "sparsity": 38 / 156,
        "bytes_dense": 528,
        "bytes_masked": 528 + masks,
        "bytes_exported": 68 + 432,
        "other_size": 20,
        "other_bytes": 68,
        "model_size": 176,
        "model_bytes_dense": 596,
        "model_bytes_masked": 596 + masks,
        "model_bytes_exported": 568,
    }
    assert found.total["model_bytes_masked"] == nbytes(model)
    assert found.total["model_bytes_dense"] == nbytes(materialise(model))


def test_plain_model_is_dense():
    model = eqx.nn.MLP(5, 2, 3, 1, key=KEY)
    found = report(model)
    assert [row["path"] for row in found.rows] == ["layers.0.weight", "layers.1.weight"]
    assert [row["structure"] for row in found.rows] == ["dense", "dense"]
    assert [row["kept"] for row in found.rows] == [15, 6]
    assert found.total["sparsity"] == 0
    assert found.total["bytes_dense"] == found.total["bytes_masked"] == found.total["bytes_exported"] == 84
    assert found.total["other_size"] == 5
    assert found.total["model_bytes_masked"] == nbytes(model) == 104


def test_partly_masked_model_counts_the_rest_as_other():
    model = sparsify(eqx.nn.MLP(5, 2, 3, 1, key=KEY), "layers.1.*")
    found = report(model)
    assert [row["path"] for row in found.rows] == ["layers.1.weight"]
    assert (found.total["size"], found.total["other_size"]) == (6, 20)
    assert found.total["model_bytes_masked"] == nbytes(model)


def test_plain_pytree():
    found = report({"l0": {"kernel": jnp.ones((3, 4), jnp.float16), "bias": jnp.ones(4)}})
    assert [(row["path"], row["bytes_dense"]) for row in found.rows] == [("l0.kernel", 24)]
    assert (found.total["other_size"], found.total["other_bytes"]) == (4, 16)


@pytest.mark.parametrize("packed", [False, True])
def test_stack(packed):
    layers = eqx.filter_vmap(lambda key: MaskedLinear(8, 4, key=key, packed=packed))(jax.random.split(KEY, 3))
    dense = np.stack([np.ones((4, 8), bool), random_mask((4, 8), 5), random_mask((4, 8), 20)])
    stacked = eqx.tree_at(lambda m: m.masks["weight"], layers, Mask(jnp.asarray(dense), packed=packed))
    (row,) = report(stacked).rows
    assert (row["shape"], row["stack"]) == ((3, 4, 8), (3,))
    assert (row["size"], row["kept"], row["smallest_slice"]) == (96, 57, 5)
    assert row["structure"] == "unstructured"
    assert row["bytes_exported"] == 3 * (32 * 6 + 5 * 4)  # padded to the fullest slice
    text = str(report(stacked))
    assert "3 × (4, 8)" in text
    assert "least slice" in text


class Tied(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self):
        pair = (eqx.nn.Linear(8, 8, use_bias=False, key=KEY), eqx.nn.Linear(8, 8, use_bias=False, key=KEY))
        self.shared = eqx.nn.Shared(pair, where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight)


class Doubled(eqx.nn.Linear):
    pass


def test_bytes_exported_are_those_of_the_exported_model():
    linear = MaskedLinear(8, 6, key=KEY, mask=jnp.asarray(random_mask((6, 8), 10)), packed=True)
    half = MaskedLinear(8, 6, dtype=jnp.bfloat16, key=KEY, mask=jnp.asarray(random_mask((6, 8), 12)))
    layers = eqx.filter_vmap(lambda key: MaskedLinear(8, 4, key=key))(jax.random.split(KEY, 3))
    dense = jnp.stack([jnp.asarray(random_mask((4, 8), kept)) for kept in (0, 9, 5)])
    model = {
        "linear": linear,
        "half": half,
        "stack": eqx.tree_at(lambda m: m.masks["weight"], layers, Mask(dense)),
        "conv": MaskedConv2d(3, 4, 3, key=KEY),
        "normed": eqx.nn.WeightNorm(linear),
        "subclass": MaskedLinear.from_layer(Doubled(8, 6, key=KEY)),
        "tied": sparsify(Tied()),
    }
    found = report(model)
    exported = {row["path"]: row["bytes_exported"] for row in found.rows}
    assert exported["half.weight"] == 12 * 4 + 7 * 4
    assert exported["stack.weight"] == 3 * (9 * 6 + 5 * 4)
    assert exported["normed.layer.weight"] == 48 * 4 + 6  # stays masked
    assert exported["subclass.weight"] == 48 * 4
    assert sum(size for path, size in exported.items() if path.startswith("tied")) == 64 * 4
    assert found.total["model_bytes_exported"] == nbytes(to_bcoo(model))
    assert found.total["model_bytes_masked"] == nbytes(model)


def test_cells_and_named_fields():
    class Attention(eqx.Module):
        wq: jax.Array
        scale: jax.Array

    cell = MaskedGRUCell(4, 5, key=KEY)
    named = Masked(Attention(jnp.ones((16, 16)), jnp.ones(3)), "wq", "scale", mask={"scale": jnp.zeros(3, bool)})
    found = report([cell, named])
    assert {row["path"]: row["structure"] for row in found.rows} == (
        {"0.weight_ih": "dense", "0.weight_hh": "dense", "1.wq": "dense", "1.scale": "empty"}
    )
    # Only linear layers are exported sparse.
    assert found.total["bytes_exported"] == found.total["bytes_dense"]


def two_of_four(rows, columns):
    runs = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]], bool)
    return runs[np.random.default_rng(0).integers(5, size=rows * columns // 4)].reshape(rows, columns)


def blocks(rows, columns, shape):
    """Blocks of a shape, the last ones cut off where they don't fit."""
    tiles = random_mask((-(-rows // shape[0]), -(-columns // shape[1])), 9)
    return np.kron(tiles, np.ones(shape, bool)).astype(bool)[:rows, :columns]


CASES = {
    "dense": np.ones((16, 16), bool),
    "empty": np.zeros((16, 16), bool),
    "unstructured": random_mask((16, 16), 128),
    "2:4": two_of_four(16, 32),
    "1:2": np.where(random_mask((16, 16, 1), 100), [True, False], [False, True]).reshape(16, 32),
    "block 4x4": blocks(32, 32, (4, 4)),
    "block 8x2": blocks(40, 10, (8, 2)),
    "block 4x3": blocks(30, 19, (4, 3)),  # with cut tiles at both edges
    "channel": np.tile(random_mask((16, 1), 7), (1, 8)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_structure_is_seen_through_the_layer(name, packed):
    rows, columns = CASES[name].shape
    model = MaskedLinear(columns, rows, key=KEY, mask=jnp.asarray(CASES[name]), packed=packed)
    (row,) = report(model).rows
    assert row["structure"] == name
    assert row["kept"] == np.count_nonzero(CASES[name])


def test_structure_of_columns_and_of_other_axes():
    assert structure_of(np.tile(random_mask((1, 16), 7), (8, 1))[None], 1) == "channel"
    # Runs that lie along another axis than the contraction are not N:M for the layer.
    assert structure_of(two_of_four(16, 32).T[None], 1) == "unstructured"
    assert structure_of(two_of_four(16, 32).T[None], 0) == "2:4"


def test_structure_of_convolutions():
    kernel = (3, 3)
    runs = np.moveaxis(two_of_four(16 * 9, 32).reshape(16, *kernel, 32), -1, 1)
    assert structure_of(runs[None], 1) == "2:4"
    tiles = blocks(16, 16, (4, 4))[:, :, None, None] & np.ones(kernel, bool)
    assert structure_of(tiles[None], 1) == "block 4x4"
    filters = random_mask((16, 1, 1, 1), 7) & np.ones((16, 4, *kernel), bool)
    assert structure_of(filters[None], 1) == "channel"


def test_structure_must_hold_in_every_slice():
    fits, does_not = two_of_four(16, 32), random_mask((16, 32), 256)
    assert structure_of(np.stack([fits, fits[::-1]]), 1) == "2:4"
    assert structure_of(np.stack([fits, does_not]), 1) == "unstructured"
    channels = [np.tile(random_mask((16, 1), kept), (1, 8)) for kept in (3, 9)]
    assert structure_of(np.stack(channels), 1) == "channel"


@pytest.mark.parametrize(
    "mask",
    [
        np.array([[True, False]]),
        np.array([[True, False, False, True]]),  # 1:2, and so are 4 of the 6 masks with this count
        random_mask((1, 64), 20),  # a row has columns of one weight
        random_mask((64, 1), 20),
        np.array([True, False, True, True]),
        # As many kept in each row, which is no N:M with a single run to a row.
        np.stack([random_mask((32,), 8, seed) for seed in range(16)]),
    ],
)
def test_small_and_trivial_patterns_are_unstructured(mask):
    assert structure_of(mask[None], mask.ndim - 1) == "unstructured"


@pytest.mark.parametrize("shape", [(2, 4), (4, 8), (16, 16), (3, 5, 2, 2)])
def test_random_masks_are_rarely_given_a_structure(shape):
    size = math.prod(shape)
    seen = [structure_of(random_mask(shape, size // 2, seed)[None], 1) for seed in range(300)]
    assert seen.count("unstructured") >= 294


def with_bits(mask, bits):
    return eqx.tree_at(lambda m: m.bits, mask, bits)


@pytest.mark.parametrize("slices", [1, 16])
def test_counts_are_exact_beyond_int32(slices):
    # One line of storage, repeated by a stride of zero: 2³¹ + 2¹⁸ entries in a few kilobytes.
    shape, columns = (slices, (2**17 + 16) // slices), 2**14
    full = with_bits(Mask(jnp.ones(1, bool)), np.broadcast_to(np.True_, (*shape, columns)))
    assert count_by_slice(full, slices) == [(2**31 + 2**18) // slices] * slices

    line = Mask(jnp.arange(columns) >= 3, packed=True)
    packed = with_bits(line, np.broadcast_to(np.asarray(line.bits), (*shape, columns // 8)))
    assert count_by_slice(packed, slices) == [shape[1] * (columns - 3)] * slices
    assert sum(count_by_slice(packed, slices)) == (2**17 + 16) * (2**14 - 3)


def test_totals_are_exact_beyond_int32():
    row = {
        "path": "embedding.weight",
        "shape": (2**20, 2**13),
        "stack": (),
        "structure": "unstructured",
        "size": 2**33,
        "kept": 2**32 + 1,
        "sparsity": (2**32 - 1) / 2**33,
        "smallest_slice": 2**32 + 1,
        "bytes_dense": 2**35,
        "bytes_masked": 2**35 + 2**33,
        "bytes_exported": 2**35,
    }
    total = totals([row] * 3, 2**31, 2**33)
    assert (total["kept"], total["size"]) == (3 * 2**32 + 3, 3 * 2**33)
    assert total["model_bytes_masked"] == 3 * (2**35 + 2**33) + 2**33
    assert total["model_size"] == 3 * 2**33 + 2**31
    text = table([row] * 3, total)
    assert "12,884,901,891" in text
    assert "120.0 GiB" in text


def test_table():
    model = Net(jnp.asarray(random_mask((6, 8), 10)), packed=False)
    found = report(model)
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert lines[0].split() == ["path", "shape", "structure", "kept", "sparsity", "dense", "masked", "exported"]
    assert lines[2].split() == (
        ["layers.0.weight", "(6,", "8)", "unstructured", "10", "79.17%", "96", "B", "144", "B", "68", "B"]
    )
    assert lines[-3].split()[:7] == ["total", "2", "sites", "of", "156", "118", "24.36%"]
    assert lines[-2].split() == ["other", "arrays", "20", "68", "B", "68", "B", "68", "B"]
    assert lines[-1].split() == ["whole", "model", "of", "176", "138", "596", "B", "752", "B", "568", "B"]
    # Right-aligned numbers: all lines with a last column end at the same place.
    assert len({len(line) for line in lines}) == 1


def test_table_fits_its_width_by_shortening_paths():
    model = {"encoder": MaskedLinear(3, 4, key=KEY)}
    for i in range(20):
        model = {f"a_rather_long_name_{i}": model}
    text = str(report(model))
    assert max(map(len, text.splitlines())) == 120
    assert "a_rather_long_name_19" in text
    assert "encoder.weight" in text
    assert "…" in text


def test_units():
    assert [in_units(n) for n in (0, 1023, 1024, 1536, 2**20 - 1, 2**31, 3 * 2**50)] == (
        ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "2.0 GiB", "3.0 PiB"]
    )
    assert [in_percent(s) for s in (0.0, 1e-7, 0.5, 0.9, 1 - 1e-7, 1.0)] == (
        ["0.00%", "<0.01%", "50.00%", "90.00%", ">99.99%", "100.00%"]
    )
    assert [shorten("abcdefghij", width) for width in (10, 5, 4)] == ["abcdefghij", "ab…ij", "ab…j"]


def test_to_dict_is_plain_data():
    found = report(Net(jnp.asarray(random_mask((6, 8), 10)), packed=True))
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["rows"][0]["shape"] == [6, 8]
    assert plain["total"] == found.total
    for record in [*found.rows, found.total]:
        assert all(type(value) in (str, int, float, tuple) for value in record.values())


def test_report_is_frozen_and_no_pytree():
    found = report(MaskedLinear(3, 4, key=KEY))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = []
    assert jax.tree.leaves(found) == [found]
    assert found == report(MaskedLinear(3, 4, key=KEY))
    assert isinstance(found, Report)


@pytest.mark.parametrize("packed", [False, True])
def test_plot(packed, tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    mask = random_mask((6, 8), 10)
    found = report(Net(jnp.asarray(mask), packed))
    figure = found.plot(tmp_path / "report.png")
    assert isinstance(figure, figures.Figure)
    assert (tmp_path / "report.png").stat().st_size > 0
    bars, linear, conv = figure.get_axes()
    assert [bar.get_width() for bar in bars.patches] == [10, 108, 38, 0]
    assert np.array_equal(linear.images[0].get_array(), mask)
    assert conv.images[0].get_array().shape == (4, 27)

    axes = figures.Figure().subplots()
    assert found.plot(axes) is axes.figure
    assert [bar.get_width() for bar in axes.patches] == [10, 108, 38, 0]
    with pytest.raises(ValueError, match=r"`Report.plot\(target=...\)` must be a path, .* Got 3"):
        found.plot(3)


def test_plot_of_stacks_shows_the_first_layer():
    pytest.importorskip("matplotlib.figure")
    layers = eqx.filter_vmap(lambda key: MaskedLinear(100, 70, key=key, packed=True))(jax.random.split(KEY, 2))
    dense = np.stack([random_mask((70, 100), 700, seed) for seed in (1, 2)])
    stacked = eqx.tree_at(lambda m: m.masks["weight"], layers, Mask(jnp.asarray(dense), packed=True))
    _, image = report(stacked).plot().get_axes()
    assert np.array_equal(image.images[0].get_array(), dense[0, :64, :64])


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r"pip install eqsparse\[plot\]"):
        report(MaskedLinear(3, 4, key=KEY)).plot()


def test_errors():
    with pytest.raises(ValueError, match=r"`report\(model=...\)` must contain a weight .* Got LayerNorm"):
        report(eqx.nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"`report\(model=...\)` must .* Got dict"):
        report({"bias": jnp.ones(3)})

    @eqx.filter_jit
    def traced(model):
        report(model)

    with pytest.raises(ValueError, match=r"`report\(model=...\)` must hold arrays, not tracers"):
        traced(MaskedLinear(3, 4, key=KEY))


def test_a_layer_without_inputs():
    rows = report(MaskedLinear(0, 4, key=KEY)).rows
    assert [(row["size"], row["kept"]) for row in rows] == [(0, 0)]
