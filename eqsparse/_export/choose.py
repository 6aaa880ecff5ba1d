"""Which layout a weight gets."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._kernels import available
from ._layout import AbstractLayout, DenseLayout, LAYOUTS
from ._layout.host import counts, Slices
from .conv import is_convolution, typical_window
from .latency import Convolutions, Products, seconds_of

# Faster by less than this is no reason to leave dense.
_MARGIN = 0.9


@dataclasses.dataclass(frozen=True)
class Smallest:
    """The layout of the fewest bytes, by arithmetic."""

    def __call__(self, slices: Slices, layer: Any) -> AbstractLayout:
        sizes = sizes_of(slices)
        best = min(sizes, key=lambda name: sizes[name])
        return LAYOUTS[best].encode(slices) if sizes[best] < sizes["dense"] else dense(slices, "none is smaller")


@dataclasses.dataclass(frozen=True)
class Fastest:
    """The layout of the fastest product or convolution with a batch, by measurement, of those smaller than dense.

    Where the layer has neither, dense is the fastest: the look-up of an embedding, a transposed or depthwise
    convolution, a module that takes its weights as arrays.
    """

    batch: int

    def __call__(self, slices: Slices, layer: Any) -> AbstractLayout:
        tasks = self._tasks(layer)
        if not tasks or 0 in slices.kept.shape:
            return dense(slices, "fastest")
        sizes = sizes_of(slices)
        names = [name for name in _candidates(tasks[0], slices) if sizes.get(name, sizes["dense"]) < sizes["dense"]]
        fullest = int(np.argmax(counts(slices.kept)))
        one = slices._replace(stack=(), weights=slices.weights[fullest, None], kept=slices.kept[fullest, None])
        layouts = {name: LAYOUTS[name].encode(one) for name in [*names, "dense"]}
        times = [seconds_of(layouts, task) for task in tasks] if names else []
        # Of dense, in the task where it does worst.
        share = {name: max(seconds[name] / seconds["dense"] for seconds in times) for name in names}
        best = min(share, key=lambda name: share[name], default=None)
        if best is None or share[best] > _MARGIN:
            return dense(slices, "fastest")
        return LAYOUTS[best].encode(slices)

    def _tasks(self, layer: Any) -> list[Products | Convolutions]:
        """What the layer does with its weight."""
        if type(layer) in _MULTIPLYING:
            return [Products(self.batch)]
        if is_convolution(layer):
            return [
                Convolutions(min(self.batch, images), typical_window(layer, positions))
                for images, positions in _IMAGES.items()
            ]
        return []


def _candidates(task: Products | Convolutions, slices: Slices) -> tuple[str, ...]:
    """The layouts that may be the fastest."""
    has_kernels = jax.default_backend() == "cpu" and available()
    if isinstance(task, Products) or task.window.is_product:
        return _CANDIDATES + _WITH_KERNELS if has_kernels else _CANDIDATES
    return _CONVOLVING if has_kernels and slices.weights.dtype.name in _DTYPES else ()


@dataclasses.dataclass(frozen=True)
class Always:
    """One layout, where it can hold the mask and is smaller than dense."""

    layout: type[AbstractLayout]

    def __call__(self, slices: Slices, layer: Any) -> AbstractLayout:
        itemsize = slices.weights.dtype.itemsize
        size = self.layout.bytes_of(slices.kept, itemsize)
        if self.layout is DenseLayout:
            return dense(slices, "asked for")
        if size is None:
            return dense(slices, f"{self.layout.name} does not fit")
        if size >= slices.weights.nbytes:
            return dense(slices, f"{self.layout.name} is larger")
        return self.layout.encode(slices)


@dataclasses.dataclass(frozen=True)
class Exactly:
    """One layout, come what may: what a user says of a path."""

    layout: type[AbstractLayout]
    path: str

    def __call__(self, slices: Slices, layer: Any) -> AbstractLayout:
        if self.layout is DenseLayout:
            return dense(slices, "asked for")
        if self.layout.bytes_of(slices.kept, slices.weights.dtype.itemsize) is None:
            raise ValueError(
                f"`export(layout=...)` must give each weight a layout that can hold its mask; for {self.layout.name!r} "
                f"that must be {self.layout.rule}. Got {slices.kept.sum()} kept of shape {slices.kept.shape} at "
                f"`{self.path}`."
            )
        return self.layout.encode(slices)


def sizes_of(slices: Slices) -> dict[str, int]:
    """Bytes of the weight in each layout that can hold its mask."""
    itemsize = slices.weights.dtype.itemsize
    sizes = {name: layout.bytes_of(slices.kept, itemsize) for name, layout in LAYOUTS.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def dense(slices: Slices, reason: str) -> DenseLayout:
    """Dense, and why."""
    return dataclasses.replace(DenseLayout.encode(slices), reason=reason)


_CANDIDATES = ("fixed_fanin", "bcsr", "block")
_WITH_KERNELS = ("nm",)  # without kernels of our own it is never the fastest, and takes seconds to time
_CONVOLVING = ("bcsr",)  # on kernels of our own; without, every layout makes its weight dense first
# The most images that a convolution is timed with, by their positions: what more of them take is in proportion, but
# dense ones gain by larger ones.
_IMAGES = {16: 64, 2: 1024}
_DTYPES = ("bfloat16", "float32")  # dtypes of our kernels
_MULTIPLYING = (eqx.nn.Linear, eqx.nn.GRUCell, eqx.nn.LSTMCell)
