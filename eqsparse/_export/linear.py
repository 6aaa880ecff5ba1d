"""A linear layer whose weight reads as JAX's own sparse matrix."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import sparse
from jaxtyping import Array, Inexact, PRNGKeyArray

from .sparse import SparseLayer


@final
class BCOOLinear(eqx.Module):
    """`equinox.nn.Linear` on a sparse weight, for inference. Made by `eqsparse.to_bcoo`.

    It holds the `eqsparse.SparseLayer` that does the work, and reads through to it. What is stored are the kept weights
    by rows (`eqsparse.BCSRLayout`): value, column, and where each row begins; six bytes for each weight in float32 if
    there are fewer than 65,536 columns. All are leaves, which `eqx.filter_jit` passes as arguments: closed over, they
    would become constants of the compiled function. (A field that is a `BCOO` would not survive `eqx.filter_vmap`.)

    `jax.vmap`, also nested, reaches a product of matrices. Gradients of the input and of the kept values, in
    forward and reverse mode, never build the dense weight or anything of the size kept weights × batch.

    The arrays may have leading axes, a stack of layers for `jax.lax.scan` or `eqx.filter_vmap`.
    """

    layer: SparseLayer

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of one layer."""
        return self.layer.weight.shape

    @property
    def weight(self) -> sparse.BCOO:
        """The weight as a `jax.experimental.sparse.BCOO` with int32 indices, sorted by rows, unique.

        A stack's axes are its batch axes; slices with fewer entries than others are padded with zeros at
        out-of-bounds indices, as JAX does.
        """
        return self.layer.weight.bcoo

    def to_dense(self) -> Inexact[Array, "*stack out_size in_size"]:
        """The weight that the plain `eqx.nn.Linear` would hold, zeros written in."""
        return self.layer.weight.to_dense()

    @jax.named_scope("eqsparse.BCOOLinear")
    def __call__(self, x: Any, *, key: PRNGKeyArray | None = None) -> Array:
        """**Arguments:**

        - `x`: Array of shape `(in_features,)`, or `()` if `in_features="scalar"`. Use `jax.vmap` for batches.
        - `key`: Ignored.

        **Returns:** An array of shape `(out_features,)`, or `()` if `out_features="scalar"`.

        **Raises:** `ValueError` if `x` has another shape, or this is a stack of layers.
        """
        x = jnp.asarray(x)
        expected = () if self.layer.in_features == "scalar" else (self.layer.in_features,)
        if x.shape != expected:
            raise ValueError(
                f"`BCOOLinear(...)(x)` must be called on `x` of shape {expected}; use `jax.vmap` for batches. "
                f"Got {x.shape}."
            )
        return self.layer(x)

    def __getattr__(self, name: str) -> Any:
        # As `AbstractMasked` does.
        if name == "layer" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.layer, name)
