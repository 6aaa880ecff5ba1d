"""Masks that wait for a selection, so that many sites can be selected in the same passes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Bool

from .select import Heat, select_all


class Pending(NamedTuple):
    """What is to be selected, and what becomes of the winners.

    - `heats`: none, one or several selections.
    - `finish`: the winners of each heat (one mask for each contest) → the result.
    """

    heats: Sequence[Heat]
    finish: Callable[[list[list[Bool[Array, "..."]]]], Any]


def finish_all(pending: Sequence[Pending]) -> list[Any]:
    """The results, all heats selected side by side."""
    winners = iter(select_all([heat for p in pending for heat in p.heats]))
    return [p.finish([next(winners) for _ in p.heats]) for p in pending]
