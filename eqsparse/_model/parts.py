"""Taking a masked model apart: trainable and rest, weights and masks."""

import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._mask import as_mask
from .._sites import masks_of, no_match, read, write


def partition(model: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a model into `(trainable, rest)`: trainable are the floating-point arrays, masks are in the rest.

    The same as `eqx.partition(model, eqx.is_inexact_array)`. Put together again with `combine`.
    """
    return eqx.partition(model, eqx.is_inexact_array)


def combine(trainable: PyTree, rest: PyTree) -> PyTree:
    """The inverse of `partition`."""
    return eqx.combine(trainable, rest)


def get_masks(model: PyTree) -> dict[str, Bool[Array, "..."]]:
    """The masks of a model by weight path, as boolean arrays (`True` = kept), packed or not."""
    # Copies: they outlive the model, should it be donated.
    return {path: jnp.array(mask.dense()) for path, mask in masks_of(read(model)).items()}


def set_masks(model: PyTree, masks: Mapping[str, Bool[Array | np.ndarray, "..."]]) -> PyTree:
    """The model with the masks given; the others, and all stored weights, stay as they are.

    **Arguments:**

    - `model`: A model with masked layers.
    - `masks`: Boolean arrays of the weights' shapes by weight path, `True` = kept. Stored packed where the
        model's mask is.

    **Raises:** `ValueError` if a path is no masked weight's, or a mask has another shape or dtype.
    """
    if not isinstance(masks, Mapping):
        raise ValueError(f"`set_masks(masks=...)` must be a dict of path → mask. Got {type(masks).__name__}.")
    sites = read(model)
    stored = masks_of(sites)
    if not stored:
        raise ValueError(
            "`set_masks(model=...)` must contain a masked layer; `eqsparse.sparsify` makes them. Got none."
        )
    new = {}
    for path, mask in masks.items():
        if mask is None:
            raise ValueError(f"the mask of `{path}` must be a boolean array (True = kept). Got None.")
        if path not in stored:
            raise no_match(path, stored, "set_masks(masks=...)")
        new[path] = as_mask(mask, sites[path].weight, path, packed=stored[path].packed)
    return write(model, {}, new)


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays in a model or PyTree: weights, masks, and the rest."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if eqx.is_array(x))
