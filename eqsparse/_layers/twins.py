"""The masked twins of Equinox's layers: made as these are made, or from one of them."""

import inspect
from typing import Any, ClassVar, final

import equinox as eqx

from .._mask import Mask
from .base import AbstractMasked, masks_for


class AbstractMaskedTwin(AbstractMasked):
    """A masked layer that takes the arguments of the Equinox layer it masks, and `mask` and `packed`."""

    layer: eqx.AbstractVar[Any]
    masks: eqx.AbstractVar[dict[str, Mask]]

    layer_type: ClassVar[type[eqx.Module]]
    fields: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, *args: Any, mask: Any = None, packed: bool = False, **kwargs: Any):
        """**Arguments:** those of the Equinox layer, and

        - `mask`: Boolean array of the weight's shape, `True` = kept (for cells: a dict by field).
            All is kept by default.
        - `packed`: Store masks with eight weights to a byte.
        """
        self.layer = self.layer_type(*args, **kwargs)
        self.masks = masks_for(self.layer, self.fields, mask, packed=packed)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "layer_type" in cls.__dict__:
            cls.__init__ = _showing_signature_of(cls.layer_type)

    @classmethod
    def from_layer(cls, layer: Any, mask: Any = None, packed: bool = False) -> Any:
        """Masks an existing layer; its weights are untouched.

        **Arguments:**

        - `layer`: The Equinox layer.
        - `mask`: Boolean array of the weight's shape, `True` = kept; for cells a dict by field.
            All is kept by default.
        - `packed`: Store masks with eight weights to a byte.

        **Raises:** `ValueError` if `layer` is of another kind, or a mask has another shape or dtype.
        """
        if not isinstance(layer, cls.layer_type):
            raise ValueError(
                f"`{cls.__name__}.from_layer(layer=...)` must be an `eqx.nn.{cls.layer_type.__name__}`. "
                f"Got {type(layer).__name__}."
            )
        return cls.holding(layer, masks_for(layer, cls.fields, mask, packed=packed))

    @classmethod
    def holding(cls, layer: Any, masks: dict[str, Mask]) -> Any:
        """Around an existing layer, as it is, with masks for some of its fields or for none."""
        self = object.__new__(cls)  # not `__init__`, which would make a new layer
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "masks", masks)
        return self

    def core_rank(self, name: str) -> int:
        return core_rank(self.layer)

    def contraction_axis(self, name: str) -> int:
        return CONTRACTION_AXIS


CONTRACTION_AXIS = 1  # Equinox's weights are (out, in, *kernel), its cells' (gates, in)


def core_rank(layer: eqx.Module) -> int:
    """Rank of the weights of one Equinox layer."""
    return 2 + getattr(layer, "num_spatial_dims", 0)


def _showing_signature_of(layer_type: type[eqx.Module]) -> Any:
    """`AbstractMaskedTwin.__init__`, with the layer's own arguments for `help` and `inspect` to show."""

    def __init__(self, *args: Any, mask: Any = None, packed: bool = False, **kwargs: Any):
        AbstractMaskedTwin.__init__(self, *args, mask=mask, packed=packed, **kwargs)

    signature = inspect.signature(layer_type.__init__)
    parameters = list(signature.parameters.values())
    at = next((i for i, p in enumerate(parameters) if p.name == "key"), len(parameters))
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = [inspect.Parameter("mask", keyword, default=None), inspect.Parameter("packed", keyword, default=False)]
    if any(p.kind is keyword for p in parameters[at:]):
        parameters[at:at] = ours
    else:  # Embedding takes `key` by keyword after positional ones
        parameters += ours
    __init__.__signature__ = signature.replace(parameters=parameters)
    __init__.__doc__ = AbstractMaskedTwin.__init__.__doc__
    return __init__


@final
class MaskedLinear(AbstractMaskedTwin):
    """`equinox.nn.Linear` on masked weights: a linear layer, `weight` of shape `(out, in)`."""

    layer: eqx.nn.Linear
    masks: dict[str, Mask]

    layer_type = eqx.nn.Linear


@final
class MaskedConv(AbstractMaskedTwin):
    """`equinox.nn.Conv` on masked weights, `weight` of shape `(out, in / groups, *kernel)`."""

    layer: eqx.nn.Conv
    masks: dict[str, Mask]

    layer_type = eqx.nn.Conv


