"""Products of sparse and dense, behind one interface."""

from .csr import row_indices as row_indices
from .plain import CUSTOM_CALLS as CUSTOM_CALLS, plain_operations as plain_operations
from .spmm import spmm as spmm
