"""Pruned after training, by what flows into each weight."""

from collections.abc import Mapping
from typing import Any, ClassVar, final, TypeVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, PyTree

from .._check import instance
from .._criterion import AbstractCriterion
from .._distribution import AbstractDistribution
from .._pruner import AbstractPruner, AbstractTransition, Kept, Moment, Monotone
from .._pruner.plan import Plan
from .._sites import read, Site, write
from .._structure import AbstractStructure, Unstructured
from .criteria import InputMagnitude, RelativeImportance
from .statistic import SECOND_MOMENT
from .statistics import Statistics

_Model = TypeVar("_Model")
_ROWS = Unstructured("row")


class AbstractPostTraining(AbstractPruner):
    """Prunes a trained model at once, from statistics of what flows into its weights; training keeps the masks.

    Only `prune` prunes: `init` takes the model as it is, and `schedule` has no say.

    ```python
    statistics = eqsparse.calibrate(model, batches)
    pruner = eqsparse.Wanda(optax.adam(1e-5), distribution=0.5)
    model = pruner.prune(model, statistics=statistics)
    model, state = pruner.init(model)  # to train it on, if need be
    ```
    """

    transition: ClassVar[AbstractTransition] = Kept()

    statistic: ClassVar[str] = SECOND_MOMENT
    """The statistic that it goes by, as `eqsparse.calibrate` calls it."""

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        structure: AbstractStructure | Mapping[Any, AbstractStructure] = Unstructured(),  # noqa: B008
        **common: Any,
    ):
        """**Arguments:** those of every pruner."""
        super().__init__(optim, distribution=distribution, structure=structure, **common)

    def prune(self, model: _Model, *, statistics: Statistics | None = None) -> _Model:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prunes to the target at once.

        **Arguments:**

        - `model`: An Equinox model. Weights that are masked already stay so.
        - `statistics`: Must be given: of the same model, from `eqsparse.calibrate`. Gram matrices for `SparseGPT`,
            second moments for others.

        **Returns:** A model with masked layers, weights zeroed.

        **Raises:** `ValueError` if there is nothing to prune, or no statistics of a weight that is to be pruned.
        """
        argument = f"{type(self).__name__}.prune(statistics=...)"
        instance(statistics, Statistics, argument, "what `eqsparse.calibrate` returns")
        assert statistics is not None
        distribution = self.distribution.informed(statistics)
        pruner = self
        if distribution is not self.distribution:
            pruner = eqx.tree_at(lambda pruner: pruner.distribution, self, distribution)
        model = pruner._checked(model)
        return pruner.prune_only(model, statistics, pruner.plan_for(read(model))(distribution))

    def prune_only(self, model: _Model, statistics: Statistics, made: Plan) -> _Model:
        """Prunes the sites of the plan, in a model with masked layers."""
        weights, masks = self.solve(model, statistics, made)
        return self._pruned(write(model, weights), masks)

    def solve(self, model: PyTree, statistics: Statistics, made: Plan) -> tuple[dict[str, Array], dict[str, Array]]:
        """New weights, where these change, and masks of the sites of a plan, by path."""
        return {}, self.by_criterion(model, statistics, tuple(made.sites))

    @eqx.filter_jit
    def by_criterion(self, model: PyTree, statistics: Statistics, paths: tuple[str, ...]) -> dict[str, Array]:
        """Masks of the weights at some paths, those of whole budgets, by what the criterion says each is worth."""
        planner = lambda distribution: self.plan_for(read(model))(distribution).only(paths)
        made = planner(self.distribution)
        weights = {path: site.effective for path, site in made.sites.items()}
        scored = lambda role: self.criterion.scores(weights, statistics=statistics)
        old = {path: dense_mask(site) for path, site in made.sites.items()}
        return Monotone().update(old, Moment(made, planner, scored, lambda role: True))[0]


def dense_mask(site: Site) -> Bool[Array, "..."]:
    return jnp.ones(site.weight.shape, bool) if site.mask is None else site.mask.dense()


@final
class Wanda(AbstractPostTraining):
    """Keeps the weights of the largest `|w| ‖x‖`, in each output row the same share of them.

    Cheap, and without a change of any weight. Rows share a remainder, so that the count of the site is exact. An
    input that was always 0 goes first. In an embedding the rows are those of tokens.

    ??? cite

        [A Simple and Effective Pruning Approach for Large Language Models](https://arxiv.org/abs/2306.11695), section 3
    """

    criterion: ClassVar[AbstractCriterion] = InputMagnitude()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        structure: AbstractStructure | Mapping[Any, AbstractStructure] = _ROWS,
        **common: Any,
    ):
        """**Arguments:** those of every pruner.

        - `structure`: `Unstructured("row")` by default, as in the paper. `NM(2, 4)` for 2:4.
        """
        super().__init__(optim, distribution=distribution, structure=structure, **common)


@final
class RIA(AbstractPostTraining):
    """Keeps the weights of the largest share of their output and their input, times a power of the input's norm.

    So small weights of an output or an input whose weights are all small count for more than in `Wanda`.

    ??? cite

        [Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models](
        https://openreview.net/forum?id=Tr0lPx9woF), section 3.1
    """

    power: float = eqx.field(static=True)
    criterion: AbstractCriterion

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        structure: AbstractStructure | Mapping[Any, AbstractStructure] = _ROWS,
        power: float = 0.5,
        **common: Any,
    ):
        """**Arguments:** those of every pruner.

        - `structure`: `Unstructured("row")` by default. `NM(2, 4)` for 2:4.
        - `power`: Of the norm of the inputs, the paper's a.
        """
        self.criterion = RelativeImportance(power)
        self.power = self.criterion.power
        super().__init__(optim, distribution=distribution, structure=structure, **common)
