"""Whether products run on Pallas: only where a user says so."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_mode = jax.make_user_context(default_value=None)  # JAX traces anew where it changes


def use_pallas(interpret: bool = False) -> contextlib.AbstractContextManager[None]:
    """Products of `BlockLayout` that are compiled for an NVIDIA GPU within run on kernels in Pallas.

    ```python
    with eqsparse.kernels.use_pallas():
        y = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(exported, x)
    ```

    With their gradients, in float32, bfloat16 and float16 (sums in float32). They were tested by interpretation, and
    measured on no GPU yet: so nothing chooses them but you. On other devices, and for other layouts and dtypes,
    nothing changes. What was compiled outside is compiled anew within.

    **Arguments:**

    - `interpret`: Run the kernels step by step in operations of JAX, on any device. For tests: it is very slow.
    """
    return _mode("interpret" if interpret else "compile")


def interpreted() -> bool:
    """Whether a kernel that is being lowered is to be interpreted."""
    return _mode.value == "interpret"


def serves(platforms: tuple[str, ...], *arrays: Any) -> bool:
    """Whether they are asked for, and take such arrays: of known sizes, none of which is 0."""
    asked = interpreted() or (_mode.value == "compile" and platforms == ("cuda",))
    known = all(isinstance(size, int) and size for array in arrays for size in array.shape)
    return asked and known and arrays[-1].dtype in _DTYPES
