"""The largest activations of each example, the others zero."""

from collections.abc import Callable
from typing import Any, final, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float32, Inexact, PRNGKeyArray, UInt32

from .._check import instance, unit
from .._mask import effective, Mask, on_mask
from .._schedule import AbstractSchedule
from .._selection import density_of, fraction_of, sparsity_of
from .._show import show
from .._structure import AbstractStructure

_Tree = TypeVar("_Tree")
_GRADIENTS = ("exact", "straight_through")


@final
class ActivationSparsity(eqx.Module):
    """A function of which only the largest results are kept, the others being zero.

    ```python
    act = eqsparse.ActivationSparsity(jax.nn.relu, eqsparse.Unstructured(), 0.9)
    model = eqx.nn.Sequential([eqx.nn.Linear(64, 256, key=key1), act, eqx.nn.Linear(256, 10, key=key2)])
    jax.vmap(model)(images)  # of the 256 activations of each image 26 are kept
    ```

    All that one call is given competes. Under `jax.vmap` that is one example, so that no example has a say in what is
    kept of another; without it, a batch would compete as a whole.

    `density` and `target` (fixed-point fractions that are kept: now, and at the end of a schedule) are array leaves:
    changing them does not recompile, and no optimiser trains them.

    ??? cite

        [k-Sparse Autoencoders](https://arxiv.org/abs/1312.5663); the code base of
        [JaxPruner](https://arxiv.org/abs/2304.14082), which ranks over the batch
    """

    fn: Callable[..., Any]
    structure: AbstractStructure
    density: UInt32[Array, ""]
    target: UInt32[Array, ""]
    score: Callable[[Array], Array] = eqx.field(static=True)
    gradient: Literal["exact", "straight_through"] = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[..., Any],
        structure: AbstractStructure,
        sparsity: ArrayLike,
        *,
        score: Callable[[Array], Array] = jnp.abs,
        gradient: Literal["exact", "straight_through"] = "exact",
    ):
        """**Arguments:**

        - `fn`: What is called: a function as `jax.nn.relu`, or a module (a layer, `eqx.nn.PReLU`). It returns a
            floating-point array of rank 1 or more.
        - `structure`: Which activations are kept or dropped together, and who competes. `Unstructured("row")`
            keeps the same share of each row (positions of a sequence, say); `Channel(0)` whole channels of an image
            of shape `(channels, height, width)`. Runs of `NM` lie along the last axis, and
            are never sparser than N of M.
        - `sparsity`: Fraction to set to zero, in `[0, 1]`: a float, or a scalar array to sweep over.
        - `score`: What each activation is worth, of their shape; the largest are kept. By default the magnitude.
        - `gradient`: `"exact"`: zero where an activation was dropped. `"straight_through"`: as if none was, so
            that what is never kept can still learn to be.

        **Raises:** `ValueError` for arguments of a wrong kind, or if `sparsity` is outside `[0, 1]`.
        """
        if not callable(fn):
            raise ValueError(f"`ActivationSparsity(fn=...)` must be callable. Got {fn!r}.")
        if not callable(score):
            raise ValueError(f"`ActivationSparsity(score=...)` must be callable. Got {score!r}.")
        instance(structure, AbstractStructure, "ActivationSparsity(structure=...)", "a structure")
        if gradient not in _GRADIENTS:
            raise ValueError(f"`ActivationSparsity(gradient=...)` must be of {list(_GRADIENTS)}. Got {gradient!r}.")
        self.fn = fn
        self.structure = structure
        self.density = density_of(unit(sparsity, "ActivationSparsity(sparsity=...)"))
        self.target = jnp.copy(self.density)  # a buffer of its own, so that both can be donated
        self.score = score
        self.gradient = gradient

    @property
    def sparsity(self) -> float | Float32[Array, "*ensemble"]:
        """The fraction that is set to zero now: a float where it is one number that is known."""
        return 1 - fraction_of(self.density) if self.density.ndim else sparsity_of(self.density)

    def __call__(self, *args: Any, key: PRNGKeyArray | None = None, **kwargs: Any) -> Inexact[Array, "*shape"]:
        """Calls `fn`, and keeps its largest results.

        **Arguments:** those of `fn`; a `key` is handed on where `fn` is a module, as `eqx.nn.Sequential` does.

        **Raises:** `ValueError` if `fn` returns no floating-point array of rank 1 or more, or the structure does not
        fit its shape.
        """
        if key is not None and issubclass(type(self.fn), eqx.Module) and not isinstance(self.fn, eqx.Partial):
            kwargs["key"] = key
        y = self.fn(*args, **kwargs)
        self._check(y)
        scores = jax.lax.stop_gradient(self.score(y))
        if scores.shape != y.shape:
            raise ValueError(
                f"`ActivationSparsity(score=...)` must return scores of the activations' shape {y.shape}. "
                f"Got {scores.shape}."
            )
        mask = self.structure.mask_at(scores, self.density)
        return effective(y, Mask(mask)) if self.gradient == "straight_through" else on_mask(y, mask)

    def _check(self, y: Any) -> None:
        if not eqx.is_inexact_array(y):
            got = f"dtype {y.dtype}" if eqx.is_array(y) else type(y).__name__
            raise ValueError(f"`ActivationSparsity(fn=...)` must return a floating-point array. Got {got}.")
        if y.ndim == 0:
            raise ValueError(
                "`ActivationSparsity` must be called with an array, whose entries compete. Got a scalar: "
                "`eqx.nn.MLP(activation=...)` calls its activation for each neuron; use `eqx.nn.Sequential`."
            )

    def __repr__(self) -> str:
        return show(self)


def schedule_activations(model: _Tree, schedule: AbstractSchedule, step: ArrayLike) -> _Tree:
    """The model with its activations as sparse as a schedule has them at a step.

    Called at the top of a compiled step it costs nothing. Each [`eqsparse.ActivationSparsity`][] goes to
    `schedule.sparsity(target, step)`, its target being the sparsity that it was made with.

    ```python
    @eqx.filter_jit
    def step(model, state, x, y):
        model = eqsparse.schedule_activations(model, eqsparse.Polynomial(0, 1000, 1), state.step)
        return pruner.step(model, eqx.filter_grad(loss)(model, x, y), state)
    ```

    **Arguments:**

    - `model`: A model that holds such modules.
    - `schedule`: Any schedule. Activations are chosen anew at each call, so of it only the sparsity counts.
    - `step`: Counted from 0, traced or not.

    **Raises:** `ValueError` if the model holds none.
    """
    instance(schedule, AbstractSchedule, "schedule_activations(schedule=...)", "a schedule")
    is_sparse = lambda node: isinstance(node, ActivationSparsity)
    if not any(is_sparse(node) for node in jax.tree.leaves(model, is_leaf=is_sparse)):
        raise ValueError(
            "`schedule_activations(model=...)` must hold an `eqsparse.ActivationSparsity`. "
            f"Got {type(model).__name__} without any."
        )

    def density_at_step(target: UInt32[Array, "*ensemble"]) -> UInt32[Array, "*ensemble"]:
        if target.ndim:
            return jax.vmap(density_at_step)(target)
        return density_of(jnp.asarray(schedule.sparsity(sparsity_of(target), step)))

    def at_step(node: Any) -> Any:
        return eqx.tree_at(lambda act: act.density, node, density_at_step(node.target)) if is_sparse(node) else node

    return jax.tree.map(at_step, model, is_leaf=is_sparse)
