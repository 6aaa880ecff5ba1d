"""How each layer reads its inputs: the rows that its weights are multiplied by."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._layers import AbstractMasked
from .._sites import join, map_layers
from .flow import AbstractFlow, Features, Lookups
from .patches import own_patches, sliced_patches

Flows = dict[str, AbstractFlow]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a weight stands as a matrix of outputs and inputs.

    - `groups`: of a convolution; 1 for all others.
    - `inputs`: shape of the inputs of one group.
    - `is_table`: of an embedding, whose rows are looked up: its first axis is that of the inputs.
    """

    groups: int
    inputs: tuple[int, ...]
    is_table: bool = False

    @property
    def features(self) -> int:
        return math.prod(self.inputs)

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """That of the matrix for a weight of that shape; `None` if a weight can't have it."""
        inputs = shape[-2:-1] if self.is_table else shape[-len(self.inputs) :]
        if inputs != self.inputs or len(shape) < 1 + len(self.inputs):
            return None
        stack = shape[: len(shape) - 1 - len(self.inputs)]
        outputs = shape[-1] if self.is_table else shape[len(stack)]
        return None if outputs % self.groups else (*stack, self.groups, outputs // self.groups, self.features)

    def outputs(self, shape: tuple[int, ...]) -> int:
        """Those of a group, of a weight of that shape."""
        found = self.matrix_shape(shape)
        assert found is not None
        return found[-2]

    def matrix(self, weight: Array) -> Array:
        """`(*stack, groups, outputs, features)`"""
        if self.is_table:
            return jnp.swapaxes(weight, -1, -2)[..., None, :, :]
        stack = weight.shape[: weight.ndim - 1 - len(self.inputs)]
        return weight.reshape(*stack, self.groups, weight.shape[len(stack)] // self.groups, self.features)

    def weight(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        if self.is_table:
            return jnp.swapaxes(matrix[..., 0, :, :], -1, -2)
        return matrix.reshape(*matrix.shape[:-3], self.groups * matrix.shape[-2], *self.inputs)


def forms_of(layer: Any) -> dict[str, Form]:
    """How the weights of a layer stand as matrices, by field; empty for a layer whose inputs can't be read."""
    layer = inner(layer)
    kind = _kind(layer)
    return {} if kind is None else kind.forms(layer)


def flows_into(layer: Any, args: tuple, kwargs: dict) -> Flows:
    """What flows into each weight of a layer, called with these arguments."""
    layer = inner(layer)
    kind = _kind(layer)
    return {} if kind is None else kind.flows(layer, *args, **kwargs)


def forms_in(model: Any) -> dict[str, Form]:
    """How the weights of a model whose inputs can be read stand as matrices, by path."""
    forms: dict[str, Form] = {}

    def visit(path: str, layer: Any) -> Any:
        forms.update({join(path, name): form for name, form in forms_of(layer).items()})
        return layer

    map_layers(model, visit)
    return forms


def inner(layer: Any) -> Any:
    """The Equinox layer, where it is masked."""
    return layer.layer if isinstance(layer, AbstractMasked) else layer


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of layer; `flows` takes what the layer takes."""

    forms: Callable[[Any], dict[str, Form]]
    flows: Callable[..., Flows]


def _linear(layer: eqx.nn.Linear, x: Array, *, key: Any = None) -> Flows:
    return {"weight": Features(jnp.asarray(x).reshape(1, _numbers_in(layer)))}


def _numbers_in(layer: eqx.nn.Linear) -> int:
    return 1 if layer.in_features == "scalar" else int(layer.in_features)


def _embedding(layer: eqx.nn.Embedding, x: Any, *, key: Any = None) -> Flows:
    return {"weight": Lookups(jnp.asarray(x), layer.num_embeddings)}


def _convolution(layer: eqx.nn.Conv, x: Array, *, key: Any = None) -> Flows:
    return {"weight": Features(sliced_patches(layer, x) if layer.padding_mode == "ZEROS" else own_patches(layer, x))}


def _transposed(layer: eqx.nn.ConvTranspose, x: Array, *, key: Any = None) -> Flows:
    return {"weight": Features(own_patches(layer, x))}


def _gru(layer: eqx.nn.GRUCell, input: Array, hidden: Array, *, key: Any = None) -> Flows:
    return {"weight_ih": Features(input[None]), "weight_hh": Features(hidden[None])}


def _lstm(layer: eqx.nn.LSTMCell, input: Array, hidden: tuple[Array, Array], *, key: Any = None) -> Flows:
    return {"weight_ih": Features(input[None]), "weight_hh": Features(hidden[0][None])}


def _conv_forms(layer: Any) -> dict[str, Form]:
    return {"weight": Form(layer.groups, (layer.in_channels // layer.groups, *layer.kernel_size))}


def _cell_forms(layer: Any) -> dict[str, Form]:
    return {"weight_ih": Form(1, (layer.input_size,)), "weight_hh": Form(1, (layer.hidden_size,))}


_KINDS: dict[type, _Kind] = {
    eqx.nn.Linear: _Kind(lambda layer: {"weight": Form(1, (_numbers_in(layer),))}, _linear),
    eqx.nn.Embedding: _Kind(lambda layer: {"weight": Form(1, (layer.num_embeddings,), is_table=True)}, _embedding),
    eqx.nn.Conv: _Kind(_conv_forms, _convolution),
    eqx.nn.ConvTranspose: _Kind(_conv_forms, _transposed),
    eqx.nn.GRUCell: _Kind(_cell_forms, _gru),
    eqx.nn.LSTMCell: _Kind(_cell_forms, _lstm),
}


def _kind(layer: Any) -> _Kind | None:
    return next((_KINDS[base] for base in type(layer).__mro__ if base in _KINDS), None)
