"""Gradual pruning: from dense to sparse while the model trains."""

from typing import Any, ClassVar, final

import optax
from jaxtyping import ArrayLike, PyTree

from .._check import instance
from .._criterion import AbstractCriterion, Fisher, Magnitude, Movement, Random, Saliency
from .._distribution import AbstractDistribution, Global, PerPath
from ._transition import AbstractTransition, Kept, Monotone, Select
from .base import AbstractPruner
from .optimiser import AbstractUpkeep, ZeroWhereDropped


@final
class GradualPruning(AbstractPruner):
    """Removes the weights that are worth least, by any criterion, as the schedule goes on.

    What is removed never comes back; its optimiser state is zero.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878)
    """

    criterion: AbstractCriterion
    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()

    def __init__(
        self, optim: optax.GradientTransformation | None = None, *, criterion: AbstractCriterion, **common: Any
    ):
        """**Arguments:**

        - `criterion`: What a weight is worth.

        The others are those of every pruner: `optim`, `distribution`, `schedule`, `structure`, `where`, `key`,
        `packed`.
        """
        instance(criterion, AbstractCriterion, "GradualPruning(criterion=...)", "a criterion")
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
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()


@final
class RandomPruning(AbstractPruner):
    """Gradual pruning of weights drawn by lot: the baseline that any criterion must beat. Needs a `key`.

    ??? cite

        [JaxPruner](https://arxiv.org/abs/2304.14082), section 3
    """

    criterion: ClassVar[AbstractCriterion] = Random()
    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()


@final
class SaliencyPruning(AbstractPruner):
    """Gradual pruning by `|w · g|`.

    ??? cite

        [Pruning Convolutional Neural Networks for Resource Efficient Transfer Learning](
        https://arxiv.org/abs/1611.06440)
    """

    criterion: ClassVar[AbstractCriterion] = Saliency()
    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()


@final
class GlobalMagnitudePruning(AbstractPruner):
    """Gradual pruning by magnitude, all sites in one competition; a float as distribution means `Global`, which divides
    the scores of each site by their L2 norm.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878); [JaxPruner](https://arxiv.org/abs/2304.14082),
        section 3, for the norms
    """

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()

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
    """Gradual pruning by `|w · g|`, all sites in one competition; a float as distribution means `Global`, which divides
    the scores of each site by their L2 norm.

    ??? cite

        [Pruning Convolutional Neural Networks for Resource Efficient Transfer Learning](
        https://arxiv.org/abs/1611.06440); [JaxPruner](https://arxiv.org/abs/2304.14082), section 3, for the norms
    """

    criterion: ClassVar[AbstractCriterion] = Saliency()
    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()

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
class FisherPruning(AbstractPruner):
    """Gradual pruning by `w² ν`, ν being the mean squared gradient: the optimiser's second moment where it has one
    (a field `nu`, as Adam's), else a running mean in the state. `prune(model, grads=...)` takes `w² g²`: of a trained
    model give it [`eqsparse.rms_gradients`][].

    ??? cite

        [Faster gaze prediction with dense networks and Fisher pruning](https://arxiv.org/abs/1801.05787);
        [WoodFisher](https://arxiv.org/abs/2004.14340)
    """

    transition: ClassVar[AbstractTransition] = Monotone()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()

    @property
    def criterion(self) -> AbstractCriterion:
        return Fisher()  # not when the class is made: an import must not start JAX, which may yet be told its devices


@final
class MovementPruning(AbstractPruner):
    """Movement pruning: weights that training moves towards zero go first, by `S = -Σ w · g`, kept in the state.

    Masks are chosen by S at each update, so a removed weight may come back. It comes back from zero, unlike in the
    paper, where removed weights keep their values: here what the mask removes is zero, and its S stands still.

    ??? cite

        [Movement Pruning: Adaptive Sparsity by Fine-Tuning](https://arxiv.org/abs/2005.07683), section 3
    """

    criterion: ClassVar[AbstractCriterion] = Movement()
    transition: ClassVar[AbstractTransition] = Select()


@final
class NoPruning(AbstractPruner):
    """Trains on the masks as they are: the dense baseline, or the recovery of a pruned model."""

    criterion: ClassVar[AbstractCriterion] = Magnitude()
    transition: ClassVar[AbstractTransition] = Kept()
    upkeep: ClassVar[AbstractUpkeep] = ZeroWhereDropped()

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
