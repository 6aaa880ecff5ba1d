"""Kernels that only some machines have, and how to do without them."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

CUSTOM_CALLS = (
    "cpu_csr_sparse_dense_ffi",
    "cusparse_csr_matvec_ffi",
    "cusparse_csr_matmat_ffi",
    "hipsparse_csr_matvec_ffi",
    "hipsparse_csr_matmat_ffi",
)
"""The custom calls that products compile to. JAX comes with them all, and promises for none that it stays."""

_PLAIN = ContextVar("eqsparse_plain", default=False)
_SHIPPED = ContextVar("eqsparse_shipped", default=False)


@contextlib.contextmanager
def operations_of_jax() -> Iterator[None]:
    """What is lowered within runs where eqsparse is not installed: no kernels of its own."""
    token = _SHIPPED.set(True)
    try:
        yield
    finally:
        _SHIPPED.reset(token)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """What is lowered within uses operations of every platform only, no custom calls."""
    token = _PLAIN.set(True)
    try:
        with operations_of_jax():
            yield
    finally:
        _PLAIN.reset(token)


def plain() -> bool:
    """Whether a product that is being lowered must do without custom calls."""
    return _PLAIN.get()


def shipped() -> bool:
    """Whether a product that is being lowered must do without kernels of eqsparse."""
    return _SHIPPED.get()
