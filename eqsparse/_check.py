"""Checks of what users pass in. A message names the argument, the rule and the value."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beartype.door import is_bearable
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

_LARGEST_INT32 = 2**31 - 1
GRID = 10_000_000  # a sparsity stands for the nearest multiple of 1 / GRID


def known(value: Any) -> bool:
    """Whether the value of a number is known now (not inside a compiled or mapped function)."""
    return not isinstance(value, Tracer)


def unit(value: ArrayLike, argument: str) -> Array:
    """A number in [0, 1] as a float32 array; a sweep's traced or stacked values are taken as they are."""
    array = number(value, argument, jnp.float32)
    if known(array) and not np.all((np.asarray(array) >= 0) & (np.asarray(array) <= 1)):
        raise ValueError(f"`{argument}` must be in [0, 1]. Got {_shown(value)}.")
    return array if isinstance(value, jax.Array) else jnp.asarray(on_grid(value), jnp.float32)


def on_grid(sparsity: ArrayLike) -> np.ndarray | np.floating:
    """The multiple of 1e-7 that a sparsity stands for, in its own precision: that of its float32 may be the next."""
    return np.floor(np.clip(np.asarray(sparsity, np.float64), 0, 1) * GRID + 0.5) / GRID


def whole(value: ArrayLike, argument: str, least: int) -> Array:
    """A whole number of at least `least`, as an int32 array."""
    plain = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(plain.dtype, np.integer):
        raise ValueError(f"`{argument}` must be a whole number. Got {_shown(value)}.")
    if known(plain) and np.any(np.asarray(plain) < least):
        raise ValueError(f"`{argument}` must be at least {least}. Got {_shown(value)}.")
    if known(plain) and np.any(np.asarray(plain) > _LARGEST_INT32):
        raise ValueError(f"`{argument}` must be at most {_LARGEST_INT32} (an int32). Got {_shown(value)}.")
    return number(value, argument, jnp.int32)


def integer(value: Any, argument: str, least: int | None = None) -> int:
    """A whole number that shapes depend on, so never an array that is traced."""
    rule = "a whole number" if least is None else f"a whole number of at least {least}"
    try:
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"`{argument}` must be {rule}. Got {value!r}.") from None
    if least is not None and found < least:
        raise ValueError(f"`{argument}` must be {rule}. Got {value!r}.")
    return found


def integers(values: Any, argument: str) -> tuple[int, ...]:
    """Several of them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"`{argument}` must be a tuple of whole numbers. Got {values!r}.")
    return tuple(integer(value, argument) for value in values)


def number(value: ArrayLike, argument: str, dtype: Any) -> Array:
    """A number as an array leaf, so that Python numbers, NumPy's and arrays behave alike and never retrace."""
    _one_number(value, argument)
    return jnp.asarray(value, dtype=dtype)


def not_negative(value: ArrayLike, argument: str) -> Array:
    """A finite number of at least 0, as a float32 array; traced values are taken as they are."""
    array = number(value, argument, jnp.float32)
    if known(array) and not np.all((np.asarray(array) >= 0) & np.isfinite(np.asarray(array))):
        raise ValueError(f"`{argument}` must be finite and not negative. Got {_shown(value)}.")
    return array


def constant(value: Any, argument: str) -> float:
    """A finite number of at least 0 that is compiled in, so never an array that is traced."""
    _one_number(value, argument)
    if not known(value):
        raise ValueError(f"`{argument}` must be a number that is not traced. Got {value}.")
    plain = float(np.asarray(value))
    if not 0 <= plain < math.inf:
        raise ValueError(f"`{argument}` must be finite and not negative. Got {_shown(value)}.")
    return plain


def _one_number(value: ArrayLike, argument: str) -> None:
    numeric = hasattr(value, "dtype") or isinstance(value, int | float)
    if not numeric or isinstance(value, bool) or not _is_real(value):
        raise ValueError(f"`{argument}` must be a number. Got {_shown(value)}.")
    if np.ndim(value) != 0:
        raise ValueError(
            f"`{argument}` must be one number; sweep over several with `jax.vmap`. Got shape {np.shape(value)}."
        )


def instance(value: Any, hint: Any, argument: str, rule: str) -> None:
    """That a value is of the type that the hint says."""
    if not is_bearable(value, hint):
        raise ValueError(f"`{argument}` must be {rule}. Got {_shown(value)}.")


def random_key(value: Any, argument: str) -> None:
    """That a value is a random key (or `None`)."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    raw = dtype == jnp.uint32 and shape in ((2,), (4,))
    if not (value is None or typed or raw):
        raise ValueError(f"`{argument}` must be a `jax.random.key`. Got {_shown(value)}.")


def _is_real(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is None or jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)


def _shown(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return f"dtype {value.dtype}, shape {value.shape}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return str(np.asarray(value)) if known(value) else str(value)
    return repr(value)
