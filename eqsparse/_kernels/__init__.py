"""Products of sparse and dense, behind one interface."""

from ._native import available as available, build as build, Built as Built, fingerprint as fingerprint
from ._pallas import pallas_fingerprint as pallas_fingerprint, use_pallas as use_pallas
from .bits import pack as pack, unpack as unpack, unpack_on_host as unpack_on_host
from .blocks import block_product as block_product
from .convolution import csr_convolution as csr_convolution, Window as Window
from .csr import dense_csr as dense_csr, row_indices as row_indices
from .fan_in import fan_in_product as fan_in_product
from .linear import SparseProduct as SparseProduct
from .order import not_before as not_before
from .plain import (
    CUSTOM_CALLS as CUSTOM_CALLS,
    operations_of_jax as operations_of_jax,
    plain_operations as plain_operations,
)
from .spmm import spmm as spmm
from .tiles import (
    bitmask_product as bitmask_product,
    bitmask_rows as bitmask_rows,
    bitmask_starts as bitmask_starts,
    nm_product as nm_product,
    nm_rows as nm_rows,
    width as width,
)
