"""Pruners as plain data, for YAML, TOML and sweeps, and back."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._check import known
from .._criterion import AbstractCriterion
from .._distribution import AbstractDistribution
from .._schedule import AbstractSchedule
from .._sites import join, PatternMap
from .._structure import AbstractStructure
from .base import AbstractPruner
from .order import AbstractOrder

_PART = "name"
_ALGORITHM = "algorithm"
_Parts = AbstractCriterion | AbstractDistribution | AbstractSchedule | AbstractStructure | AbstractOrder


def from_config(config: Mapping[str, Any]) -> AbstractPruner:
    """A pruner from plain data.

    ```python
    eqsparse.from_config({
        "algorithm": "RigL",
        "distribution": {"name": "ERK", "sparsity": 0.9},
        "schedule": {"name": "Periodic", "start": 0, "stop": 7500, "every": 100},
        "key": 0,
        "optim": {"name": "adam", "learning_rate": 1e-3},
    })
    ```

    **Arguments:**

    - `config`: `algorithm`, and the arguments that it takes. A part (a distribution, a schedule, a structure, a
        criterion) is a dict of its `name` and the arguments it takes, or its name alone. `key` is a seed, or what
        `to_config` makes of a key. `optim` is a dict of the name of an Optax optimiser and its arguments. In the
        place of a name a class may stand, in the place of a part or an optimiser the object itself.

    **Returns:** The pruner.

    **Raises:** `ValueError` for an unknown name or key, with those that are known.
    """
    if not isinstance(config, Mapping) or _ALGORITHM not in config:
        raise ValueError(f"`from_config(config)` must be a dict with the key {_ALGORITHM!r}. Got {config!r}.")
    arguments = {k: v for k, v in config.items() if k != _ALGORITHM}
    algorithm = _named(config[_ALGORITHM], _algorithms(), _ALGORITHM)
    made = {name: _READ.get(name, _part)(value) for name, value in _known(algorithm, arguments).items()}
    return algorithm(**made)


def to_config(pruner: AbstractPruner) -> dict[str, Any]:
    """See `AbstractPruner.to_config`."""
    arguments = {name: getattr(pruner, name) for name in _arguments(type(pruner)) if name != "optim"}
    shown = {name: _plain(value, name) for name, value in arguments.items() if value is not None}
    return {_ALGORITHM: type(pruner).__name__, **shown}


def check_config(pruner: AbstractPruner, config: Any) -> None:
    """See `AbstractPruner.check_config`."""
    path, there, here = _first_difference(config, to_config(pruner), "")
    if path is not None:
        raise ValueError(
            f"`check_config(config)` must be that of this {type(pruner).__name__}. Got {there!r} at `{path}`, where "
            f"the pruner has {here!r}."
        )


def _first_difference(there: Any, here: Any, path: str) -> tuple[str | None, Any, Any]:
    """The place where two configurations first differ, `None` for none, and what both have there."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in {**here, **there}:
            found = _first_difference(there.get(name), here.get(name), join(path, str(name)))
            if found[0] is not None:
                return found
        return None, None, None
    return (None if there == here else path), there, here


def _plain(value: Any, argument: str) -> Any:
    """Plain data for an argument."""
    if isinstance(value, _Parts):
        inner = {name: getattr(value, name) for name in _arguments(type(value))}
        return {_PART: type(value).__name__, **{n: _plain(v, n) for n, v in inner.items() if v is not None}}
    if isinstance(value, PatternMap):
        pairs = zip(value.patterns, value.values, strict=True)
        return {_plain(pattern, argument): _plain(inner, argument) for pattern, inner in pairs}
    if isinstance(value, jax.Array):
        return _plain_array(value, argument)
    if isinstance(value, tuple):
        return [_plain(inner, argument) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"`to_config` needs plain data, so `{argument}` can't be a {type(value).__name__}. Got {value!r}.")


def _plain_array(value: jax.Array, argument: str) -> Any:
    if not known(value):
        raise ValueError(f"`to_config` needs known numbers, so call it outside `jax.jit`. Got {value} at `{argument}`.")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(value)).tolist()
    number = np.asarray(value).tolist()
    # The shortest number that float32 holds as this one: 0.9 rather than 0.8999999761581421.
    return float(str(np.float32(number))) if isinstance(number, float) else number


def _part(value: Any) -> Any:
    """An argument that is a part, or what it is."""
    if isinstance(value, str) or (isinstance(value, type) and issubclass(value, _Parts)):
        return _named(value, _parts(), _PART)()
    if not isinstance(value, Mapping):
        return value
    if _PART not in value:
        return {
            pattern: _part(inner) if isinstance(inner, Mapping | str) else inner for pattern, inner in value.items()
        }
    part = _named(value[_PART], _parts(), _PART)
    arguments = {k: v for k, v in value.items() if k != _PART}
    return part(**{n: _READ.get(n, _part)(v) for n, v in _known(part, arguments).items()})


def _key(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return jax.random.key(value)
    if isinstance(value, list | tuple):
        return jax.random.wrap_key_data(jnp.asarray(value, jnp.uint32))
    return value


def _optim(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    makers = {n: f for n, f in vars(optax).items() if callable(f) and not n.startswith("_")}
    arguments = {k: v for k, v in value.items() if k != _PART}
    return _named(value.get(_PART), makers, "optim: name")(**arguments)


def _as_it_is(value: Any) -> Any:
    return value


# Arguments that are no parts.
_READ: dict[str, Callable[[Any], Any]] = {
    "key": _key,
    "optim": _optim,
    "where": _as_it_is,
    "pool": _as_it_is,
    "per": _as_it_is,
    "axes": lambda value: tuple(value) if isinstance(value, list) else value,
    "shape": lambda value: tuple(value) if isinstance(value, list) else value,
}


def _arguments(cls: type) -> list[str]:
    """The arguments that a class is made with, those of every pruner too."""
    names: list[str] = []
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [
            p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD and p.name not in names
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if not (name == "schedule" and hasattr(cls, "rounds") and hasattr(cls, "rewind"))]


def _known(cls: type, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    names = _arguments(cls)
    for name in arguments:
        if name not in names:
            raise ValueError(f"`{cls.__name__}` must be given keys of {names}. Got {name!r}.{_nearest(name, names)}")
    return arguments


def _named(name: Any, known_ones: Mapping[str, Any], what: str) -> Any:
    if isinstance(name, type):
        return name
    if not isinstance(name, str) or name not in known_ones:
        names = sorted(known_ones)
        shown = names if len(names) < 60 else difflib.get_close_matches(str(name), names, n=10, cutoff=0.4)
        raise ValueError(f"`{what}` must be one of {shown}. Got {name!r}.{_nearest(name, names)}")
    return known_ones[name]


def _nearest(name: Any, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


@functools.cache
def _parts() -> dict[str, type]:
    return {name: cls for name, cls in _public().items() if _is_concrete(cls, _Parts)}


@functools.cache
def _algorithms() -> dict[str, type]:
    return {name: cls for name, cls in _public().items() if _is_concrete(cls, AbstractPruner)}


def _public() -> Mapping[str, Any]:
    """All names that a user has, those of rooms below this one too: so they are looked up when they are needed."""
    import eqsparse

    return vars(eqsparse)


def _is_concrete(value: Any, base: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, base)
        and not inspect.isabstract(value)
        and not re.match("_|Abstract", value.__name__)
    )
