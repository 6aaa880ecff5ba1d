"""What a header says of a tree: its nodes by name, its leaves by kind.

A leaf is an array (an index into the header's table of arrays), a number (its value), or something else, such as
a function: not stored, it comes from the `like` of `load`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ..._check import known
from ..._sites import join, path_of

Record = dict[str, Any]
_NUMBERS = {kind.__name__: kind for kind in (bool, int, float, complex)}


def outline(tree: PyTree) -> tuple[Record, list[Record], list[Any]]:
    """The record of a tree, and its arrays: what the header says of each, and these themselves."""
    entries: list[Record] = []
    arrays: list[Any] = []

    def visit(path: str, node: Any) -> Record:
        record = record_of(node)
        if "array" in record:
            stored = _stored(path, node)
            record["array"] = len(arrays)
            entries.append(entry(path, stored.dtype, stored.shape))
            arrays.append(node)
        if "node" in record:
            children, _ = one_level(node)
            record["static"] = static_fields(node, children or [])
            record["children"] = [[name, visit(join(path, name), child)] for name, child in children or ()]
        return record

    return visit("", tree), entries, arrays


def entry(path: str, dtype: np.dtype, shape: Iterable[int]) -> Record:
    """The header's line on an array, its place and checksum not known yet."""
    return {"path": path, "dtype": dtype.name, "shape": list(shape), "offset": 0, "sha256": "0" * 64}


def record_of(thing: Any) -> Record:
    """The record of one node or leaf, without what is below it."""
    if one_level(thing)[0] is not None:
        return {"node": name_of(thing)}
    if is_array(thing):
        dtype = str(thing.dtype) if is_key(thing) else thing.dtype.name
        key = {"key": str(jax.random.key_impl(thing))} if is_key(thing) and isinstance(thing, jax.Array) else {}
        return {"array": None, "dtype": dtype, "shape": list(thing.shape), **key}
    if type(thing) in _NUMBERS.values():
        return {"number": type(thing).__name__, "value": repr(thing)}
    return {"other": type(thing).__name__}


def name_of(node: Any) -> str:
    """The name of a node's class; nobody else's class has the name of one of eqsparse's."""
    cls = type(node)
    return f"eqsparse.{cls.__name__}" if cls.__module__.startswith("eqsparse.") else cls.__name__


def one_level(tree: Any) -> tuple[list[tuple[str, Any]] | None, Callable[[list[Any]], Any]]:
    """The children of a node by name, and how to put it together again; `None` for a leaf."""
    found, treedef = jtu.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(found) == 1 and found[0][1] is tree:
        return None, treedef.unflatten
    return [(path_of(keys), child) for keys, child in found], treedef.unflatten


def static_fields(node: Any, children: list[tuple[str, Any]]) -> Record:
    """The fields of a module or dataclass that are no children: those that are plain data, and so comparable."""
    if not dataclasses.is_dataclass(node):
        return {}
    names = {name for name, _ in children}
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if hasattr(node, f.name)}
    return {name: plain(value) for name, value in fields.items() if name not in names}


def plain(value: Any) -> Any:
    """Static data in JSON, what it cannot hold by its type's name; `from_plain` is the inverse."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": repr(value)}
    if type(value) is list or isinstance(value, tuple):  # a named one by its fields
        return {"list" if type(value) is list else "tuple": [plain(v) for v in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": [[key, plain(v)] for key, v in value.items()]}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": jnp.dtype(value).name}
    return {"other": type(value).__name__}


def from_plain(data: Any) -> Any:
    """Static data as it was; raises for what JSON could not hold."""
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(from_plain(v) for v in value)
    if kind == "dict":
        return {key: from_plain(v) for key, v in value}
    if kind == "other":
        raise ValueError(f"plain data of a {value}")
    return float(value) if kind == "float" else jnp.dtype(value)


def number_from(record: Record) -> bool | int | float | complex:
    """The Python number in a record."""
    kind = _NUMBERS[record["number"]]
    return record["value"] == "True" if kind is bool else kind(record["value"])


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or stands for one (as `eqx.filter_eval_shape` makes them)."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_key(leaf: Any) -> bool:
    """Whether an array is one of random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def on_host(leaf: Any) -> np.ndarray:
    """The array's numbers, for keys those behind them."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _stored(path: str, leaf: Any) -> Any:
    """Dtype and shape of what `on_host` gives, before anything is copied there; raises if it cannot."""
    if isinstance(leaf, jax.ShapeDtypeStruct) or not known(leaf):
        raise ValueError(
            f"`save(tree=...)` must hold arrays whose numbers are known, and so be called outside `jax.jit`. Got "
            f"{type(leaf).__name__} at `{path}`."
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"`save(tree=...)` must hold arrays that this process sees whole. Got a part at `{path}`.")
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
        raise ValueError(f"`save(tree=...)` must hold arrays of numbers. Got dtype {leaf.dtype} at `{path}`.")
    return leaf