@final
class MaskedConv1d(AbstractMaskedTwin):
    """`equinox.nn.Conv1d` on masked weights: a 1-D convolution."""

    layer: eqx.nn.Conv1d
    masks: dict[str, Mask]

    layer_type = eqx.nn.Conv1d


@final
class MaskedConv2d(AbstractMaskedTwin):
    """`equinox.nn.Conv2d` on masked weights: a 2-D convolution."""

    layer: eqx.nn.Conv2d
    masks: dict[str, Mask]

    layer_type = eqx.nn.Conv2d


@final
class MaskedConv3d(AbstractMaskedTwin):
    """`equinox.nn.Conv3d` on masked weights: a 3-D convolution."""

    layer: eqx.nn.Conv3d
    masks: dict[str, Mask]

    layer_type = eqx.nn.Conv3d


@final
class MaskedConvTranspose(AbstractMaskedTwin):
    """`equinox.nn.ConvTranspose` on masked weights: a transposed convolution of any number of spatial dimensions."""

    layer: eqx.nn.ConvTranspose
    masks: dict[str, Mask]

    layer_type = eqx.nn.ConvTranspose


@final
class MaskedConvTranspose1d(AbstractMaskedTwin):
    """`equinox.nn.ConvTranspose1d` on masked weights: a 1-D transposed convolution."""

    layer: eqx.nn.ConvTranspose1d
    masks: dict[str, Mask]

    layer_type = eqx.nn.ConvTranspose1d


@final
class MaskedConvTranspose2d(AbstractMaskedTwin):
    """`equinox.nn.ConvTranspose2d` on masked weights: a 2-D transposed convolution."""

    layer: eqx.nn.ConvTranspose2d
    masks: dict[str, Mask]

    layer_type = eqx.nn.ConvTranspose2d


@final
class MaskedConvTranspose3d(AbstractMaskedTwin):
    """`equinox.nn.ConvTranspose3d` on masked weights: a 3-D transposed convolution."""

    layer: eqx.nn.ConvTranspose3d
    masks: dict[str, Mask]

    layer_type = eqx.nn.ConvTranspose3d


@final
class MaskedEmbedding(AbstractMaskedTwin):
    """`equinox.nn.Embedding` on masked weights, `weight` of shape `(num_embeddings, embedding_size)`."""

    layer: eqx.nn.Embedding
    masks: dict[str, Mask]

    layer_type = eqx.nn.Embedding


@final
class MaskedGRUCell(AbstractMaskedTwin):
    """`equinox.nn.GRUCell` on masked weights: `weight_ih` and `weight_hh`, of shape `(3 * hidden, in)`."""

    layer: eqx.nn.GRUCell
    masks: dict[str, Mask]

    layer_type = eqx.nn.GRUCell
    fields = ("weight_ih", "weight_hh")


@final
class MaskedLSTMCell(AbstractMaskedTwin):
    """`equinox.nn.LSTMCell` on masked weights: `weight_ih` and `weight_hh`, of shape `(4 * hidden, in)`."""

    layer: eqx.nn.LSTMCell
    masks: dict[str, Mask]

    layer_type = eqx.nn.LSTMCell
    fields = ("weight_ih", "weight_hh")


_TWINS: dict[type, type[AbstractMaskedTwin]] = {
    eqx.nn.Linear: MaskedLinear,
    eqx.nn.Conv: MaskedConv,
    eqx.nn.Conv1d: MaskedConv1d,
    eqx.nn.Conv2d: MaskedConv2d,
    eqx.nn.Conv3d: MaskedConv3d,
    eqx.nn.ConvTranspose: MaskedConvTranspose,
    eqx.nn.ConvTranspose1d: MaskedConvTranspose1d,
    eqx.nn.ConvTranspose2d: MaskedConvTranspose2d,
    eqx.nn.ConvTranspose3d: MaskedConvTranspose3d,
    eqx.nn.Embedding: MaskedEmbedding,
    eqx.nn.GRUCell: MaskedGRUCell,
    eqx.nn.LSTMCell: MaskedLSTMCell,
}


def twin_of(node: Any) -> type[AbstractMaskedTwin] | None:
    """The masked class for an Equinox layer (or for its nearest base class), if there is one."""
    return next((_TWINS[base] for base in type(node).__mro__ if base in _TWINS), None)


def maskable_fields(layer: Any) -> tuple[str, ...]:
    """The fields of an Equinox layer that its masked twin masks."""
    twin = twin_of(layer)
    return () if twin is None else twin.fields
