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
_DEFAULT = "threefry2x32"
_Parts = AbstractCriterion | AbstractDistribution | AbstractSchedule | AbstractStructure | AbstractOrder


def from_config(config: Mapping[str, Any], *, classes: Iterable[type] = ()) -> AbstractPruner:
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
    - `classes`: Classes of your own that `config` calls by their names.

    **Returns:** The pruner.

    **Raises:** `ValueError` for an unknown name or key, with those that are known, or an argument that is missing.
    """
    if not isinstance(config, Mapping) or _ALGORITHM not in config:
        raise ValueError(f"`from_config(config)` must be a dict with the key {_ALGORITHM!r}. Got {config!r}.")
    return _Reader({cls.__name__: cls for cls in classes}).pruner(config)


class _Reader:
    """Reads plain data, in which `own` classes may be called by their names."""

    def __init__(self, own: Mapping[str, type]):
        self._algorithms = _algorithms() | {n: c for n, c in own.items() if issubclass(c, AbstractPruner)}
        self._parts = _parts() | {n: c for n, c in own.items() if issubclass(c, _Parts)}

    def pruner(self, config: Mapping[str, Any]) -> AbstractPruner:
        return self._made(_named(config[_ALGORITHM], self._algorithms, _ALGORITHM), config, _ALGORITHM)

    def argument(self, name: str, value: Any) -> Any:
        """What stands for an argument in plain data."""
        if isinstance(value, str) and name in _PART_ARGUMENTS:
            return self._made(_named(value, self._parts, _PART), {}, _PART)
        return _READ.get(name, self.part)(value)

    def part(self, value: Any) -> Any:
        """An argument that is a part, or what it is."""
        if isinstance(value, type) and issubclass(value, _Parts):
            return self._made(value, {}, _PART)
        if not isinstance(value, Mapping):
            return value
        if isinstance(value.get(_PART), str | type):  # else a pattern that is called so
            return self._made(_named(value[_PART], self._parts, _PART), value, _PART)
        return {pattern: self.argument("structure", v) for pattern, v in value.items()}

    def _made(self, cls: type, config: Mapping[str, Any], called: str) -> Any:
        arguments = {name: value for name, value in config.items() if name != called}
        _all_known(cls.__name__, _arguments(cls), arguments)
        return cls(**{name: self.argument(name, value) for name, value in arguments.items()})


def to_config(pruner: AbstractPruner) -> dict[str, Any]:
    """See `AbstractPruner.to_config`."""
    return {_ALGORITHM: type(pruner).__name__, **_plain_arguments(pruner, but=("optim",))}


def check_config(pruner: AbstractPruner, config: Any) -> None:
    """See `AbstractPruner.check_config`."""
    if not isinstance(config, Mapping):
        raise ValueError(f"`check_config(config)` must be a dict, as `to_config` makes it. Got {config!r}.")
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


def _plain_arguments(made: Any, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """What something was made with as plain data, without what is `None` by default."""
    parameters = {name: p for name, p in _arguments(type(made)).items() if name not in but}
    values = {name: getattr(made, name) for name in parameters}
    says = lambda name: values[name] is not None or parameters[name].default not in (None, inspect.Parameter.empty)
    return {name: _plain(value, name) for name, value in values.items() if says(name)}


def _plain(value: Any, argument: str) -> Any:
    """Plain data for an argument."""
    if isinstance(value, _Parts):
        return {_PART: type(value).__name__, **_plain_arguments(value)}
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
        data, impl = np.asarray(jax.random.key_data(value)).tolist(), str(jax.random.key_impl(value))
        return data if impl == _DEFAULT else {"impl": impl, "data": data}
    number = np.asarray(value).tolist()
    # The shortest number that float32 holds as this one: 0.9 rather than 0.8999999761581421.
    return float(str(np.float32(number))) if isinstance(number, float) else number


def _key(value: Any) -> Any:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return jax.random.key(int(value))
    if isinstance(value, list | tuple):
        return jax.random.wrap_key_data(jnp.asarray(value, jnp.uint32), impl=_DEFAULT)
    if isinstance(value, Mapping):
        if value.keys() != {"impl", "data"}:
            raise ValueError(f"`key` must be a seed, or what `to_config` makes of a key. Got {dict(value)}.")
        return jax.random.wrap_key_data(jnp.asarray(value["data"], jnp.uint32), impl=value["impl"])
    return value


def _optim(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if _PART not in value:
        raise ValueError(f"`from_config(optim=...)` must have a `name`, that of an Optax optimiser. Got {dict(value)}.")
    makers = {n: f for n, f in vars(optax).items() if callable(f) and not n.startswith("_")}
    arguments = {k: v for k, v in value.items() if k != _PART}
    maker = _named(value.get(_PART), makers, "optim: name")
    _all_known(f"optax.{value[_PART]}", inspect.signature(maker).parameters, arguments)
    return maker(**arguments)


def _as_it_is(value: Any) -> Any:
    return value


# Arguments whose parts may be called by their names alone, as the values of a dict by pattern are.
_PART_ARGUMENTS = ("distribution", "schedule", "structure", "criterion", "drop", "grow", "order")

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


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments that a class is made with, those of every pruner too."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        own = [p for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        found |= {p.name: p for p in own if p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {name: p for name, p in found.items() if name not in getattr(cls, "determined", ())}


def _all_known(what: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    """Raises for an argument that is not among the parameters, or one that is missing."""
    names = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in names and not anything:
            raise ValueError(f"`{what}` must be given keys of {names}. Got {name!r}.{_nearest(name, names)}")
    missing = [name for name in names if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if missing:
        raise ValueError(f"`{what}` must be given {missing}. Got {dict(arguments)}.")


def _named(name: Any, known_ones: Mapping[str, Any], what: str) -> Any:
    if isinstance(name, type) and issubclass(name, AbstractPruner if what == _ALGORITHM else _Parts):
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
