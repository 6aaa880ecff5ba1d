"""Masks chosen afresh, whatever they were."""

from typing import final

from jaxtyping import ArrayLike

from ..._schedule import AbstractSchedule
from .base import AbstractBudgetwise, Masks, Moment, WORTH


@final
class Select(AbstractBudgetwise):
    """The best weights are kept, removed ones among them where their scores earn it; as the schedule says.

    With [`eqsparse.Alternating`][] masks are full in between (AC/DC).
    """

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return moment.choose(moment.scored(WORTH)), {}


@final
class SelectEachStep(AbstractBudgetwise):
    """As `Select`, at `init` and at every step; of the schedule only the sparsity counts."""

    def is_due(self, schedule: AbstractSchedule, step: ArrayLike) -> bool:
        return True

    def start(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return self.update(masks, moment) if moment.scorable(WORTH) else (masks, {})

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return moment.choose(moment.scored(WORTH)), {}
