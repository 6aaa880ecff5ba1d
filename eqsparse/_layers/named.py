"""Masks for named fields of any module."""

import dataclasses
from typing import Any, final

import equinox as eqx

from .._mask import Mask
from .base import AbstractMasked, masks_for, weight_of


@final
class Masked(AbstractMasked):
    """Masks named array fields of any Equinox module.

    ```python
    attention = eqsparse.Masked(MyAttention(key=key), "wq", "wk")
    attention(x)  # runs MyAttention with its masked weights
    ```

    In a model with one masked layer only masked weights are pruned: `eqsparse.sparsify(model)` masks the others too.
    """

    layer: Any
    masks: dict[str, Mask]
    ranks: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __init__(self, layer: eqx.Module, *names: str, mask: Any = None, packed: bool = False):
        """**Arguments:**

        - `layer`: Any module. Its weights are untouched.
        - `*names`: The fields to mask: floating-point arrays of any rank.
        - `mask`: Boolean array, or a dict by field. All is kept by default.
        - `packed`: Store masks with eight weights to a byte.

        **Raises:** `ValueError` if a field is no floating-point array, or if the module has fields
        called `layer` or `masks` (they would hide behind those of this class).
        """
        if not isinstance(layer, eqx.Module):
            raise ValueError(f"`Masked(layer, ...)` must be given an `eqx.Module`. Got {type(layer).__name__}.")
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"`Masked(layer, *names)` must name fields, each a string. Got {names!r}.")
        if not names:
            raise ValueError("`Masked(layer, *names)` must name one field at least. Got none.")
        fields = {f.name for f in dataclasses.fields(layer)}
        hidden = sorted(fields & {"layer", "masks", "ranks"})
        if hidden:
            raise ValueError(
                f"`Masked(layer, ...)` can't wrap a module with fields called {hidden}: they would hide behind "
                f"its own. Got {type(layer).__name__}; wrap a module inside it, or rename the field."
            )
        self.layer = layer
        self.ranks = tuple((n, weight_of(layer, n).ndim) for n in names)
        self.masks = masks_for(layer, names, mask, packed=packed)

    def core_rank(self, name: str) -> int:
        return dict(self.ranks)[name]

    def contraction_axis(self, name: str) -> int:
        return self.core_rank(name) - 1
