"""n of each run of m."""

from typing import final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32, UInt8

from ..._kernels import nm_product, nm_rows, pack, unpack_on_host, width
from .base import AbstractLayout
from .host import Slices

_LARGEST_RUN = 16


@final
class NMLayout(AbstractLayout):
    """Values, and for each its place in its run of m along the rows, in 1 to 4 bits. For masks of `eqsparse.NM`.

    Products rebuild some rows on the fly, never the whole matrix at once.
    """

    values: Inexact[Array, "*stack out_size kept_in_row"]
    shape: tuple[int, int] = eqx.field(static=True)
    places: UInt8[Array, "*stack out_size packed"]
    n: int = eqx.field(static=True)
    m: int = eqx.field(static=True)

    name = "nm"
    rule = "such that each run of m along the rows keeps n, for some m of 2 to 16 that divides them"
    value_rank = 2

    @classmethod
    def encode(cls, slices: Slices) -> "NMLayout":
        n, m = _pattern(slices.kept)
        runs = slices.kept.reshape(-1, m)
        lines = (*slices.kept.shape[:2], slices.shape[1] // m * n)
        return cls(
            slices.restack(slices.weights[slices.kept].reshape(lines)),
            slices.shape,
            slices.restack(pack(np.nonzero(runs)[1].reshape(lines), width(m))),
            n,
            m,
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        n, m = _pattern(kept)
        in_row = kept.shape[2] // m * n
        return len(kept) * kept.shape[1] * (in_row * itemsize + -(-in_row // 8) * width(m)) if n else None

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return nm_rows(self.values, self.places, start, count, self.n, self.m, self.shape[1])

    def kept(self, values: np.ndarray, places: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        codes = unpack_on_host(places, width(self.m), values.shape[1])
        kept = np.zeros((self.shape[0], self.shape[1] // self.m, self.m), bool)
        np.put_along_axis(kept, codes.reshape(*kept.shape[:2], self.n), True, axis=2)
        return kept.reshape(self.shape)

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return nm_product(self.values, (self.places,), x, self.shape, n=self.n, m=self.m)


def _pattern(kept: Bool[np.ndarray, "slices out_size in_size"]) -> tuple[int, int]:
    """(n, m) for the shortest runs that all keep as many; (0, 1) if there are none."""
    if kept.size == 0:
        return 0, 1
    for m in range(2, _LARGEST_RUN + 1):
        if kept.shape[2] % m == 0:
            in_run = np.count_nonzero(kept.reshape(-1, m), axis=1)
            if 0 < in_run[0] < m and np.all(in_run == in_run[0]):
                return int(in_run[0]), m
    return 0, 1
