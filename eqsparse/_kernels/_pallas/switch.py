"""Whether products run on Pallas."""

import contextlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from ..faster import Target

_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_MEASURED = "9.0"  # compute capability of the GPUs on which they were
_mode = jax.make_user_context(default_value=None)  # JAX traces anew where it changes


def use_pallas(use: bool = True, *, interpret: bool = False) -> contextlib.AbstractContextManager[None]:
    """Whether products of `BlockLayout` that are compiled for an NVIDIA GPU within run on kernels in Pallas.

    ```python
    with eqsparse.kernels.use_pallas():
        y = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(exported, x)
    ```

    With their gradients, in float32, bfloat16 and float16 (sums in float32). Outside, they run on the GPUs where they
    were measured (Hopper: H100 and H200), in programs for one device or within `jax.shard_map`; not where the
    compiler divides a program among several devices, as each would compute all of such a product. On other devices,
    and for other layouts and dtypes, nothing changes. What was compiled outside is compiled anew within.

    **Arguments:**

    - `use`: Run on them on any NVIDIA GPU (Triton wants an Ampere or later), divided or not; or never.
    - `interpret`: Run the kernels step by step in operations of JAX, on any device. For tests: it is very slow.
    """
    return _mode("interpret" if interpret else "always" if use else "never")


def interpreted() -> bool:
    """Whether a kernel that is being lowered is to be interpreted."""
    return _mode.value == "interpret"


def serves(target: Target, *arrays: Any) -> bool:
    """Whether they are to run there, and take such arrays: of known sizes, none of which is 0."""
    known = all(isinstance(size, int) and size for array in arrays for size in array.shape)
    return known and arrays[-1].dtype in _DTYPES and _is_wanted(target)


def pallas_fingerprint() -> str:
    """Changes with what a product is timed with."""
    return f"pallas 1 {_mode.value}"


def _is_wanted(target: Target) -> bool:
    if _mode.value is None:
        return target == (("cuda",), 1) and _is_measured() and _has_triton()
    return interpreted() or (_mode.value == "always" and target.platforms == ("cuda",))


def _is_measured() -> bool:
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:  # it is compiled for a machine elsewhere
        return False
    return str(getattr(device, "compute_capability", "")) == _MEASURED


def _has_triton() -> bool:
    """JAX says that it will take it away."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
