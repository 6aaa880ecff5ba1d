"""A sparse model in a less sparse training."""

from typing import Any, ClassVar, final

import equinox as eqx
import optax
from jaxtyping import ArrayLike

from .._check import known, not_negative, unit
from .._criterion import AbstractCriterion, Magnitude
from .._distribution import AbstractDistribution, Uniform
from ._transition import Nested
from .arguments import as_distribution
from .base import AbstractPruner
from .view import SupersetView


@final
class TopKAST(AbstractPruner):
    """Top-K always sparse training: the model runs on the largest weights, a larger set of them trains.

    Weights outside of the larger set stay as they are, bit for bit, until a later update may take them in: they
    are not zero, but masked. Both sets have their targets from `init` on and are chosen afresh at each update (the
    paper refreshes them every 100 steps, say `schedule=Periodic(0, stop, 100)`).

    ??? cite

        [Top-KAST: Top-K Always Sparse Training](https://arxiv.org/abs/2106.03517), section 2
    """

    transition: Nested
    view: SupersetView
    criterion: ClassVar[AbstractCriterion] = Magnitude()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        backward_sparsity: AbstractDistribution | ArrayLike,
        decay: ArrayLike | None = 1e-4,
        **common: Any,
    ):
        """**Arguments:**

        - `distribution`: Sparsity of the weights that run.
        - `backward_sparsity`: Sparsity of those that train, below the former: a number, distributed as the former if
            that has one sparsity for all; or a distribution.
        - `decay`: Coefficient of the paper's exploration loss: `λ w` is added to the gradient of the weights that run,
            `λ w / D` to that of the others that train, D being the density. `None` for none.

        The others are those of every pruner.
        """
        distribution = as_distribution(distribution)
        backward = _alike(backward_sparsity, distribution)
        _check_superset(backward, distribution)
        self.transition = Nested(backward)
        self.view = SupersetView(None if decay is None else not_negative(decay, "TopKAST(decay=...)"))
        super().__init__(optim, distribution=distribution, **common)

    @property
    def backward_sparsity(self) -> AbstractDistribution:
        return self.transition.backward

    @property
    def decay(self) -> Any:
        return self.view.decay


def _alike(backward: AbstractDistribution | ArrayLike, forward: AbstractDistribution) -> AbstractDistribution:
    if isinstance(backward, AbstractDistribution):
        return backward
    sparsity = unit(backward, "TopKAST(backward_sparsity=...)")
    if not hasattr(forward, "sparsity"):
        return Uniform(sparsity)
    return eqx.tree_at(lambda d: d.sparsity, forward, sparsity)


def _check_superset(backward: AbstractDistribution, forward: AbstractDistribution) -> None:
    """Raises where what trains is known to be fewer weights than what runs."""
    fewer, more = (getattr(distribution, "sparsity", None) for distribution in (forward, backward))
    if fewer is not None and more is not None and known(fewer) and known(more) and more > fewer:
        raise ValueError(
            f"`TopKAST(backward_sparsity=...)` must be at most the sparsity of `distribution`, {float(fewer):g}. "
            f"Got {float(more):g}."
        )
