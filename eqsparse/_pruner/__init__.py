"""The step, composed of pieces, and the named algorithms."""

from .base import AbstractPruner as AbstractPruner, PrunerState as PrunerState
from .gradual import (
    GlobalMagnitudePruning as GlobalMagnitudePruning,
    GlobalSaliencyPruning as GlobalSaliencyPruning,
    GradualPruning as GradualPruning,
    MagnitudePruning as MagnitudePruning,
    NoPruning as NoPruning,
    RandomPruning as RandomPruning,
    SaliencyPruning as SaliencyPruning,
)
from .transition import AbstractTransition as AbstractTransition, Monotone as Monotone
