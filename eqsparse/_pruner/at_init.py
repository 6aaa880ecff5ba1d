"""Pruned before training, by what the loss or the network says at initialisation."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, final, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Int32, PRNGKeyArray, PyTree

from .._check import whole
from .._criterion import AbstractCriterion, Flow, Saliency
from .._distribution import AbstractDistribution, Global
from .._mask import Mask
from .._schedule import Rounds
from .._sites import is_model, read, weights_of, write
from ._transition import AbstractTransition, Kept, Moment, Monotone
from .base import AbstractPruner

_Model = TypeVar("_Model")
Loss = Callable[[Any, Any], Array]


class AbstractPruningAtInit(AbstractPruner):
    """Prunes once, from the loss of one batch; training keeps the masks.

    ```python
    pruner = eqsparse.SNIP(optax.adam(1e-3), distribution=0.95)
    model = pruner.prune(model, loss=loss, data=batch)
    model, state = pruner.init(model)
    ```

    `init` and `step` keep the masks that are there: of a model that `prune` has not seen, all are full.
    """

    transition: ClassVar[AbstractTransition] = Kept()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        **common: Any,
    ):
        """**Arguments:** those of every pruner. A float as `distribution` stands for `Global(normalise=False)`, as in
        the paper."""
        super().__init__(optim, distribution=_all_together(distribution), **common)

    def mask_at_first(self, weight: Array) -> Mask:
        """`prune` leaves zeros in parameters that hold no masks: these stay."""
        return Mask(weight != 0, packed=self.packed)

    @abc.abstractmethod
    def gradients(self, model: PyTree, loss: Loss, data: PyTree) -> PyTree:
        """What the criterion takes as gradients."""

    def prune(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: _Model,
        *,
        loss: Loss | None = None,
        data: PyTree = None,
        grads: PyTree = None,
        key: PRNGKeyArray | None = None,
    ) -> _Model:
        """Prunes to the target at once.

        **Arguments:**

        - `model`: An Equinox model.
        - `loss`: `(model, data) -> scalar`.
        - `data`: One batch, as `loss` takes it.
        - `grads`: In the place of `loss` and `data`: what the criterion takes as gradients.
        - `key`: Not used.

        **Returns:** A model with masked layers, weights zeroed.

        **Raises:** `ValueError` if both `loss` and `grads` are missing, or there is nothing to prune.
        """
        if grads is None:
            if loss is None:
                raise ValueError(
                    f"`{type(self).__name__}.prune(loss=...)` must be a function `(model, data) -> scalar`. Got None."
                )
            model = self._checked(model)
            grads = eqx.filter_jit(self.gradients)(model, loss, data)
        return super().prune(model, grads=grads, key=key)


@final
class SNIP(AbstractPruningAtInit):
    """Keeps the weights whose removal would change the loss most: `|w · g|`, the derivative by the mask.

    ??? cite

        [SNIP: Single-shot Network Pruning based on Connection Sensitivity](https://arxiv.org/abs/1810.02340),
        equation (4)
    """

    criterion: ClassVar[AbstractCriterion] = Saliency()

    def gradients(self, model: PyTree, loss: Loss, data: PyTree) -> PyTree:
        return eqx.filter_grad(loss)(model, data)


@final
class GraSP(AbstractPruningAtInit):
    """Keeps the weights without which the gradient would lose most of its norm: those of the highest `w · H g`.

    The paper divides the logits by a temperature of 200 and takes 25 examples of each class: so should the `loss`.

    ??? cite

        [Picking Winning Tickets Before Training by Preserving Gradient Flow](https://arxiv.org/abs/2002.07376),
        equation (8)
    """

    criterion: ClassVar[AbstractCriterion] = Flow()

    def gradients(self, model: PyTree, loss: Loss, data: PyTree) -> PyTree:
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        gradient = jax.grad(lambda parameters: loss(eqx.combine(parameters, rest), data))
        return jax.jvp(gradient, (parameters,), (gradient(parameters),))[1]


@final
class SynFlow(AbstractPruner):
    """Keeps the weights that carry most flow through the network, over many rounds and without data.

    The flow through a weight is `|w| ∂R/∂|w|`, R being the sum of the outputs for an input of ones and all parameters
    replaced by their magnitudes. Scores are taken anew in each round, in which the density falls by the same
    factor; no layer is emptied. In float32 R may overflow for networks of very many layers.

    ??? cite

        [Pruning neural networks without any data by iteratively conserving synaptic flow](
        https://arxiv.org/abs/2006.05467), algorithm 1
    """

    rounds: Int32[Array, ""]
    criterion: ClassVar[AbstractCriterion] = Saliency()
    transition: ClassVar[AbstractTransition] = Kept()

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        rounds: ArrayLike = 100,
        **common: Any,
    ):
        """**Arguments:**

        - `distribution`: A float stands for `Global(normalise=False)`, as in the paper.
        - `rounds`: In how many rounds.

        The others are those of every pruner.
        """
        self.rounds = whole(rounds, "SynFlow(rounds=...)", 1)
        super().__init__(optim, distribution=_all_together(distribution), **common)

    def prune(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: _Model, *, data: PyTree = None, forward: Callable[[Any, Any], PyTree] | None = None
    ) -> _Model:
        """Prunes to the target at once.

        **Arguments:**

        - `model`: An Equinox model, which is run in inference mode; with `forward` also arrays in any PyTree.
        - `data`: A batch of inputs, of which only shapes and dtypes count.
        - `forward`: `(model, data) -> outputs`, `jax.vmap(model)(data)` by default.

        **Returns:** A model with masked layers, weights zeroed; of a PyTree of arrays the same, with zeros.

        **Raises:** `ValueError` if there is nothing to prune, or nothing to run the model on.
        """
        model = self._checked(model)
        if forward is None:
            if not is_model(model):
                raise ValueError(
                    "`SynFlow.prune(forward=...)` must be given for arrays, which can't be called. Got None."
                )
            if not jax.tree.leaves(eqx.filter(data, eqx.is_array_like)):
                raise ValueError(f"`SynFlow.prune(data=...)` must be a batch of inputs. Got {data!r}.")
            forward = _mapped
        return self._pruned(model, self._by_flow(model, forward, data))

    @eqx.filter_jit
    def _by_flow(self, model: PyTree, forward: Callable, data: PyTree) -> dict[str, Bool[Array, "..."]]:
        parameters, rest = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
        positive = eqx.combine(jax.tree.map(jnp.abs, parameters), rest)
        ones = jax.tree.map(lambda x: jnp.ones_like(x) if eqx.is_inexact_array(x) else x, data)
        sites = read(model)
        planner = self.plan_for(sites)
        made, schedule = planner(self.distribution), Rounds(self.rounds, 1)
        weights = {path: weights_of(positive)[path] for path in made.sites}

        def flow(model: PyTree) -> Array:
            outputs = jax.tree.leaves(eqx.filter(forward(model, ones), eqx.is_inexact_array))
            return sum((jnp.sum(y.astype(jnp.float32)) for y in outputs), start=jnp.zeros(()))

        def one_round(step: Array, masks: dict[str, Array]) -> dict[str, Array]:
            thinned = write(positive, {path: jnp.where(mask, weights[path], 0) for path, mask in masks.items()})
            grads = weights_of(eqx.filter_grad(flow)(thinned))
            scored = lambda role: self.criterion.scores(weights, grads=grads)
            return Monotone().update(masks, Moment(made, planner, scored, lambda role: True, schedule, step + 1))[0]

        start = {
            p: jnp.ones_like(w, bool) if (m := made.sites[p].mask) is None else m.dense() for p, w in weights.items()
        }
        return jax.lax.fori_loop(0, self.rounds, one_round, start)


def _all_together(value: AbstractDistribution | ArrayLike) -> AbstractDistribution:
    return value if isinstance(value, AbstractDistribution) else Global(value, normalise=False)


def _mapped(model: Any, data: PyTree) -> PyTree:
    return jax.vmap(model)(data)
