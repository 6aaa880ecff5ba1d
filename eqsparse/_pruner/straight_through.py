"""Straight-through training: masks follow dense weights, which all train."""

from typing import Any, ClassVar, final

import optax
from jaxtyping import ArrayLike

from .._check import instance, not_negative
from .._criterion import AbstractCriterion, Magnitude, Random
from ._transition import AbstractTransition, SelectEachStep
from .base import AbstractPruner
from .optimiser import AbstractUpkeep, Untouched
from .order import AbstractOrder, After
from .view import AbstractView, StraightThroughView


@final
class StraightThrough(AbstractPruner):
    """The model runs on the best weights by any criterion, chosen afresh each step; all weights train, as if the mask
    had derivative one.

    Stored weights stay dense; masks are those of the weights returned, from `init` on. Of the schedule only the
    sparsity counts: it is dense before the schedule's first update. `materialise` and export see the masks.

    ??? cite

        [Estimating or Propagating Gradients Through Stochastic Neurons](https://arxiv.org/abs/1308.3432)
    """

    criterion: AbstractCriterion
    view: StraightThroughView
    transition: ClassVar[AbstractTransition] = SelectEachStep()
    order: ClassVar[AbstractOrder] = After()
    upkeep: ClassVar[AbstractUpkeep] = Untouched()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        criterion: AbstractCriterion,
        decay: ArrayLike | None = None,
        **common: Any,
    ):
        """**Arguments:**

        - `criterion`: What a weight is worth.
        - `decay`: λ of the term `λ (1 - mask) w` that is added to the gradient, as in SR-STE; `None` for none.

        The others are those of every pruner.
        """
        instance(criterion, AbstractCriterion, "StraightThrough(criterion=...)", "a criterion")
        self.criterion = criterion
        self.view = StraightThroughView(decay)
        super().__init__(optim, **common)

    @property
    def decay(self) -> Any:
        return self.view.decay


@final
class MagnitudeSTE(AbstractPruner):
    """Straight-through training on the largest weights.

    ??? cite

        [Estimating or Propagating Gradients Through Stochastic Neurons](https://arxiv.org/abs/1308.3432)
    """

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = SelectEachStep()
    view: ClassVar[AbstractView] = StraightThroughView()
    order: ClassVar[AbstractOrder] = After()
    upkeep: ClassVar[AbstractUpkeep] = Untouched()


@final
class RandomSTE(AbstractPruner):
    """Straight-through training on weights drawn by lot, others at each step: a baseline. Needs a `key`.

    ??? cite

        [Estimating or Propagating Gradients Through Stochastic Neurons](https://arxiv.org/abs/1308.3432);
        [JaxPruner](https://arxiv.org/abs/2304.14082), section 3
    """

    criterion: ClassVar[AbstractCriterion] = Random()
    transition: ClassVar[AbstractTransition] = SelectEachStep()
    view: ClassVar[AbstractView] = StraightThroughView()
    order: ClassVar[AbstractOrder] = After()
    upkeep: ClassVar[AbstractUpkeep] = Untouched()


@final
class SRSTE(AbstractPruner):
    """Sparse-refined straight-through: `MagnitudeSTE`, with masked weights drawn to zero.

    The gradient is `g + λ (1 - mask) w`. It goes through the optimiser, so Adam scales it as it scales the rest.

    ??? cite

        [Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch](https://arxiv.org/abs/2102.04010),
        equation (9); there for N:M, here for any structure
    """

    view: StraightThroughView
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = SelectEachStep()
    order: ClassVar[AbstractOrder] = After()
    upkeep: ClassVar[AbstractUpkeep] = Untouched()

    def __init__(self, optim: optax.GradientTransformation | None = None, *, decay: ArrayLike = 2e-4, **common: Any):
        """**Arguments:**

        - `decay`: The paper's λ.

        The others are those of every pruner.
        """
        self.view = StraightThroughView(not_negative(decay, "SRSTE(decay=...)"))
        super().__init__(optim, **common)

    @property
    def decay(self) -> Any:
        return self.view.decay
