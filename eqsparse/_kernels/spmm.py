"""The product of a CSR matrix with a vector or a batch."""

from typing import Any

from jaxtyping import Array, Inexact, Int32, Integer

from ._native import calls
from .csr import product, sampled_product, transposed_product
from .linear import SparseProduct


def _sampled(*args: Array, stored: tuple[int, ...], **static: Any) -> Array:
    return sampled_product(*args, **static)


_CSR = SparseProduct("eqsparse_csr", product, transposed_product, _sampled, [calls("eqsparse_csr")])


def spmm(
    values: Inexact[Array, " nnz"],
    columns: Integer[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    x: Array,
    shape: tuple[int, int],
) -> Inexact[Array, "*batch out_size"]:
    """`A @ x` for a vector, `x @ A.T` for a batch of them, `A` being a CSR matrix.

    **Arguments:**

    - `values`, `columns`, `row_pointers`: The matrix by rows, sorted and unique. Entries past
        `row_pointers[-1]` are padding, with value 0 and column `shape[1]`.
    - `x`: Array of shape `(in,)` or `(*batch, in)`.
    - `shape`: (out, in).

    **Returns:** An array of shape `(out,)` or `(*batch, out)`, of the dtype that a dense product gives. Half
    precisions are computed in float32 and rounded once: JAX has no sparse kernel for them on CPU.
    """
    return _CSR(values, (columns, row_pointers), x, shape)
