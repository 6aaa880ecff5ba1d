"""Removing weights one input after the other, the others making up for each: optimal brain surgery, all rows at once.

Of a row `w` with inputs of Gram matrix H, removing weight j costs `w_j² / [H⁻¹]_jj` at least, if all others may make up
for it. Where only the later ones may, the inverse of what is left of H after each step is in the rows of one Cholesky
factor: with `H⁻¹ = T Tᵀ`, T lower triangular, the step is `e = w_j / T_jj`, `w_i -= T_ij e` for all i ≥ j.

Everything is turned: `w` is (features, outputs), so that what belongs to one input lies together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

Choose = Callable[[Array, Array, Array, Array], Bool[Array, "groups size outputs"]]
_EXACT = jax.lax.Precision.HIGHEST


class Level(NamedTuple):
    """Features are gone through in runs of that size.

    - `choose`: which weights of a run stay, from where it starts, its weights as they are when it is their turn, the
        diagonal of T, and which may stay; `None` if all these do.
    """

    size: int
    choose: Choose | None = None


class Factor(NamedTuple):
    """What is known of the inputs.

    - `lower`: T, of the Gram matrices divided by the largest mean of a diagonal.
    - `dead`: inputs that were always 0; none if all were.
    """

    lower: Float32[Array, "groups features features"]
    dead: Bool[Array, "groups features"]


def factor(gram: Float32[Array, "groups features features"], damping: Float32[Array, ""]) -> Factor:
    """The factor T, with `damping` times the mean of its diagonal added to H.

    Where that is too little for float32 (inputs that are nearly copies of each other, in thousands), it is tried again
    with ten times as much.
    """
    hessian, dead, scale = jax.vmap(normalised)(gram)
    lower = jax.vmap(lambda one: _inverse_factor(one, damping))(hessian)
    # Of groups whose inputs are small, weights cost less: each was divided by its own scale, for the damping.
    alive = scale > 0
    relative = jnp.where(alive, jnp.sqrt(scale / jnp.where(jnp.any(alive), jnp.max(scale), 1)), 1)
    return Factor(lower / relative[:, None, None], dead & jnp.any(alive))


def _inverse_factor(
    hessian: Float32[Array, "features features"], damping: Float32[Array, ""]
) -> Float32[Array, "features features"]:
    eye = jnp.eye(len(hessian), dtype=hessian.dtype)

    def attempt(damping: Float32[Array, ""]) -> Float32[Array, "features features"]:
        # Backwards, so that one factor gives T: H = R Rᵀ with R upper triangular, and T = R⁻ᵀ.
        upper = jnp.linalg.cholesky((hessian + damping * eye)[::-1, ::-1])
        return jax.scipy.linalg.solve_triangular(upper, eye, lower=True)[::-1, ::-1].T

    return with_enough_damping(attempt, damping, jnp.full_like(hessian, jnp.nan))


def normalised(gram: Float32[Array, "features features"]) -> tuple[Array, Bool[Array, " features"], Float32[Array, ""]]:
    """The Gram matrix over the mean of its diagonal; the inputs that were always 0, which have 1 there; that mean."""
    squares = jnp.diagonal(gram)
    mean = jnp.mean(squares)
    dead = squares <= 0
    return gram / jnp.where(mean > 0, mean, 1) + jnp.diag(dead.astype(gram.dtype)), dead, mean


def with_enough_damping(
    attempt: Callable[[Float32[Array, ""]], Array], damping: Float32[Array, ""], unknown: Array
) -> Array:
    """What `attempt` makes of the damping, or of ten times as much and so on, until there is no NaN in it."""
    again = lambda state: ~jnp.all(jnp.isfinite(state[1])) & (state[0] < 1e6)
    once = lambda state: (10 * state[0], attempt(state[0]))
    return jax.lax.while_loop(again, once, (jnp.maximum(damping, 1e-7), unknown))[1]


def eliminate(
    w: Float32[Array, "groups features outputs"],
    lower: Float32[Array, "groups features features"],
    mask: Bool[Array, "groups features outputs"],
    levels: Sequence[Level],
    start: Array | int = 0,
) -> tuple[Array, Array, Array]:
    """The weights that are left of `w`, the steps `e` of those that are not, and which is which.

    - `mask`: the weights that may stay.
    - `levels`: runs, within these shorter runs and so on. Their sizes divide each other. The result does not depend on
        them, but for what they choose: of the runs before, a run needs one product of matrices.
    """
    if not levels:  # a single feature
        return jnp.where(mask, w, 0), jnp.where(mask, 0, w / lower), mask
    (size, choose), *shorter = levels

    def run(errors: Array, first: Array) -> tuple[Array, tuple[Array, Array]]:
        own = lambda x, axis=1: jax.lax.dynamic_slice_in_dim(x, first, size, axis)
        rows = own(lower)
        now = own(w) - jnp.einsum("gij,gjo->gio", rows, errors, precision=_EXACT)
        corner, may = own(rows, 2), own(mask)
        if choose is not None:
            may = may & choose(start + first, now, jnp.diagonal(corner, axis1=-2, axis2=-1), may)
        left, steps, stay = eliminate(now, corner, may, shorter, start + first)
        return jax.lax.dynamic_update_slice_in_dim(errors, steps, first, 1), (left, stay)

    errors, (left, stay) = jax.lax.scan(run, jnp.zeros_like(w), jnp.arange(w.shape[1] // size) * size)
    joined = lambda runs: jnp.moveaxis(runs, 0, 1).reshape(w.shape)
    return joined(left), errors, joined(stay)
