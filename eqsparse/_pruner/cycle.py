"""Dense and sparse phases in turn, and rounds that rewind."""

from typing import Any, ClassVar, final

import optax
from jaxtyping import Array, ArrayLike, Int32

from .._check import instance, known, whole
from .._criterion import AbstractCriterion, Magnitude
from .._schedule import Rounds
from ._transition import AbstractTransition, Select
from .base import AbstractPruner
from .optimiser import AbstractUpkeep, FreshAtUpdates, FreshWhereGrown
from .order import Rewinding


@final
class ACDC(AbstractPruner):
    """Alternating compressed / decompressed training: `schedule=Alternating(...)`.

    At the end of a dense phase the largest weights are kept and the others set to zero; at the end of a sparse phase
    all may train again, from zero. In the paper all layers compete (`distribution=Global(..., normalise=False)`); a
    float means each for itself here as everywhere.

    ??? cite

        [AC/DC: Alternating Compressed/DeCompressed Training](https://arxiv.org/abs/2106.12379), algorithm 1
    """

    upkeep: AbstractUpkeep
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Select()

    def __init__(self, optim: optax.GradientTransformation | None = None, *, reset: bool = True, **common: Any):
        """**Arguments:**

        - `reset`: Whether the optimiser's state of all parameters is made anew where a phase begins (momentum, as in
            the paper's code; counters go on), or that of weights that grow only. Gradients that `optax.MultiSteps`
            has gathered go too: begin phases where it steps.

        The others are those of every pruner.
        """
        instance(reset, bool, "ACDC(reset=...)", "a bool")
        self.upkeep = FreshAtUpdates() if reset else FreshWhereGrown()
        super().__init__(optim, **common)

    @property
    def reset(self) -> bool:
        return isinstance(self.upkeep, FreshAtUpdates)


@final
class LotteryTicket(AbstractPruner):
    """Iterative magnitude pruning with rewinding: rounds of training, after each of which the same share of what is
    left is removed and all parameters go back to what they were before step `rewind`.

    The target is reached after `rounds` rounds, that is at step `rounds * steps`; then train the ticket. A step that
    rewinds does nothing else. The optimiser's state is made anew then, its counters go on (so a learning rate
    schedule should repeat with the rounds). Takes no `schedule`. The first paper prunes small networks layer by layer,
    as a float does here, and deep ones globally (`distribution=Global(..., normalise=False)`). By `as_optax`, which can
    only add, parameters go back up to rounding, and one that has become NaN stays so.

    ??? cite

        [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2; [Linear Mode Connectivity and the
        Lottery Ticket Hypothesis](https://arxiv.org/abs/1912.05671) for `rewind > 0`
    """

    schedule: Rounds
    order: Rewinding
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    upkeep: ClassVar[AbstractUpkeep] = FreshAtUpdates()
    determined: ClassVar[tuple[str, ...]] = ("schedule",)

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        rounds: ArrayLike,
        steps: ArrayLike,
        rewind: ArrayLike = 0,
        **common: Any,
    ):
        """**Arguments:**

        - `rounds`: How often weights are removed.
        - `steps`: Steps of training in each round.
        - `rewind`: The step of the first round whose parameters all rounds go back to.

        The others are those of every pruner, without `schedule`.
        """
        if "schedule" in common:
            raise ValueError("`LotteryTicket(schedule=...)` must not be given: `rounds` and `steps` say when.")
        self.order = Rewinding(rewind)
        whole(rounds, "LotteryTicket(rounds=...)", 1)
        whole(steps, "LotteryTicket(steps=...)", 1)
        self.schedule = Rounds(rounds, steps)
        if known(self.rewind) and known(self.steps) and self.rewind >= self.steps:
            raise ValueError(
                f"`LotteryTicket(rewind=...)` must be a step of the first round, below `steps={int(self.steps)}`. "
                f"Got {int(self.rewind)}."
            )
        super().__init__(optim, schedule=self.schedule, **common)

    @property
    def rounds(self) -> Int32[Array, ""]:
        return self.schedule.rounds

    @property
    def steps(self) -> Int32[Array, ""]:
        return self.schedule.steps

    @property
    def rewind(self) -> Int32[Array, ""]:
        return self.order.to
