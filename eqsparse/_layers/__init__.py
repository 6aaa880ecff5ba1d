"""Masked layers."""

from .base import AbstractMasked as AbstractMasked
from .named import Masked as Masked
from .twins import (
    AbstractMaskedTwin as AbstractMaskedTwin,
    CONTRACTION_AXIS as CONTRACTION_AXIS,
    core_rank as core_rank,
    maskable_fields as maskable_fields,
    MaskedConv as MaskedConv,
    MaskedConv1d as MaskedConv1d,
    MaskedConv2d as MaskedConv2d,
    MaskedConv3d as MaskedConv3d,
    MaskedConvTranspose as MaskedConvTranspose,
    MaskedConvTranspose1d as MaskedConvTranspose1d,
    MaskedConvTranspose2d as MaskedConvTranspose2d,
    MaskedConvTranspose3d as MaskedConvTranspose3d,
    MaskedEmbedding as MaskedEmbedding,
    MaskedGRUCell as MaskedGRUCell,
    MaskedLinear as MaskedLinear,
    MaskedLSTMCell as MaskedLSTMCell,
    twin_of as twin_of,
)
