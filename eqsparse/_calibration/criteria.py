"""What a weight is worth by what flows into it."""

import abc
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float32, Inexact, Shaped

from .._check import constant, instance
from .._criterion import AbstractCriterion
from .._sites import weights_of
from .statistics import SiteStatistics, Statistics


class AbstractInputCriterion(AbstractCriterion):
    """A criterion that goes by the statistics of inputs, on the weight as a matrix of outputs and inputs.

    ```python
    class ByMean(eqsparse.AbstractInputCriterion):
        def score_matrix(self, matrix, inputs):
            return jnp.abs(matrix) * inputs.sums["mean"][..., None, :]
    ```
    """

    needs = ("statistics",)

    @abc.abstractmethod
    def score_matrix(
        self, matrix: Float32[Array, "*stack groups outputs features"], inputs: SiteStatistics
    ) -> Float32[Array, "*stack groups outputs features"]:
        """Scores of a weight as a matrix: convolutions with the inputs of a patch in one axis, embeddings turned."""

    def score(self, weight: Inexact[Array, "..."], *, statistics: SiteStatistics) -> Shaped[Array, "..."]:
        form = statistics.form
        return form.weight(self.score_matrix(form.matrix(weight.astype(jnp.float32)), statistics))

    def scores(self, weights: Any, *, statistics: Any = None, **others: Any) -> dict[str, Shaped[Array, "..."]]:
        """Scores by path.

        **Arguments:**

        - `weights`: Path → array, or a model.
        - `statistics`: Of the same model, from `eqsparse.calibrate`.

        **Raises:** `ValueError` if there are none for one of the weights.
        """
        arrays = weights if isinstance(weights, dict) else weights_of(weights)
        return {p: self.score(w, statistics=statistics_at(statistics, p, w)) for p, w in arrays.items()}


def statistics_at(statistics: Any, path: str, weight: Shaped[Array, "..."]) -> SiteStatistics:
    """Those of a weight, which they must fit."""
    instance(statistics, Statistics, "statistics", "what `eqsparse.calibrate` returns")
    if path not in statistics:
        raise ValueError(
            f"`statistics` must have what flows into `{path}`: calibrate it, or leave it out by the pruner's `where`. "
            f"Got statistics of {list(statistics)}."
        )
    found = statistics[path]
    shape = found.form.matrix_shape(weight.shape)
    if shape is None or shape[:-3] != found.count.shape:
        raise ValueError(
            f"`statistics` must be of the same model. Got inputs of shape {found.form.inputs} for a weight of shape "
            f"{weight.shape} at `{path}`."
        )
    return found


def squares_of(inputs: SiteStatistics) -> Float32[Array, "*stack groups features"]:
    """Σ x² of each input. A token that was never looked up counts as if it had been once: its row of the table would
    have no order otherwise. So do inputs all of which were always 0; those of one group of several count for next to
    nothing."""
    squares = inputs.squares()
    if squares is None:
        raise ValueError(f'`statistics` must hold "second_moment" or "gram" at `{inputs.path}`. Got {inputs.names()}.')
    if inputs.form.is_table:
        return jnp.maximum(squares, 1)
    of_group, of_all = (jnp.max(squares, axis=axes, keepdims=True, initial=0) for axes in (-1, (-2, -1)))
    return jnp.where(of_group > 0, squares, jnp.where(of_all > 0, 1e-30 * of_all, 1))


@final
class InputMagnitude(AbstractInputCriterion):
    """`|w| ‖x‖`, x being all inputs that the weight was multiplied by.

    ??? cite

        [A Simple and Effective Pruning Approach for Large Language Models](https://arxiv.org/abs/2306.11695),
        equation (1)
    """

    def score_matrix(
        self, matrix: Float32[Array, "*stack groups outputs features"], inputs: SiteStatistics
    ) -> Float32[Array, "*stack groups outputs features"]:
        return jnp.abs(matrix) * jnp.sqrt(squares_of(inputs))[..., None, :]


@final
class RemovalError(AbstractInputCriterion):
    """`w² ‖x‖²`: what removing the weight adds to the squared error of the layer's outputs, if nothing makes up for it.

    In the order of `InputMagnitude`; sums over a block of weights mean something.

    ??? cite

        [Optimal Brain Compression](https://arxiv.org/abs/2208.11580), section 3
    """

    def score_matrix(
        self, matrix: Float32[Array, "*stack groups outputs features"], inputs: SiteStatistics
    ) -> Float32[Array, "*stack groups outputs features"]:
        return matrix**2 * squares_of(inputs)[..., None, :]


@final
class RelativeImportance(AbstractInputCriterion):
    """`(|w| / Σ of its row + |w| / Σ of its column) ‖x‖ᵃ`: a weight counts for its share of its output and its input.

    ??? cite

        [Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models](
        https://openreview.net/forum?id=Tr0lPx9woF), equation (4)
    """

    power: float = eqx.field(static=True)

    def __init__(self, power: ArrayLike = 0.5):
        """**Arguments:**

        - `power`: The paper's a, of the norm of the inputs.
        """
        self.power = constant(power, "RelativeImportance(power=...)")

    def score_matrix(
        self, matrix: Float32[Array, "*stack groups outputs features"], inputs: SiteStatistics
    ) -> Float32[Array, "*stack groups outputs features"]:
        magnitude = jnp.abs(matrix)
        shares = _share_of(magnitude, axis=-1) + _share_of(magnitude, axis=-2)
        return shares * (jnp.sqrt(squares_of(inputs)) ** self.power)[..., None, :]


def _share_of(magnitude: Float32[Array, "..."], axis: int) -> Float32[Array, "..."]:
    total = jnp.sum(magnitude, axis=axis, keepdims=True)
    return magnitude / jnp.where(total > 0, total, 1)
