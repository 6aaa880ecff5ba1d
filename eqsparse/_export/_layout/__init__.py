"""Ways to store a sparse matrix."""

from .base import AbstractLayout as AbstractLayout
from .bcoo import BCOOLayout as BCOOLayout
from .bcsr import BCSRLayout as BCSRLayout
from .bitmask import BitmaskLayout as BitmaskLayout
from .block import BlockLayout as BlockLayout
from .delta import DeltaLayout as DeltaLayout
from .dense import DenseLayout as DenseLayout
from .fixed_fanin import FixedFanInLayout as FixedFanInLayout
from .nm import NMLayout as NMLayout

# Of layouts of one size the first is taken: that with the least to do when it is called.
LAYOUTS: dict[str, type[AbstractLayout]] = {
    layout.name: layout
    for layout in (
        BlockLayout, NMLayout, FixedFanInLayout, BCSRLayout, BCOOLayout, BitmaskLayout, DeltaLayout, DenseLayout
    )
}  # fmt: skip
