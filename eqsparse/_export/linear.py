"""A linear layer that stores only the weights that are kept."""

from typing import Any, final, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import sparse
from jaxtyping import Array, Inexact, Int32, PRNGKeyArray

from .._kernels import row_indices, spmm


@final
class BCOOLinear(eqx.Module):
    """`equinox.nn.Linear` on a sparse weight, for inference. Made by `eqsparse.to_bcoo`.

    What is stored are the kept weights by rows: value, column, and where each row begins; eight bytes for each
    weight in float32. All are leaves, which `eqx.filter_jit` passes as arguments: closed over, they would
    become constants of the compiled function. (A field that is a `BCOO` would not survive `eqx.filter_vmap`.)

    `jax.vmap`, also nested, reaches a product of matrices. Gradients of the input and of the kept values, in
    forward and reverse mode, never build the dense weight or anything of the size kept weights × batch.
    Half-precision weights stay so in memory, and are computed in float32 (JAX has no kernel for them on
    CPU): a call takes four bytes more for each.

    The arrays may have leading axes, a stack of layers for `jax.lax.scan` or `eqx.filter_vmap`.
    """

    values: Inexact[Array, "*stack nnz"]
    columns: Int32[Array, "*stack nnz"]
    row_pointers: Int32[Array, "*stack ends"]
    bias: Inexact[Array, "*stack out_size"] | None
    in_features: int | Literal["scalar"] = eqx.field(static=True)
    out_features: int | Literal["scalar"] = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of one layer."""
        return _size(self.out_features), _size(self.in_features)

    @property
    def weight(self) -> sparse.BCOO:
        """The weight as a `jax.experimental.sparse.BCOO` with int32 indices, sorted by rows, unique.

        A stack's axes are its batch axes; slices with fewer entries than others are padded with zeros at
        out-of-bounds indices, as JAX does.
        """
        indices = jnp.stack([self._rows(), self.columns], axis=-1)
        shape = (*self.values.shape[:-1], *self.shape)
        return sparse.BCOO((self.values, indices), shape=shape, indices_sorted=True, unique_indices=True)

    def to_dense(self) -> Inexact[Array, "*stack out_size in_size"]:
        """The weight that the plain `eqx.nn.Linear` would hold, zeros written in."""

        def scatter(values: Array, rows: Array, columns: Array) -> Array:
            return jnp.zeros(self.shape, values.dtype).at[rows, columns].set(values, mode="drop")

        for _ in self.values.shape[:-1]:
            scatter = jax.vmap(scatter)
        return scatter(self.values, self._rows(), self.columns)

    @jax.named_scope("eqsparse.BCOOLinear")
    def __call__(self, x: Any, *, key: PRNGKeyArray | None = None) -> Array:
        """**Arguments:**

        - `x`: Array of shape `(in_features,)`, or `()` if `in_features="scalar"`. Use `jax.vmap` for batches.
        - `key`: Ignored.

        **Returns:** An array of shape `(out_features,)`, or `()` if `out_features="scalar"`.

        **Raises:** `ValueError` if `x` has another shape, or this is a stack of layers.
        """
        x = jnp.asarray(x)
        expected = () if self.in_features == "scalar" else (self.in_features,)
        if x.shape != expected:
            raise ValueError(
                f"`BCOOLinear(...)(x)` must be called on `x` of shape {expected}; use `jax.vmap` for batches. "
                f"Got {x.shape}."
            )
        if self.values.ndim != 1:
            raise ValueError(
                "`BCOOLinear` must be a single layer to be called; run a stack with `jax.lax.scan` or "
                f"`eqx.filter_vmap`. Got a stack of shape {self.values.shape[:-1]}."
            )
        y = spmm(self.values, self.columns, self.row_pointers, jnp.broadcast_to(x, self.shape[1:]), self.shape)
        if self.bias is not None:
            y = y + self.bias
        return jnp.squeeze(y) if self.out_features == "scalar" else y

    def _rows(self) -> Int32[Array, "*stack nnz"]:
        rows = lambda row_pointers: row_indices(row_pointers, self.values.shape[-1])
        for _ in self.values.shape[:-1]:
            rows = jax.vmap(rows)
        return rows(self.row_pointers)


def _size(features: int | Literal["scalar"]) -> int:
    return 1 if features == "scalar" else features
