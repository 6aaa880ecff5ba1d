"""What a weight is worth."""

from .base import AbstractCriterion as AbstractCriterion
from .criteria import (
    GradientMagnitude as GradientMagnitude,
    Magnitude as Magnitude,
    Random as Random,
    Saliency as Saliency,
)
