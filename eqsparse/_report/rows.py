"""The numbers of a report: a row for each site, and their totals."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree

from .._mask import Mask
from .._sites import Site
from .exported import exported_bytes, Form
from .operations import Operations
from .structure import structure_of

Row = dict[str, Any]

_BYTES = ("bytes_dense", "bytes_masked", "bytes_exported")


def row_of(site: Site, form: Form) -> Row:
    """The row of one site, which `to_bcoo` gives the form."""
    size = math.prod(site.weight.shape)
    kept = kept_by_slice(site)
    dense = size * site.weight.dtype.itemsize
    masked = dense + (0 if site.mask is None else _nbytes(site.mask.bits))
    return {
        "path": site.path,
        "shape": tuple(site.weight.shape),
        "stack": site.stack,
        "structure": _structure(site, sum(kept), size),
        "size": size,
        "kept": sum(kept),
        "sparsity": _sparsity(sum(kept), size),
        "smallest_slice": min(kept, default=0),
        "bytes_dense": dense,
        "bytes_masked": masked,
        "bytes_exported": exported_bytes(site, kept, form, dense, masked),
    }


def totals(rows: Iterable[Row], other_size: int, other_bytes: int) -> Row:
    """Sums over the sites; `other_...`: of the arrays that are no site's; `model_...`: both together."""
    rows = list(rows)
    size, kept = (sum(row[name] for row in rows) for name in ("size", "kept"))
    sums = {name: sum(row[name] for row in rows) for name in _BYTES}
    return {
        "sites": len(rows),
        "size": size,
        "kept": kept,
        "sparsity": _sparsity(kept, size),
        **sums,
        "other_size": other_size,
        "other_bytes": other_bytes,
        "model_size": size + other_size,
        **{f"model_{name}": count + other_bytes for name, count in sums.items()},
    }


def with_operations(rows: list[Row], total: Row, found: Operations) -> tuple[list[Row], Row]:
    """The rows and totals with operations: of the dense weights, and of those that are kept."""
    rows = [row | _operations(found.by_path[row["path"]], row["kept"], row["size"]) for row in rows]
    sums = {name: sum(row[name] for row in rows) for name in ("operations_dense", "operations_effective")}
    model = {f"model_{name}": count + found.other for name, count in sums.items()}
    return rows, total | sums | {"operations_other": found.other} | model


def _operations(dense: int, kept: int, size: int) -> Row:
    # Each weight is used as often as the others, so this divides.
    return {"operations_dense": dense, "operations_effective": dense * kept // size if size else 0}


def kept_by_slice(site: Site) -> list[int]:
    """How many weights are kept in each layer of the stack (one number for a single layer)."""
    return [site.slice_size] * site.slices if site.mask is None else count_by_slice(site.mask, site.slices)


def count_by_slice(mask: Mask, slices: int) -> list[int]:
    """How many entries each slice of a mask keeps, in Python's integers: exact at any size."""
    bits = np.asarray(mask.bits)
    bits = bits.reshape(slices, bits.size // max(slices, 1))
    if mask.packed:
        return [int(np.bitwise_count(one).sum(dtype=np.int64)) for one in bits]
    return [int(np.count_nonzero(one)) for one in bits]


def all_arrays(model: PyTree) -> tuple[int, int]:
    """How many floating-point numbers a model has, and the bytes of all its arrays, masks too."""
    arrays = [x for x in jax.tree.leaves(model) if isinstance(x, jax.Array | np.ndarray)]
    size = sum(math.prod(x.shape) for x in arrays if jnp.issubdtype(x.dtype, np.inexact))
    return size, sum(_nbytes(x) for x in arrays)


def corner(site: Site, length: int) -> Bool[np.ndarray, "rows columns"]:
    """The first rows and columns of the mask of the site's first layer, kernel axes flattened into columns."""
    shape = (*site.core[:1], math.prod(site.core[1:])) if len(site.core) > 1 else (1, site.slice_size)
    if site.mask is None or site.weight.size == 0:
        return np.ones([min(n, length) for n in shape], bool)
    first = np.asarray(site.mask.bits)[(0,) * len(site.stack)]
    rows = first[:length] if len(site.core) > 1 else first
    return _unpacked(rows, site.mask).reshape(-1, shape[1])[:, :length].copy()


def _structure(site: Site, kept: int, size: int) -> str:
    if site.mask is None or kept in (0, size):  # nothing to look for, so the mask is not unpacked
        return "dense" if kept == size else "empty"
    mask = _unpacked(np.asarray(site.mask.bits), site.mask)
    return structure_of(mask.reshape(site.slices, *site.core), site.contraction_axis)


def _unpacked(bits: np.ndarray, mask: Mask) -> Bool[np.ndarray, "..."]:
    return np.unpackbits(bits, axis=-1, count=mask.last).view(bool) if mask.packed else bits


def _sparsity(kept: int, size: int) -> float:
    return (size - kept) / size if size else 0.0


def _nbytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
