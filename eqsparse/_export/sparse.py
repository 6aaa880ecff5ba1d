"""A layer that holds layouts in the place of its weights."""

import dataclasses
import math
from typing import Any, final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._kernels import not_before
from .._layers import AbstractMasked
from .._sites import replace_fields
from ._layout import AbstractLayout
from ._layout.host import Slices, slices_of
from .conv import can_convolve, convolve


class Form(NamedTuple):
    """How the weight of one layer is laid out as a matrix: rows are its first axis, `axis` comes last."""

    core: tuple[int, ...]
    axis: int

    @property
    def rows(self) -> int:
        return self.core[0] if len(self.core) > 1 else 1

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape of the matrix."""
        return self.rows, math.prod(self.core[1:] if len(self.core) > 1 else self.core)

    def to_matrix(self, weight: Any) -> Any:
        """Of a weight or mask, axes of a stack first. NumPy's stay NumPy's."""
        stack = weight.shape[: weight.ndim - len(self.core)]
        last = np.moveaxis(weight, len(stack) + self.axis, -1) if len(self.core) > 1 else weight
        return last.reshape(*stack, *self.matrix)

    def to_weight(self, rows: Array) -> Array:
        """Some rows of the matrix of a single layer, as that part of its weight."""
        if len(self.core) < 2:
            return rows.reshape(self.core)
        middle = [size for i, size in enumerate(self.core) if i not in (0, self.axis)]
        # Reshaped with the rows last, as the layouts by coordinates write them: XLA then makes no copy between.
        columns_first = rows.T.reshape(*middle, self.core[self.axis], rows.shape[0])
        return jnp.moveaxis(jnp.moveaxis(columns_first, -1, 0), -1, self.axis)


@final
class SparseLayer(eqx.Module):
    """A layer whose weights are layouts, for inference and fine-tuning. Made by `eqsparse.export`.

    Called as the layer it holds. `eqx.nn.Linear`, `Embedding`, `GRUCell` and `LSTMCell` run on products and rows of
    their layouts, convolutions with weights in `"bcsr"` on eqsparse's kernels where there are some. Other convolutions
    (but for those with kernels of one position, which are products) and modules under `eqsparse.Masked` rebuild their
    weights when called.

    Fields of the layer read through, a sparse weight as its layout (`sparse.weight.to_dense()`); its methods run on
    `materialise()`.
    """

    layer: Any  # without its sparse weights
    weights: dict[str, AbstractLayout]
    forms: tuple[tuple[str, Form], ...] = eqx.field(static=True)

    def __init__(self, masked: AbstractMasked, weights: dict[str, AbstractLayout]):
        """**Arguments:**

        - `masked`: The masked layer.
        - `weights`: A layout of the matrix of each of its masked fields.
        """
        self.layer = replace_fields(masked.layer, dict.fromkeys(weights))
        self.weights = weights
        self.forms = tuple((name, form_of(masked, name)) for name in weights)

    def form(self, name: str) -> Form:
        return dict(self.forms)[name]

    def materialise(self) -> Any:
        """The plain layer, zeros written in."""
        return replace_fields(self.layer, {name: self._dense(name) for name in self.weights})

    def _dense(self, name: str) -> Array:
        to_weight = self.form(name).to_weight
        for _ in self.weights[name].stack:
            to_weight = jax.vmap(to_weight)
        return to_weight(self.weights[name].to_dense())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; takes what the layer takes."""
        if type(self.layer) in _MULTIPLYING:  # exactly: a subclass may do anything with its weight
            layouts = {name: layout.operand() for name, layout in self.weights.items()}
            return replace_fields(self.layer, layouts)(*args, **kwargs)
        if "weight" in self.weights and can_convolve(self.layer, self.weights["weight"], args):
            return convolve(self.layer, self.weights["weight"], args[0])
        if isinstance(self.layer, eqx.nn.Conv | eqx.nn.ConvTranspose):
            # On CPU a dense model copies all kernels at the start, to have channels last: this is no more. And chains
            # of convolutions can be fused, which they could not be if one had to end for the next kernel to be built.
            return self.materialise()(*args, **kwargs)
        return replace_fields(self, {"weights": _after(args, self.weights)}).materialise()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # As `AbstractMasked` does.
        if name in ("layer", "weights", "forms") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in self.weights:
            return self.weights[name]
        layer = self.layer
        stored = isinstance(layer, eqx.Module) and any(f.name == name for f in dataclasses.fields(layer))
        if not stored and not hasattr(type(layer), name):
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {name!r}")
        return getattr(layer if stored else self.materialise(), name)


def form_of(masked: AbstractMasked, name: str) -> Form:
    """The form of a masked field."""
    weight = getattr(masked.layer, name)
    return Form(weight.shape[weight.ndim - masked.core_rank(name) :], masked.contraction_axis(name))


def slices_in(masked: AbstractMasked, name: str) -> Slices:
    """A masked field and its mask as matrices, on the host."""
    form = form_of(masked, name)
    weight, kept = np.asarray(getattr(masked.layer, name)), np.asarray(masked.masks[name].dense())
    return slices_of("export", form.to_matrix(weight), form.to_matrix(kept))


# Layers that do no more with a weight than `weight @ x` and `weight[i]`.
_MULTIPLYING = (eqx.nn.Linear, eqx.nn.Embedding, eqx.nn.GRUCell, eqx.nn.LSTMCell)


def _after(inputs: Any, weights: dict[str, AbstractLayout]) -> dict[str, AbstractLayout]:
    """The weights, but not before the first of the inputs is there: so the layers of a model take turns."""
    first = next((x for x in jax.tree.leaves(inputs) if eqx.is_inexact_array(x)), None)
    if first is None:
        return weights
    is_index = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.integer)
    return jax.tree.map(lambda leaf: not_before(leaf, first) if is_index(leaf) else leaf, weights)
