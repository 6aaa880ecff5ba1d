"""What a criterion is: a score for each weight, from what it asks for."""

import abc
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._check import random_key
from .._sites import weights_of


class AbstractCriterion(eqx.Module):
    """What a weight is worth: those with the largest scores are kept.

    To make your own, name what it needs and score one weight array:

    ```python
    class Balance(eqsparse.AbstractCriterion):
        needs = ("grads",)

        def score(self, weight, *, grads):
            return jnp.abs(weight) * jnp.abs(grads)
    ```
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the inputs that `score` takes: `"grads"`, `"key"`, `"memory"`, or what a pruner's caller passes."""

    optimiser_field: ClassVar[str | None] = None
    """Field of an optimiser's state (`"nu"`, say) that serves as the memory where the optimiser has it."""

    @abc.abstractmethod
    def score(self, weight: Shaped[Array, "*shape"], **inputs: Any) -> Shaped[Array, "*shape"]:
        """Scores of one array of weights (a stack of layers included), from its own part of the inputs."""

    def remember(
        self, memory: Float[Array, "*shape"] | None, weight: Shaped[Array, "*shape"], grads: Shaped[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """The memory of one array after another step (`None` before the first), for criteria that need `"memory"`.

        A pruner keeps it in its state, in float32 at least, from zeros on.
        """
        raise TypeError(f"{type(self).__name__} needs `memory`, so it must define `remember`.")

    def scores(
        self, weights: Any, *, grads: Any = None, key: Any = None, **inputs: Any
    ) -> dict[str, Shaped[Array, "..."]]:
        """Scores by path.

        **Arguments:**

        - `weights`: Path → array, or a model or PyTree.
        - `grads`: Gradients with respect to the effective weights, as `weights` is.
        - `key`: A key, from which each path draws its own.
        - `**inputs`: Other inputs a criterion may need, each path → array. A `memory` that is not given is made of
            this one `grads`.

        **Raises:** `ValueError` if an input that the criterion needs is missing.
        """
        arrays = _by_path(weights)
        random_key(key, "scores(key=...)")
        given = {"grads": grads, "key": key, **inputs}
        if "memory" in self.needs and given.get("memory") is None and grads is not None:
            found = _by_path(grads)
            given["memory"] = {p: self.remember(None, w, _at(found, p, w, "grads")) for p, w in arrays.items()}
        for name in self.needs:
            if given.get(name) is None:
                wanted = "grads" if name == "memory" else name
                raise ValueError(
                    f"`{wanted}` must be given: the criterion {type(self).__name__} needs {list(self.needs)}. Got None."
                )
        by_path = {name: given[name] if name == "key" else _by_path(given[name]) for name in self.needs}
        return {path: self.score(w, **self._inputs(path, w, by_path)) for path, w in arrays.items()}

    def _inputs(self, path: str, weight: Array, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _key_at(v, path) if name == "key" else _at(v, path, weight, name) for name, v in given.items()}


def _by_path(tree: Any) -> dict[str, Array]:
    flat = isinstance(tree, Mapping) and all(eqx.is_array_like(leaf) for leaf in tree.values())
    if not flat:
        return weights_of(tree)
    arrays = {str(path): jnp.asarray(x) for path, x in tree.items()}
    return {path: x for path, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


def _key_at(key: Array, path: str) -> Array:
    """Each path's own key: the same for the same path, whichever other paths there are."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def _at(arrays: Mapping[str, Array], path: str, weight: Array, name: str) -> Array:
    array = arrays.get(path)
    if array is None or array.shape != weight.shape:
        got = "None" if array is None else f"shape {array.shape}"
        raise ValueError(f"`{name}` must have an array of shape {weight.shape} at `{path}`. Got {got}.")
    return array
