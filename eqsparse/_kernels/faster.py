"""Where a faster kernel plugs in."""

from collections.abc import Callable
from typing import NamedTuple


class Faster(NamedTuple):
    """The three functions of a `SparseProduct`, faster somewhere; `None` where JAX has a faster one."""

    product: Callable | None
    transposed: Callable | None
    sampled: Callable | None
    serves: Callable[..., bool]
    """`(platforms, *arrays)` tells whether they take such arrays, the last one dense, on what is lowered for."""
