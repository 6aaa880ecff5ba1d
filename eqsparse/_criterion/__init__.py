"""What a weight is worth."""

from .base import AbstractCriterion as AbstractCriterion
from .criteria import (
    Flow as Flow,
    GradientMagnitude as GradientMagnitude,
    Magnitude as Magnitude,
    Random as Random,
    Saliency as Saliency,
)
from .remembering import Fisher as Fisher, GradientMomentum as GradientMomentum, Movement as Movement
