"""Which shape a mask may take, and who competes with whom."""

from .base import (
    AbstractPooling as AbstractPooling,
    AbstractStructure as AbstractStructure,
    Geometry as Geometry,
    is_lot as is_lot,
)
from .block import Block as Block
from .channel import Channel as Channel
from .fan_in import FixedFanIn as FixedFanIn
from .nm import NM as NM
from .unstructured import Unstructured as Unstructured
