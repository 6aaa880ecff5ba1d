"""Training on the weights that are kept, and nothing else."""

from .training import SparseTraining as SparseTraining
