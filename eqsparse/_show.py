"""How parts show themselves: as the call that makes them, numbers rather than array types."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._check import known


def show(part: eqx.Module) -> str:
    """`Polynomial(start=0, stop=10, every=2, power=3)` for a module of a few numbers."""
    fields = {f.name: getattr(part, f.name, None) for f in dataclasses.fields(part)}
    shown = [f"{name}={_shown(value)}" for name, value in fields.items() if not _is_empty(value)]
    return f"{type(part).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if isinstance(value, optax.GradientTransformation):
        return f"{getattr(value.init, '__qualname__', 'optim').split('.')[0]}(...)"
    if not eqx.is_array(value):
        return repr(value)
    if not known(value) or value.size > 8 or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"{value.dtype}{list(value.shape)}"
    plain = np.asarray(value).tolist()
    numbers = plain if isinstance(plain, list) else [plain]
    # Seven digits are what float32 holds: 0.9 rather than 0.8999999761581421.
    text = [f"{x:.7g}" if isinstance(x, float) else repr(x) for x in numbers]
    return f"[{', '.join(text)}]" if isinstance(plain, list) else text[0]


def _is_empty(value: Any) -> bool:
    return value is None or getattr(value, "patterns", None) == ()
