"""Layouts from the file alone, as the sizes of their arrays are those of the masks they were made from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from beartype.door import is_bearable

from ..._sites import join
from .._layout import LAYOUTS
from .outline import from_plain, number_from, Record

_BY_NAME = {f"eqsparse.{layout.__name__}": layout for layout in LAYOUTS.values()}
"""The classes that are made from a file alone. No other class is ever made from what a file says."""

_CONTAINERS = ("NoneType", "dict", "list", "tuple")


def is_rebuilt(record: Record) -> bool:
    """Whether the file holds one of these here."""
    return record.get("node") in _BY_NAME


def holds_rebuilt(record: Record) -> bool:
    """Whether there is one here or below."""
    return is_rebuilt(record) or any(holds_rebuilt(child) for _, child in record.get("children", ()))


def rebuild(record: Record, array: Callable[[Record], Any], path: str) -> Any:
    """What the record describes; `array` makes its arrays."""
    if "array" in record:
        return array(record)
    if "number" in record:
        return number_from(record)
    if "other" in record:
        raise ValueError(f"{record['other']} at `{path}`")
    children = {name: rebuild(child, array, join(path, name)) for name, child in record["children"]}
    kind = record["node"]
    if kind in _CONTAINERS:
        if kind == "dict":
            return children
        return None if kind == "NoneType" else (list if kind == "list" else tuple)(children.values())
    if not is_rebuilt(record):
        raise ValueError(f"{kind} at `{path}`")
    return _matrix(make(_BY_NAME[kind], children | _static(record, path), path), path)


def _matrix(layout: Any, path: str) -> Any:
    """The layout, once it is sure that its arrays and its shape go together."""
    as_struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    try:
        dense = jax.eval_shape(lambda one: one.to_dense(), jax.tree.map(as_struct, layout))
        fits = dense.shape == (*layout.stack, *layout.shape) and min(dense.shape) >= 0
    except Exception:  # of any kind, from the depths of a layout
        fits = False
    if not fits:
        raise ValueError(f"{type(layout).__name__} that is no matrix at `{path}`")
    return layout


def check_stored(record: Record, path: str = "") -> None:
    """Raises if a sparse layer holds something that `rebuild` could not make."""
    if is_rebuilt(record):
        try:
            rebuild(record, _struct, path)
        except ValueError as error:
            raise ValueError(
                f"`save(tree=...)` must have nothing but arrays and plain data in its sparse layers. Got {error}."
            ) from None
    for name, child in record.get("children", ()):
        check_stored(child, join(path, name))


def _struct(record: Record) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(record["shape"], jnp.dtype(record["dtype"]))


def _static(record: Record, path: str) -> dict[str, Any]:
    found = {}
    for name, data in record["static"].items():
        try:
            found[name] = from_plain(data)
        except ValueError as error:
            raise ValueError(f"{error} at `{join(path, name)}`") from None
    return found


def make(cls: type[eqx.Module], values: dict[str, Any], path: str) -> eqx.Module:
    """An instance with these fields, as when a PyTree is put together: no `__init__` runs."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if set(fields) != set(values):
        raise ValueError(f"{cls.__name__} with other fields {sorted(set(fields) ^ set(values))} at `{path}`")
    for name, value in values.items():
        kind: Any = fields[name].type
        if fields[name].metadata.get("static") and not is_bearable(value, kind):
            raise ValueError(f"{cls.__name__} with `{name}` {value!r} at `{path}`")
    module = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(module, name, value)
    return module
