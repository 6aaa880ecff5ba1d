"""Gradual pruning: from dense to sparse while the model trains."""

from typing import Any, ClassVar, final

import optax
from jaxtyping import ArrayLike, PyTree

from .._criterion import AbstractCriterion, Magnitude, Random, Saliency
from .._distribution import AbstractDistribution, Global, PerPath
from .base import AbstractPruner
from .transition import AbstractTransition, Monotone


@final
class GradualPruning(AbstractPruner):
    """Removes the weights that are worth least, by any criterion, as the schedule goes on.

    What is removed never comes back; its optimiser state is zero.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878)
    """

    criterion: AbstractCriterion
    transition: ClassVar[AbstractTransition] = Monotone()

    def __init__(
        self, optim: optax.GradientTransformation | None = None, *, criterion: AbstractCriterion, **common: Any
    ):
        """**Arguments:**

        - `criterion`: What a weight is worth.

        The others are those of every pruner: `optim`, `distribution`, `schedule`, `structure`, `where`, `key`,
        `packed`.
        """
        self.criterion = criterion
        super().__init__(optim, **common)


@final
class MagnitudePruning(AbstractPruner):
    """Gradual pruning by weight magnitude.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878)
    """

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Monotone()


@final
class RandomPruning(AbstractPruner):
    """Gradual pruning of weights drawn by lot: the baseline that any criterion must beat. Needs a `key`."""

    criterion: ClassVar[AbstractCriterion] = Random()
    transition: ClassVar[AbstractTransition] = Monotone()


@final
class SaliencyPruning(AbstractPruner):
    """Gradual pruning by `|w · g|`.

    ??? cite

        [Pruning Convolutional Neural Networks for Resource Efficient Transfer Learning](
        https://arxiv.org/abs/1611.06440)
    """

    criterion: ClassVar[AbstractCriterion] = Saliency()
    transition: ClassVar[AbstractTransition] = Monotone()


@final
class GlobalMagnitudePruning(AbstractPruner):
    """Gradual pruning by magnitude, all sites in one competition; a float as distribution means `Global`."""

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Monotone()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        **common: Any,
    ):
        """**Arguments:** those of every pruner. A float as `distribution` stands for `Global`."""
        super().__init__(optim, distribution=as_global(distribution), **common)


@final
class GlobalSaliencyPruning(AbstractPruner):
    """Gradual pruning by `|w · g|`, all sites in one competition; a float as distribution means `Global`."""

    criterion: ClassVar[AbstractCriterion] = Saliency()
    transition: ClassVar[AbstractTransition] = Monotone()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        **common: Any,
    ):
        """**Arguments:** those of every pruner. A float as `distribution` stands for `Global`."""
        super().__init__(optim, distribution=as_global(distribution), **common)


@final
class NoPruning(AbstractPruner):
    """Trains on the masks as they are: the dense baseline, or the recovery of a pruned model."""

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Monotone()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: PyTree = None,
        **common: Any,
    ):
        """**Arguments:** those of every pruner; no distribution is needed, and none is used."""
        del distribution
        super().__init__(optim, distribution=PerPath({}), **common)


def as_global(value: AbstractDistribution | ArrayLike) -> AbstractDistribution:
    return value if isinstance(value, AbstractDistribution) else Global(value)
