"""From a masked model to one that stores only the weights that are kept."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .._layers import AbstractMasked, MaskedLinear
from .._sites import join
from ._layout import BCSRLayout
from .exchange import checked, exchange_masked
from .linear import BCOOLinear
from .sparse import slices_in, SparseLayer


def to_bcoo(model: PyTree) -> PyTree:
    """A masked model for inference: its linear layers store only the weights that are kept.

    ```python
    sparse_model = eqsparse.to_bcoo(masked_model)
    sparse_model.layers[0].weight  # a jax.experimental.sparse.BCOO
    eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(sparse_model, x)  # the model is an argument
    ```

    Each `eqsparse.MaskedLinear` becomes an `eqsparse.BCOOLinear`. A weight that the mask keeps is stored even
    if it is zero. In float32 a layer gets smaller once a third of its weights is masked, in half precision half
    (with 65,536 columns or more: half, two thirds). Stacks of layers (leading axes) stay stacks, each slice as large
    as the fullest.

    The rest is as large as before, and predicts the same:

    - Other masked layers (convolutions, embeddings, cells, `eqsparse.Masked`) and those within
        `eqx.nn.Shared` become plain layers with zeros in their weights.
    - Layers within `eqx.nn.WeightNorm` and `eqx.nn.SpectralNorm`, which compute the weight anew in each call,
        stay masked.

    **Arguments:**

    - `model`: A model with masked layers. Call this outside `jax.jit`: the masks say how large the arrays are.

    **Raises:** `ValueError` if the model has no masked layer, is traced, or keeps more weights in one layer
    than int32 can count.
    """
    return exchange_masked(checked(model, "to_bcoo"), _export)


def _export(path: str, layer: AbstractMasked) -> Any:
    # A subclass of `Linear` may do anything with its weight.
    if not (isinstance(layer, MaskedLinear) and type(layer.layer) is eqx.nn.Linear):
        return layer.materialise()
    slices = slices_in(layer, "weight")
    if BCSRLayout.bytes_of(slices.kept, slices.weights.dtype.itemsize) is None:
        raise ValueError(
            f"`to_bcoo(model=...)` must keep fewer than 2**31 weights in a layer, which int32 can count. "
            f"Got {slices.kept.sum()} of shape {slices.shape} at `{join(path, 'weight')}`."
        )
    return BCOOLinear(SparseLayer(layer, {"weight": BCSRLayout.encode(slices)}))
