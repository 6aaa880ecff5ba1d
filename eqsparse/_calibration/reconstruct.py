"""The best weights for given masks."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Inexact

from .._check import instance, not_negative
from .._sites import masks_of, read, write
from .criteria import statistics_at
from .inputs import Form
from .obs import normalised, with_enough_damping
from .sparse_gpt import gram_of, over_stack
from .statistics import Statistics

_Model = TypeVar("_Model")
_EXACT = jax.lax.Precision.HIGHEST


def reconstruct(model: _Model, dense_model: object, statistics: Statistics, *, damping: ArrayLike = 1e-4) -> _Model:
    """The model with the kept weights set so that each layer's outputs come as near as can be to those of the dense.

    Least squares over the rows of the statistics: for each output, the minimum of `‖X w - X w_dense‖²` over the weights
    that its mask keeps, whatever mask. It takes one system of equations for each output, of as many unknowns as inputs:
    `in³ / 3` products, much for thousands of inputs. [`eqsparse.SparseGPT`][] is cheaper and comes near.

    **Arguments:**

    - `model`: A model with masked layers.
    - `dense_model`: The same model before it was pruned, masked or plain.
    - `statistics`: From `eqsparse.calibrate(..., statistics="gram")`. Weights that it does not have stay, and those of
        embeddings, whose best values are what they were.
    - `damping`: How strongly the weights are held where they are, of the mean of the Gram matrix's diagonal: so that
        there is one answer, and none that is worse than the one before.

    **Returns:** The model, with the same masks. Weights that are NaN count as 0.

    **Raises:** `ValueError` if the models differ, nothing is masked, there is no Gram matrix, or `damping` is negative.

    ??? cite

        [Optimal Brain Compression](https://arxiv.org/abs/2208.11580), section 2
    """
    instance(statistics, Statistics, "reconstruct(statistics=...)", "what `eqsparse.calibrate` returns")
    damping = not_negative(damping, "reconstruct(damping=...)")
    sites, dense = read(model), read(dense_model)
    masks = {path: mask for path, mask in masks_of(sites).items() if path in statistics}
    if not masks:
        raise ValueError(
            "`reconstruct(model=...)` must have a masked weight that is in `statistics`. Got "
            f"{list(masks_of(sites))} and statistics of {list(statistics)}."
        )
    weights = {}
    for path, mask in masks.items():
        weight, found = sites[path].weight, statistics_at(statistics, path, sites[path].weight)
        if path not in dense or dense[path].weight.shape != weight.shape:
            got = f"shape {dense[path].weight.shape}" if path in dense else "no such weight"
            raise ValueError(
                f"`reconstruct(dense_model=...)` must have a weight of shape {weight.shape} at `{path}`. Got {got}."
            )
        if not found.form.is_table:
            # Without the path, so that it is compiled once for all weights of a shape.
            weights[path] = _fitted(weight, dense[path].effective, mask.dense(), found.form, gram_of(found), damping)
    return write(model, weights)


@eqx.filter_jit
def _fitted(
    weight: Inexact[Array, "*shape"],
    dense: Inexact[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    form: Form,
    gram: Float32[Array, "*stack groups features features"],
    damping: Float32[Array, ""],
) -> Inexact[Array, "*shape"]:
    # A NaN would spread over its row.
    turned = lambda x: form.matrix(jnp.where(jnp.isnan(x), 0, x).astype(jnp.float32))
    start = jnp.where(mask, weight, 0)

    def of_group(start: Array, dense: Array, mask: Array, gram: Array) -> Array:
        hessian, *_ = normalised(gram)
        row = lambda xs: _row(xs[0], xs[1], xs[2], hessian, damping)
        return jax.lax.map(row, (start, dense, mask))

    arrays = (turned(start), turned(dense), form.matrix(mask), gram)
    return form.weight(over_stack(of_group, gram.ndim - 2, *arrays)).astype(weight.dtype)


def _row(
    start: Float32[Array, " features"],
    dense: Float32[Array, " features"],
    mask: Bool[Array, " features"],
    hessian: Float32[Array, "features features"],
    damping: Float32[Array, ""],
) -> Float32[Array, " features"]:
    """One output: the change of the kept weights, zero for the others."""
    missing = jnp.where(mask, jnp.matmul(hessian, dense - start, precision=_EXACT), 0)
    both = mask[:, None] & mask[None, :]

    def change(damping: Float32[Array, ""]) -> Float32[Array, " features"]:
        system = jnp.where(both, hessian, 0) + jnp.diag(jnp.where(mask, damping, 1))
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(system), missing)

    return start + with_enough_damping(change, damping, jnp.full_like(start, jnp.nan))
