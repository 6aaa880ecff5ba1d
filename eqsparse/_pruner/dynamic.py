"""Sparse from the start: masks that stay, or of which a part moves."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import optax
from jaxtyping import Array, ArrayLike, Float32

from .._check import instance, unit
from .._criterion import AbstractCriterion, GradientMagnitude, GradientMomentum, Magnitude, Random
from ._transition import AbstractTransition, DropGrow, Fixed
from .base import AbstractPruner
from .order import AbstractOrder, After, Before, Instead

Fraction = ArrayLike | Callable[[Any], Any]


@final
class StaticSparse(AbstractPruner):
    """Trains on masks drawn at `init` from the `key`, or on those of a model that is pruned already.

    The baseline for sparse training, and the way to train a pruned model on.

    ??? cite

        [The Difficulty of Training Sparse Neural Networks](https://arxiv.org/abs/1906.10732)
    """

    criterion: ClassVar[AbstractCriterion] = Random()
    transition: ClassVar[AbstractTransition] = Fixed()


@final
class DynamicSparse(AbstractPruner):
    """At each update the weights worth least are dropped and as many grow, by any two criteria. Needs a `key`.

    The number of weights is exact at all times: two exact selections, no offsets added to scores. A weight that
    grows starts at zero with a fresh optimiser state; one that is dropped and grown at once keeps both. A NaN gain
    never grows. Masks are drawn at `init`, unless the model is pruned already.
    """

    criterion: AbstractCriterion
    transition: DropGrow
    order: AbstractOrder

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        drop: AbstractCriterion,
        grow: AbstractCriterion,
        drop_fraction: Fraction = 0.3,
        order: AbstractOrder = Before(),  # noqa: B008 (a module: immutable)
        **common: Any,
    ):
        """**Arguments:**

        - `drop`: What a weight that is there is worth.
        - `grow`: What a removed weight would gain.
        - `drop_fraction`: Share of the weights dropped at an update: a number, from which it falls with a cosine to 0
            at the schedule's last update; or a function of the step, as Optax's schedules.
        - `order`: Whether masks change before the optimiser's step, after it or instead of it.

        The others are those of every pruner.
        """
        for name, value in {"drop": drop, "grow": grow}.items():
            instance(value, AbstractCriterion, f"DynamicSparse({name}=...)", "a criterion")
        instance(order, AbstractOrder, "DynamicSparse(order=...)", "an order")
        self.criterion = drop
        self.transition = DropGrow(grow, drop_fraction)
        self.order = order
        super().__init__(optim, **common)

    @property
    def drop(self) -> AbstractCriterion:
        return self.criterion

    @property
    def grow(self) -> AbstractCriterion:
        return self.transition.grow

    @property
    def drop_fraction(self) -> Fraction:
        return self.transition.drop_fraction


@final
class SET(AbstractPruner):
    """Sparse evolutionary training: the smallest weights go, others drawn by lot grow. Needs a `key`.

    The optimiser steps and masks are updated after. Unlike in the paper, a weight that is just dropped may be drawn
    again (it keeps its value), and the smallest are those of least magnitude of either sign.

    ??? cite

        [Scalable training of artificial neural networks with adaptive sparse connectivity](
        https://arxiv.org/abs/1707.04780), algorithm 1
    """

    transition: DropGrow
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    order: ClassVar[AbstractOrder] = After()

    def __init__(
        self, optim: optax.GradientTransformation | None = None, *, drop_fraction: Fraction = 0.3, **common: Any
    ):
        """**Arguments:**

        - `drop_fraction`: The paper's ζ: a number, from which it falls with a cosine to 0 at the schedule's last
            update; or a function of the step, as Optax's schedules.

        The others are those of every pruner.
        """
        self.transition = DropGrow(Random(), drop_fraction)
        super().__init__(optim, **common)

    @property
    def drop_fraction(self) -> Fraction:
        return self.transition.drop_fraction


@final
class RigL(AbstractPruner):
    """Rigging the lottery: the smallest weights go, those of the largest gradients grow. Needs a `key`.

    An update replaces the optimiser's step. With `structure=FixedFanIn(ablation=0.3)` it is SRigL.

    ??? cite

        [Rigging the Lottery](https://arxiv.org/abs/1911.11134), algorithm 1
    """

    transition: DropGrow
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    order: ClassVar[AbstractOrder] = Instead()

    def __init__(
        self, optim: optax.GradientTransformation | None = None, *, drop_fraction: Fraction = 0.3, **common: Any
    ):
        """**Arguments:**

        - `drop_fraction`: The paper's α: a number, from which it falls with a cosine to 0 at the schedule's last
            update; or a function of the step, as Optax's schedules.

        The others are those of every pruner. `schedule=Periodic(0, stop, 100)` with `stop` at three quarters of the
        steps is the paper's.
        """
        self.transition = DropGrow(GradientMagnitude(), drop_fraction)
        super().__init__(optim, **common)

    @property
    def drop_fraction(self) -> Fraction:
        return self.transition.drop_fraction


@final
class SNFS(AbstractPruner):
    """Sparse momentum: the smallest weights go, those of the largest gradient momentum grow. Needs a `key`.

    The momentum of all weights is kept in the state (four bytes for each). Unlike in the paper, layers keep the
    number of weights that the distribution gives them, and as many grow as are dropped.

    ??? cite

        [Sparse Networks from Scratch: Faster Training without Losing Performance](https://arxiv.org/abs/1907.04840)
    """

    transition: DropGrow
    criterion: ClassVar[AbstractCriterion] = Magnitude()
    order: ClassVar[AbstractOrder] = Before()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        drop_fraction: Fraction = 0.5,
        momentum: ArrayLike = 0.9,
        **common: Any,
    ):
        """**Arguments:**

        - `drop_fraction`: Share of the weights dropped at an update: a number, from which it falls with a cosine to 0
            at the schedule's last update; or a function of the step, as Optax's schedules.
        - `momentum`: Decay of the running mean of the gradient, in `[0, 1]`.

        The others are those of every pruner.
        """
        self.transition = DropGrow(GradientMomentum(unit(momentum, "SNFS(momentum=...)")), drop_fraction)
        super().__init__(optim, **common)

    @property
    def drop_fraction(self) -> Fraction:
        return self.transition.drop_fraction

    @property
    def momentum(self) -> Float32[Array, "..."]:
        grow = self.transition.grow
        assert isinstance(grow, GradientMomentum)
        return grow.decay
