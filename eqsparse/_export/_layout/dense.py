"""Nothing left out."""

from typing import Any, final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32

from .base import AbstractLayout
from .host import Slices


@final
class DenseLayout(AbstractLayout):
    """The weight itself, zeros written in: where nothing else pays. Its layer runs as it always did."""

    values: Inexact[Array, "*stack out_size in_size"]
    shape: tuple[int, int] = eqx.field(static=True)
    reason: str = eqx.field(static=True, default="")  # why, for the account

    name = "dense"
    value_rank = 2

    @classmethod
    def encode(cls, slices: Slices) -> "DenseLayout":
        zero = np.zeros((), slices.weights.dtype)
        return cls(slices.restack(np.where(slices.kept, slices.weights, zero)), slices.shape)

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int:
        return kept.size * itemsize

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return jax.lax.dynamic_slice_in_dim(self.values, start, count)

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return x @ self.values.T

    def operand(self) -> Any:
        return self.values

    def kept(self, values: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        return values != 0
