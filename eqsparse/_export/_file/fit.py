"""What a file holds, laid over the `like` of `load`; or where the two first differ."""

import dataclasses
from itertools import zip_longest
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._layers import AbstractMasked
from ..._sites import join, replace_fields
from ..sparse import Form, SparseLayer
from .outline import from_plain, is_array, name_of, number_from, one_level, Record, record_of, static_fields
from .rebuild import is_rebuilt, make, rebuild, STANDS_FOR


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of the file, not read yet, that takes the place of `like`."""

    record: Record
    like: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.record["shape"])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.record["dtype"])


def fit(record: Record, like: Any, path: str = "") -> Any:
    """`like` with the file's numbers, sparse layers, and places of its arrays (`Stored`) in it."""
    if is_rebuilt(record):
        return _sparse(record, like, path)
    if record.get("node") == f"eqsparse.{SparseLayer.__name__}":
        return _sparse_layer(record, like, path)
    children, unflatten = one_level(like)
    if children is None or "node" not in record:
        return _leaf(record, like, path)
    if record["node"] != name_of(like):
        differ(path, _shown_record(record), shown(like))
    fitted = [fit(there, here, join(path, name)) for name, there, here in _in_pairs(record, children, path)]
    _compare_static(record["static"], static_fields(like, children), path)
    return unflatten(fitted)


def unmasked(record: Record, like: Any) -> Any:
    """`like` without the masks that the file of an exported model does not have any more."""
    if isinstance(like, AbstractMasked) and record.get("node") != name_of(like):
        like = like.layer
    children, unflatten = one_level(like)
    there = record.get("children", ())
    if children is None or len(there) != len(children):
        return like
    return unflatten([unmasked(a, b) for (_, a), (_, b) in zip(there, children, strict=True)])


def shown(thing: Any) -> str:
    """How errors call a part of a tree."""
    return _shown_record(record_of(thing))


def _shown_record(record: Record) -> str:
    if "array" in record:
        return f"{record['dtype']}{record['shape']}"
    kind = next(iter(record.values()))
    return "None" if kind == "NoneType" else kind


def _leaf(record: Record, like: Any, path: str) -> Any:
    here = record_of(like)
    if "array" in record and "array" in here and all(record[name] == here[name] for name in ("dtype", "shape")):
        return Stored(record, like)
    if "number" in record and record["number"] == here.get("number"):
        return number_from(record)
    if "other" in record and "other" in here:
        return like  # a function, say: nothing tells whether two of them are the same
    differ(path, _shown_record(record), shown(like))


def _in_pairs(record: Record, children: list[tuple[str, Any]], path: str) -> list[tuple[str, Record, Any]]:
    pairs, names = [], {name for name, _ in children}
    nothing: tuple[Any, Any] = (None, None)
    for (name, there), (other, here) in zip_longest(record["children"], children, fillvalue=nothing):
        if name is not None and name == other:
            pairs.append((name, there, here))
        elif name is not None and name not in names:
            differ(join(path, name), _shown_record(there), "nothing")
        else:
            differ(join(path, str(other)), "nothing", shown(here))
    return pairs


def _compare_static(there: Record, here: Record, path: str) -> None:
    """Fields on one side only are let pass: another version of a library may have more of them."""
    for name in there:
        if name in here and there[name] != here[name]:
            differ(join(path, name), _value(there[name]), _value(here[name]))


def _sparse_layer(record: Record, like: Any, path: str) -> Any:
    """The layer that `like` is or holds, with the file's layouts in the place of its weights."""
    layer = like.layer if isinstance(like, SparseLayer | AbstractMasked) else like
    parts = dict(record["children"])
    names = [name for name, _ in parts["weights"]["children"]]
    if not all(hasattr(layer, name) for name in names):
        differ(path, _shown_record(record), shown(like))
    weights = {n: _rebuilt(there, join(path, f"weights.{n}")) for n, there in parts["weights"]["children"]}
    forms = tuple((name, Form(*form)) for name, form in from_plain(record["static"]["forms"]))
    for name, form in forms:
        there, here = weights[name], getattr(layer, name)
        shape = (*there.stack, *form.core)
        if is_array(here) and (shape, there.dtype) != (tuple(here.shape), here.dtype):
            differ(join(path, name), f"{jnp.dtype(there.dtype).name}{list(shape)}", shown(here))
    held = fit(parts["layer"], replace_fields(layer, dict.fromkeys(names)), join(path, "layer"))
    return make(SparseLayer, {"layer": held, "weights": weights, "forms": forms}, path)


def _rebuilt(record: Record, path: str) -> Any:
    try:
        return rebuild(record, Stored, path)
    except ValueError as error:
        raise ValueError(
            f"`load(path=...)` must be a file whose sparse layers this version of eqsparse knows. Got {error}."
        ) from None


def _sparse(record: Record, like: Any, path: str) -> Any:
    """The sparse layer or weight that the file holds, once it is sure that it may stand in the place of `like`."""
    built = _rebuilt(record, path)
    _compare_sparse(record, built, like, path)
    return built


def _compare_sparse(record: Record, built: Any, layer: Any, path: str) -> None:
    replaced = STANDS_FOR[type(built)]
    fits = is_array(layer) if replaced is None else isinstance(layer, replaced)
    if not (fits or type(layer) is type(built)):
        differ(path, _shown_record(record), shown(layer))
    there, here = _dense(built), _dense(layer)
    if there is not None and here is not None and (there.shape, there.dtype) != (here.shape, here.dtype):
        differ(path, f"{_shown_record(record)} of {shown(there)}", f"{shown(layer)} of {shown(here)}")
    if replaced is not None:
        _compare_fields(record, built, layer, path)


def _compare_fields(record: Record, built: Any, layer: Any, path: str) -> None:
    """Of the fields that both have; how many weights are kept is the file's to say."""
    children, _ = one_level(layer)
    fields = dict(children or ())
    for name, there in record["children"]:
        if is_rebuilt(there) and name in fields:
            _compare_sparse(there, getattr(built, name), fields[name], join(path, name))
        elif name in fields and type(layer) is not type(built):
            fit(there, fields[name], join(path, name))
    _compare_static(record["static"], static_fields(layer, children or []), path)


def _dense(layer: Any) -> Any:
    """Shape and dtype of the weight, if it is known which that is."""
    if is_array(layer):
        return layer
    if hasattr(layer, "to_dense"):
        return eqx.filter_eval_shape(lambda x: x.to_dense(), jax.tree.map(_struct, layer, is_leaf=_is_stored))
    weight = getattr(layer, "weight", None)
    return weight if is_array(weight) else None


def _is_stored(x: Any) -> bool:
    return isinstance(x, Stored)


def _struct(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if _is_stored(x) else x


def _value(data: Any) -> str:
    try:
        return repr(from_plain(data))
    except ValueError:
        return str(data)


def differ(path: str, there: str, here: str) -> NoReturn:
    place = f"`{path}`" if path else "the root"
    raise ValueError(f"`load(like=...)` must fit the file. Got {here} at {place}, where the file holds {there}.")
