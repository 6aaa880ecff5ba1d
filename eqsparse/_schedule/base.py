"""What a schedule is: when masks change, and how far towards the target."""

import abc

import equinox as eqx
from jaxtyping import Array, ArrayLike, Bool, Float, Int32

from .._show import show


class AbstractSchedule(eqx.Module):
    """When masks are updated, and which sparsity they have then.

    Its numbers are array leaves: changing them does not recompile, mapping over them is a sweep.
    """

    @abc.abstractmethod
    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        """Whether the masks are updated at `step` (counted from 0), traced or not."""

    @abc.abstractmethod
    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        """The sparsity at `step` on the way to `target`; once it is reached, `target` itself, bit for bit."""

    def last(self) -> Int32[Array, ""] | None:
        """The step of the last update, if there is one: where a drop fraction has fallen to 0."""
        return None

    def __repr__(self) -> str:
        return show(self)
