"""What `export` has saved: a row for each weight of an exported model."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Bool, PyTree

from .._export import AbstractLayout, BCOOLinear, SparseLayer
from .._model import nbytes
from .._sites import join, path_of
from .table import aligned, in_percent, in_units

Row = dict[str, Any]
Exported = tuple[str, AbstractLayout, tuple[int, ...]]  # path, what stores the weight, its shape


def exported_weights(model: PyTree) -> list[Exported]:
    """The weights of the sparse layers of a model, in the order of its leaves."""
    return list(_weights(model, ""))


def account_rows(weights: Sequence[Exported]) -> list[Row]:
    """A row for each weight."""
    return [_row(*weight) for weight in weights]


def account_total(rows: Sequence[Row], model: PyTree) -> Row:
    """Sums over the rows; `other_bytes` of all other arrays; `model_...`: both together."""
    sums = {name: sum(row[name] for row in rows) for name in ("size", "kept", *_BYTES)}
    other = nbytes(model) - sums["bytes_exported"]
    return {
        "sites": len(rows),
        **sums,
        "sparsity": _sparsity(sums["kept"], sums["size"]),
        "of_minimum": _ratio(sums["bytes_exported"], sums["bytes_minimum"]),
        "other_bytes": other,
        **{f"model_{name}": sums[name] + other for name in _BYTES},
    }


def account_table(rows: Sequence[Row], total: Row) -> str:
    """The rows and their totals in aligned columns."""
    head = ["path", "shape", "layout", "kept", "sparsity", "dense", "exported", "of dense", "of minimum"]
    body = [[row["path"], str(row["shape"]), _layout(row), *_numbers(row)] for row in rows]
    sites = f"{total['sites']} site{'' if total['sites'] == 1 else 's'}"
    other = in_units(total["other_bytes"])
    whole = [in_units(total["model_bytes_dense"]), in_units(total["model_bytes_exported"])]
    share = in_percent(_ratio(total["model_bytes_exported"], total["model_bytes_dense"]))
    foot = [
        ["total", sites, "", *_numbers(total)],
        ["other arrays", "", "", "", "", other, other, "", ""],
        ["whole model", "", "", "", "", *whole, share, ""],
    ]
    return aligned(head, body, foot)


def corner_of(layout: AbstractLayout, length: int) -> Bool[np.ndarray, "rows columns"]:
    """The first rows and columns of where the first matrix of a stack stores weights."""
    return _slices(layout)[0, :length, :length]


_BYTES = ("bytes_dense", "bytes_exported", "bytes_minimum")


def _weights(tree: Any, path: str) -> Iterator[Exported]:
    is_exported = lambda x: isinstance(x, SparseLayer | BCOOLinear)
    for keys, node in jtu.tree_flatten_with_path(tree, is_leaf=is_exported)[0]:
        place = ".".join(filter(None, [path, path_of(keys)]))
        if isinstance(node, SparseLayer | BCOOLinear):
            yield from _weights(node.layer, place)
        if isinstance(node, SparseLayer):
            for name, layout in node.weights.items():
                yield join(place, name), layout, (*layout.stack, *node.form(name).core)


def _row(path: str, layout: AbstractLayout, shape: tuple[int, ...]) -> Row:
    kept = [int(count) for count in np.count_nonzero(_slices(layout), axis=(1, 2))]
    size, itemsize = math.prod(shape), layout.values.dtype.itemsize
    minimum = sum(count * itemsize + math.ceil(_mask_bits(math.prod(layout.shape), count) / 8) for count in kept)
    return {
        "path": path,
        "shape": shape,
        "layout": layout.name,
        "reason": getattr(layout, "reason", ""),
        "size": size,
        "kept": sum(kept),
        "sparsity": _sparsity(sum(kept), size),
        "bytes_dense": size * itemsize,
        "bytes_exported": layout.nbytes,
        "bytes_minimum": minimum,
        "of_minimum": _ratio(layout.nbytes, minimum),
    }


def _slices(layout: AbstractLayout) -> Bool[np.ndarray, "slices out_size in_size"]:
    """Where each matrix of the stack stores weights."""
    return layout.mask().reshape(math.prod(layout.stack), *layout.shape)  # a -1 would not do without weights


def _mask_bits(size: int, kept: int) -> float:
    """The entropy of a mask of that size and count: the logarithm of how many there are."""
    log = math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)
    return log / math.log(2)


def _layout(row: Row) -> str:
    return f"{row['layout']} ({row['reason']})" if row["reason"] else row["layout"]


def _numbers(row: Row) -> list[str]:
    return [
        f"{row['kept']:,}",
        in_percent(row["sparsity"]),
        in_units(row["bytes_dense"]),
        in_units(row["bytes_exported"]),
        in_percent(_ratio(row["bytes_exported"], row["bytes_dense"])),
        f"{row['of_minimum']:.2f} ×",
    ]


def _sparsity(kept: int, size: int) -> float:
    return (size - kept) / size if size else 0.0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
