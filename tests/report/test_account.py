"""The report on an exported model: layouts, bytes before and after, and the share of the minimum."""

import json
import math

import equinox as eqx
import jax
import numpy as np

import eqsparse
from eqsparse import export, nbytes, report


def test_account_of_an_exported_model():
    rng = np.random.default_rng(0)
    masks = [rng.random((32, 64)) < 0.3, rng.random((16, 32)) < 0.9]
    key = jax.random.key(0)
    layers = [
        eqsparse.MaskedLinear(64, 32, mask=masks[0], key=key),
        eqsparse.MaskedLinear(32, 16, mask=masks[1], key=key),
        eqx.nn.LayerNorm(16),
    ]
    model = export({"layers": layers}, {"*.0.weight": "bcsr", "*.1.weight": "dense"})
    found = report(model)
    first, second = found.rows
    kept = int(masks[0].sum())
    minimum = kept * 4 + math.ceil(math.log2(math.comb(32 * 64, kept)) / 8)
    assert first == {
        "path": "layers.0.weight",
        "shape": (32, 64),
        "layout": "bcsr",
        "reason": "",
        "size": 2048,
        "kept": kept,
        "sparsity": 1 - kept / 2048,
        "bytes_dense": 8192,
        "bytes_exported": kept * 6 + 33 * 4,  # columns in 16 bits
        "bytes_minimum": minimum,
        "of_minimum": (kept * 6 + 132) / minimum,
    }
    assert (second["layout"], second["reason"], second["kept"]) == ("dense", "asked for", int(masks[1].sum()))
    assert found.total["other_bytes"] == (32 + 16 + 16 + 16) * 4
    assert found.total["model_bytes_exported"] == nbytes(model)
    assert found.total["model_bytes_dense"] == 8192 + 2048 + 320
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "path",
        "shape",
        "layout",
        "kept",
        "sparsity",
        "dense",
        "exported",
        *["of"] * 1,
        "dense",
        "of",
        "minimum",
    ]
    assert "dense (asked for)" in lines[3] and lines[2].startswith("layers.0.weight  (32, 64)  bcsr")
    assert lines[-1].startswith("whole model") and max(map(len, lines)) <= 120
    json.dumps(found.to_dict())
    np.testing.assert_array_equal(found.corners["layers.0.weight"], masks[0])


def test_stacks_cells_and_layers_within_a_masked_module_are_counted():
    stack = eqsparse.sparsify(
        eqx.filter_vmap(lambda key: eqx.nn.Conv1d(4, 8, 3, key=key))(jax.random.split(jax.random.key(0), 2))
    )
    cell = eqsparse.sparsify(eqx.nn.GRUCell(8, 4, key=jax.random.key(0)))
    model = [stack, cell]
    rng = np.random.default_rng(0)
    masks = {path: rng.random(mask.shape) < 0.2 for path, mask in eqsparse.get_masks(model).items()}
    model = eqsparse.set_masks(model, masks)
    found = report(export(model))
    assert {row["path"]: row["kept"] for row in found.rows} == {path: int(m.sum()) for path, m in masks.items()}
    assert found.rows[0]["shape"] == (2, 8, 4, 3)


def test_models_of_to_bcoo_too():
    mask = np.random.default_rng(0).random((8, 16)) < 0.3
    model = eqsparse.to_bcoo([eqsparse.MaskedLinear(16, 8, mask=mask, key=jax.random.key(0))])
    found = report(model)
    assert found.rows[0]["kept"] == mask.sum() and found.rows[0]["bytes_exported"] == mask.sum() * 6 + 9 * 4
    assert found.total["model_bytes_exported"] == nbytes(model)


def test_layers_without_weights():
    sizes = [(0, 5), (5, 0)]
    found = report(export([eqsparse.MaskedLinear(i, o, key=jax.random.key(0)) for i, o in sizes]))
    assert [(row["shape"], row["kept"], row["bytes_exported"]) for row in found.rows] == [
        ((5, 0), 0, 0),
        ((0, 5), 0, 0),
    ]
