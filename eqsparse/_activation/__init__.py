"""Sparse activations: of what a layer gives, the most is set to zero."""

from .activation import (
    ActivationSparsity as ActivationSparsity,
    schedule_activations as schedule_activations,
)
