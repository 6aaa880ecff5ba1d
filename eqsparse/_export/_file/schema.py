"""What a header must look like. A checksum tells that it is as it was written, not that it was written by `save`."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._sites import join
from .outline import from_plain, number_from, Record

_FIELDS = {"format": int, "eqsparse": str, "tree": dict, "arrays": list}
_ENTRY = {"path": str, "dtype": str, "shape": list, "offset": int, "sha256": str}
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_AXES = 32  # of NumPy's arrays
_LARGEST = 2**56  # numbers in an array, and more than a file will hold


class Malformed(Exception):
    """What is wrong with a header."""


def check(header: Any) -> None:
    """Raises unless the header has all it must have, and its tree is one that `save` could have written."""
    _has(header, _FIELDS, "the header")
    for i, one in enumerate(header["arrays"]):
        where = f"array {i}"
        _has(one, _ENTRY, where)
        _check_array(one, where)
        if not _SHA256.fullmatch(one["sha256"]):
            raise Malformed(f"checksum {one['sha256']!r} of {where}")
    unseen = set(range(len(header["arrays"])))
    _check_record(header["tree"], header["arrays"], unseen, "")
    if unseen:
        raise Malformed(f"no place in the tree for array {min(unseen)}")


def _check_record(record: Any, arrays: list[Record], unseen: set[int], path: str) -> None:
    place = f"`{path}`" if path else "the root"
    kind = next(iter(record), None) if isinstance(record, dict) else None
    if kind == "node":
        _has(record, {"node": str, "static": dict, "children": list}, place)
        for name, data in record["static"].items():
            _check_plain(data, join(path, name))
        for child in record["children"]:
            if not (isinstance(child, list) and len(child) == 2 and isinstance(child[0], str)):
                raise Malformed(f"a child that is no pair of name and record at {place}")
            _check_record(child[1], arrays, unseen, join(path, child[0]))
    elif kind == "array":
        _has(record, {"array": int, "dtype": str, "shape": list, **({"key": str} if "key" in record else {})}, place)
        if record["array"] not in unseen:
            raise Malformed(f"array {record['array']} at {place}, which is none of {len(arrays)} or has a place")
        unseen.remove(record["array"])
        entry = arrays[record["array"]]
        if (entry["dtype"], entry["shape"]) != _stored_as(record, place):
            raise Malformed(
                f"{record['dtype']}{record['shape']} at {place}, stored as {entry['dtype']}{entry['shape']}"
            )
    elif kind == "number":
        _has(record, {"number": str, "value": str}, place)
        _parsed(lambda: number_from(record), f"the number {record['value']!r} at {place}")
    elif kind == "other":
        _has(record, {"other": str}, place)
    else:
        raise Malformed(f"no node, array, number or other at {place}")


def _stored_as(record: Record, place: str) -> tuple[str, list[int]]:
    """Dtype and shape of the array in the file for a record of the tree: of random keys, the numbers behind them."""
    if "key" not in record:
        _check_array(record, place)
        return record["dtype"], record["shape"]
    _check_shape(record, place)
    what = f"random keys of {record['key']!r} at {place}"
    one = _parsed(lambda: jax.eval_shape(lambda: jax.random.key(0, impl=record["key"])), what)
    if str(one.dtype) != record["dtype"]:
        raise Malformed(what)
    data = jax.eval_shape(jax.random.key_data, one)
    return data.dtype.name, [*record["shape"], *data.shape]


def _check_plain(data: Any, path: str) -> None:
    if type(data) in (type(None), bool, int, str):
        return
    kind = next(iter(data), None) if isinstance(data, dict) and len(data) == 1 else None
    value = data[kind] if kind is not None else None
    if kind in ("list", "tuple", "dict") and isinstance(value, list):
        if kind == "dict" and not all(isinstance(v, list) and len(v) == 2 and isinstance(v[0], str) for v in value):
            raise Malformed(f"a dict that is no list of pairs at `{path}`")
        for one in value:
            _check_plain(one[1] if kind == "dict" else one, path)
    elif kind in ("float", "dtype") and isinstance(value, str):
        _parsed(lambda: from_plain(data), f"the {kind} {value!r} at `{path}`")
    elif not (kind == "other" and isinstance(value, str)):
        raise Malformed(f"no plain data at `{path}`")


def _has(record: Any, fields: dict[str, type], where: str) -> None:
    if not isinstance(record, dict):
        raise Malformed(f"{type(record).__name__} in the place of {where}")
    for name in [*fields, *record]:
        if name not in record:
            raise Malformed(f"no {name!r} in {where}")
        if name not in fields:
            raise Malformed(f"an unknown {name!r} in {where}")
        if type(record[name]) is not fields[name]:
            raise Malformed(f"{name!r} of type {type(record[name]).__name__} in {where}")


def _check_array(one: Record, where: str) -> None:
    _check_shape(one, where)
    dtype = _parsed(lambda: jnp.dtype(one["dtype"]), f"dtype {one['dtype']!r} of {where}")
    if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_) or dtype.name != one["dtype"]:
        raise Malformed(f"dtype {one['dtype']!r} of {where}")


def _check_shape(one: Record, where: str) -> None:
    sizes = one["shape"]
    whole = all(type(size) is int and size >= 0 for size in sizes)
    if not whole or len(sizes) > _MOST_AXES or math.prod(max(size, 1) for size in sizes) > _LARGEST:
        raise Malformed(f"shape {one['shape']} of {where}")


def _parsed(parse: Any, what: str) -> Any:
    try:
        return parse()
    except (TypeError, ValueError, KeyError):
        raise Malformed(what) from None
