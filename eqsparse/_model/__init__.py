"""Models: sparsify and materialise, partition and combine, masks out and in."""

from .buffers import own_buffers as own_buffers
from .parts import (
    combine as combine,
    get_masks as get_masks,
    nbytes as nbytes,
    partition as partition,
    set_masks as set_masks,
)
from .sparsify import is_sparsified as is_sparsified, materialise as materialise, sparsify as sparsify
