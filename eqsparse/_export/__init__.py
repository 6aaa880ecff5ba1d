"""Sparse layers for inference, the way to them, and files."""

from ._file import load as load, save as save
from ._layout import (
    AbstractLayout as AbstractLayout,
    BCOOLayout as BCOOLayout,
    BCSRLayout as BCSRLayout,
    BitmaskLayout as BitmaskLayout,
    BlockLayout as BlockLayout,
    DeltaLayout as DeltaLayout,
    DenseLayout as DenseLayout,
    FixedFanInLayout as FixedFanInLayout,
    NMLayout as NMLayout,
)
from .bcoo import to_bcoo as to_bcoo
from .deployment import deploy as deploy
from .export import export as export
from .linear import BCOOLinear as BCOOLinear
from .sparse import SparseLayer as SparseLayer
