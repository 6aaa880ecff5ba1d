"""Products of sparse and dense, behind one interface."""

from .csr import row_indices as row_indices
from .spmm import spmm as spmm
