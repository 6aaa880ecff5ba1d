"""The library in this process: loaded once, or not at all, for a reason that is told once."""

import ctypes
import threading
import warnings
from typing import NamedTuple

import jax

from .compiler import CannotCompile
from .provide import Built, Forbidden, provide

LAYOUTS = ("eqsparse_csr", "eqsparse_bitmask", "eqsparse_nm", "eqsparse_fan_in", "eqsparse_block")
TARGETS = [f"{layout}{operation}" for layout in LAYOUTS for operation in ("", "_transposed", "_sampled")]
TARGETS.append("eqsparse_csr_convolution")


class Loaded(NamedTuple):
    """The library, registered with JAX."""

    built: Built
    library: ctypes.CDLL  # held: functions that were compiled call into it


class Missing(NamedTuple):
    """Why there is none."""

    reason: str


_lock = threading.RLock()
_state: Loaded | Missing | None = None


def available() -> bool:
    """Whether products on the CPU run on eqsparse's own kernels in this process.

    The first call (or the first product that is compiled for a CPU) loads them, and compiles them where no cache
    holds them. If that fails, a `RuntimeWarning` tells the reason, once, and products run on what JAX has.
    """
    with _lock:
        if _state is None:
            try:
                build()
            except RuntimeError as error:
                _remember(Missing(str(error)))
                if not isinstance(error, Forbidden):
                    warnings.warn(
                        f"eqsparse's kernels for CPUs are not used: {error}. Products run on JAX's own operations, "
                        "which are slower.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
        return isinstance(_state, Loaded)


def build() -> Built:
    """Loads the kernels for this machine, compiled if no cache holds them.

    **Returns:** The library's path, the compiler's command, and the seconds that compiling took.

    **Raises:** `RuntimeError` that says why it is not possible: what the compiler wrote, say, or that the environment
    variable `EQSPARSE_NO_COMPILE` forbids compiling. A later call tries again.
    """
    with _lock:
        if isinstance(_state, Loaded):
            return _state.built
        built = provide()
        try:
            library = ctypes.CDLL(str(built.path))
            handlers = {name: jax.ffi.pycapsule(getattr(library, name)) for name in TARGETS}
        except (OSError, AttributeError) as error:
            raise CannotCompile(f"the library does not load ({error})") from None
        for name, handler in handlers.items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
        _remember(Loaded(built, library))
        return built


def fingerprint() -> str:
    """Another one for other kernels; empty where there are none. What was measured with some says nothing of others."""
    return _state.built.path.stem if available() and isinstance(_state, Loaded) else ""


def _remember(state: Loaded | Missing) -> None:
    global _state
    _state = state
