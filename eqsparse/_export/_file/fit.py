"""What a file holds, laid over the `like` of `load`; or where the two first differ."""

import dataclasses
import operator
from itertools import zip_longest
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..._layers import AbstractMasked
from ..._sites import join, replace_fields
from .._layout import AbstractLayout
from ..linear import BCOOLinear
from ..sparse import Form, SparseLayer
from .outline import from_plain, is_array, name_of, number_from, one_level, Record, record_of, static_fields
from .rebuild import is_rebuilt, make, rebuild


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
        return _layout(record, like, path)
    if record.get("node") == "eqsparse.SparseLayer":
        return _sparse_layer(record, like, path)
    if record.get("node") == "eqsparse.BCOOLinear":
        parts = _parts(record, BCOOLinear, path)
        return make(BCOOLinear, {"layer": fit(parts["layer"], _held(like), path)}, path)
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


def _held(like: Any) -> Any:
    return like.layer if isinstance(like, BCOOLinear) else like


def _sparse_layer(record: Record, like: Any, path: str) -> Any:
    """The layer that `like` is or holds, with the file's layouts in the place of its weights."""
    layer = _held(like)
    layer = layer.layer if isinstance(layer, SparseLayer | AbstractMasked) else layer
    parts = _parts(record, SparseLayer, path)
    found = dict(parts["weights"].get("children", ()))
    if not all(hasattr(layer, name) for name in found):
        differ(path, _shown_record(record), shown(like))
    weights = {name: _rebuilt(there, join(path, f"weights.{name}")) for name, there in found.items()}
    forms = _forms(parts["forms"], weights, path)
    for name, form in forms:
        there, here = weights[name], getattr(layer, name)
        shape = (*there.stack, *form.core)
        if is_array(here) and (shape, there.dtype) != (tuple(here.shape), here.dtype):
            differ(join(path, name), f"{jnp.dtype(there.dtype).name}{list(shape)}", shown(here))
    held = fit(parts["layer"], replace_fields(layer, dict.fromkeys(weights)), path)
    return make(SparseLayer, {"layer": held, "weights": weights, "forms": forms}, path)


def _parts(record: Record, cls: type, path: str) -> dict[str, Any]:
    """The fields of one of eqsparse's classes, children as records, static ones as they are in the header."""
    parts = dict(record["children"]) | record["static"]
    fields = {field.name for field in dataclasses.fields(cls)}
    if set(parts) != fields:
        _unknown(f"{cls.__name__} with other fields {sorted(set(parts) ^ fields)} at `{path}`")
    return parts


def _forms(data: Any, weights: dict[str, Any], path: str) -> tuple[tuple[str, Form], ...]:
    """How each layout is its layer's weight, once it is sure that it can be."""
    try:
        forms = tuple((name, Form(tuple(map(operator.index, core)), axis)) for name, (core, axis) in from_plain(data))
        fits = all(form.matrix == weights[name].shape and form.axis in range(len(form.core)) for name, form in forms)
    except (TypeError, ValueError, KeyError, AttributeError):
        fits, forms = False, ()
    if not fits or len(forms) != len(weights):
        _unknown(f"SparseLayer with `forms` {_value(data)} at `{path}`")
    return forms


def _rebuilt(record: Record, path: str) -> Any:
    try:
        return rebuild(record, Stored, path)
    except ValueError as error:
        _unknown(str(error))


def _unknown(what: str) -> NoReturn:
    raise ValueError(f"`load(path=...)` must be a file whose sparse layers this version of eqsparse knows. Got {what}.")


def _layout(record: Record, like: Any, path: str) -> Any:
    """A layout that stands alone, once it is sure that it may take the place of `like`."""
    built = _rebuilt(record, path)
    there, here = _matrix(built), _matrix(like) if isinstance(like, AbstractLayout) else like
    if not is_array(here) or (there.shape, there.dtype) != (here.shape, here.dtype):
        differ(path, f"{_shown_record(record)} of {shown(there)}", shown(here))
    return built


def _matrix(layout: AbstractLayout) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the stack of matrices that it stores."""
    return jax.ShapeDtypeStruct((*layout.stack, *layout.shape), layout.dtype)


def _value(data: Any) -> str:
    try:
        return repr(from_plain(data))
    except ValueError:
        return str(data)


def differ(path: str, there: str, here: str) -> NoReturn:
    place = f"`{path}`" if path else "the root"
    raise ValueError(f"`load(like=...)` must fit the file. Got {here} at {place}, where the file holds {there}.")
