"""Removing weights so that those that stay make up for them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float32, Inexact, PyTree, UInt32

from .._check import integer, not_negative
from .._criterion import AbstractCriterion
from .._distribution import AbstractBudget, AbstractDistribution, geometry_of, SiteBudget
from .._pruner.plan import Plan
from .._structure import AbstractStructure, Geometry, Unstructured
from .criteria import RemovalError, statistics_at
from .inputs import Form
from .obs import eliminate, factor
from .pruners import AbstractPostTraining, dense_mask
from .statistic import GRAM
from .statistics import SiteStatistics, Statistics
from .steps import Steps, steps_for, steps_of_known_masks


@final
class SparseGPT(AbstractPostTraining):
    """Removes weights input by input; those of the inputs after make up for what the outputs lose.

    In blocks of inputs those weights go whose removal costs least, as things stand when it is the block's turn: in each
    block the same share, of all rows together (`Unstructured()`) or of each (`Unstructured("row")`), or in each run of
    `NM(n, m)`. With other structures, and distributions by which sites share a budget, all masks are chosen before, by
    `RemovalError`. Counts are exact; where weights are masked already, as long as enough are not (in each row with
    `Unstructured("row")`, in each run with `NM`). Statistics must hold `"gram"`. Tokens of an embedding can't make up
    for each other: none of its weights changes but to zero.

    Inputs that were always 0 go first (with `NM` within each run). With fewer rows than inputs the Gram matrix is
    singular: the damping sees to it that there is one answer. Weights that are NaN count as 0. In float32 whatever the
    weights' dtype.

    ??? cite

        [SparseGPT](https://arxiv.org/abs/2301.00774), algorithm 1
    """

    damping: Float32[Array, "..."]
    block_size: int = eqx.field(static=True)
    criterion: ClassVar[AbstractCriterion] = RemovalError()
    statistic: ClassVar[str] = GRAM

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        structure: AbstractStructure | Mapping[Any, AbstractStructure] = Unstructured(),  # noqa: B008
        damping: ArrayLike = 0.01,
        block_size: int = 128,
        **common: Any,
    ):
        """**Arguments:** those of every pruner.

        - `structure`: `Unstructured()` by default, as in the paper: rows of a block compete. `NM(2, 4)` for 2:4.
        - `damping`: What is added to the diagonal of the Gram matrix, of its mean. Where that is too little to factor
            it in float32, ten times as much is tried.
        - `block_size`: Inputs for which masks are chosen together.
        """
        self.damping = not_negative(damping, "SparseGPT(damping=...)")
        self.block_size = integer(block_size, "SparseGPT(block_size=...)", 1)
        super().__init__(optim, distribution=distribution, structure=structure, **common)

    def solve(self, model: PyTree, statistics: Statistics, made: Plan) -> tuple[dict[str, Array], dict[str, Array]]:
        inputs = {path: statistics_at(statistics, path, site.weight) for path, site in made.sites.items()}
        steps = {budget.paths[0]: self._steps(budget, made, inputs) for budget in made.budgets}
        known_before = tuple(path for path in made.sites if steps.get(path) is None)
        masks = self.by_criterion(model, statistics, known_before) if known_before else {}
        weights = {}
        for path, site in made.sites.items():
            if not inputs[path].form.is_table:
                there = dense_mask(site)
                # A NaN would spread over its row.
                weight = jnp.where(there & ~jnp.isnan(site.weight), site.weight, 0)
                mask, way = masks.get(path, there), steps.get(path)
                # Without the path, so that it is compiled once for all weights of a shape.
                known = inputs[path].form, gram_of(inputs[path])
                weights[path], masks[path] = _solved(weight, mask, *known, way, self.block_size, self.damping)
        return weights, masks

    def _steps(self, budget: AbstractBudget, made: Plan, inputs: Mapping[str, SiteStatistics]) -> "_Way | None":
        """How a site is gone through that has a budget to itself; `None` if its mask has to be known before."""
        if not isinstance(budget, SiteBudget):
            return None
        (path,) = budget.paths
        site = made.sites[path]
        way = _Way(made.structures[path], geometry_of(site), budget.density, self.block_size)
        return way if way.steps(inputs[path].form, site.weight.shape) is not None else None


class _Way(eqx.Module):
    """What the steps through a weight are made of."""

    structure: AbstractStructure
    geometry: Geometry = eqx.field(static=True)
    density: UInt32[Array, ""]
    block: int = eqx.field(static=True)

    def steps(self, form: Form, shape: tuple[int, ...]) -> Steps | None:
        outputs = form.outputs(shape)
        return steps_for(self.structure, self.geometry, form, outputs, self.density, self.block)


@eqx.filter_jit
def _solved(
    weight: Inexact[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    form: Form,
    gram: Float32[Array, "*stack groups features features"],
    way: _Way | None,
    block: int,
    damping: Float32[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Bool[Array, "*shape"]]:
    """New weights and their mask, chosen on the way; or, without one, that of the weights that may stay."""
    steps = None if way is None else way.steps(form, weight.shape)
    if steps is None:
        steps = steps_of_known_masks(form, block)
    by_slice = lambda *one: _of_slice(*one, steps=steps, damping=damping)
    matrix = form.matrix(weight)
    left, stay = over_stack(by_slice, matrix.ndim - 3, matrix.astype(jnp.float32), form.matrix(mask), gram)
    return form.weight(left).astype(weight.dtype), form.weight(stay)


def _of_slice(
    matrix: Float32[Array, "groups outputs features"],
    mask: Bool[Array, "groups outputs features"],
    gram: Float32[Array, "groups features features"],
    steps: Steps,
    damping: Float32[Array, ""],
) -> tuple[Array, Array]:
    """One layer of a stack: the weights that are left and which they are."""
    features, order = matrix.shape[-1], steps.order
    missing = steps.padding(features)
    gone_through = lambda x: jnp.pad(jnp.swapaxes(x[..., order], 1, 2), [(0, 0), (0, missing), (0, 0)])
    of_inputs = factor(gram[:, order][:, :, order], damping)
    lower = jax.vmap(lambda one: jnp.eye(features + missing, dtype=one.dtype).at[:features, :features].set(one))(
        of_inputs.lower
    )
    # What an input that is always 0 is multiplied by costs nothing; it stays as it is if nothing else is left to go.
    seen = ~jnp.pad(of_inputs.dead, [(0, 0), (0, missing)])[..., None]
    may = gone_through(mask)
    levels = steps.levels(may, jnp.broadcast_to(seen, may.shape))
    left, _, stay = eliminate(jnp.where(seen, gone_through(matrix), 0), lower, may, levels)
    back = lambda x: jnp.swapaxes(x[:, :features], 1, 2)[..., np.argsort(order)]
    left, stay = back(left), back(stay)
    dead = of_inputs.dead[:, None, np.argsort(order)]
    return jnp.where(stay & dead, matrix, left), stay


def gram_of(inputs: SiteStatistics) -> Float32[Array, "*stack groups features features"]:
    """Σ x xᵀ."""
    if GRAM not in inputs.sums:
        raise ValueError(f'`statistics` must hold "gram" at `{inputs.path}`. Got {inputs.names()}.')
    return inputs.sums[GRAM]


def over_stack(function: Callable[..., Any], axes: int, *arrays: Array) -> Any:
    """The function of each slice along the first axes, one after the other: scratch memory for one is enough."""
    for _ in range(axes):
        function = functools.partial(lambda inner, xs: jax.lax.map(lambda x: inner(*x), xs), function)
        function = functools.partial(lambda inner, *xs: inner(xs), function)
    return function(*arrays)
