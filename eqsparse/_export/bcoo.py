"""From a masked model to one that stores only the weights that are kept."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .._layers import AbstractMasked, MaskedLinear
from .._model import is_sparsified
from .._sites import join
from .csr import csr_parts
from .exchange import exchange_masked
from .linear import BCOOLinear


def to_bcoo(model: PyTree) -> PyTree:
    """A masked model for inference: its linear layers store only the weights that are kept.

    ```python
    sparse_model = eqsparse.to_bcoo(masked_model)
    sparse_model.layers[0].weight  # a jax.experimental.sparse.BCOO
    eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(sparse_model, x)  # the model is an argument
    ```

    Each `eqsparse.MaskedLinear` becomes an `eqsparse.BCOOLinear`. A weight that the mask keeps is stored even
    if it is zero. In float32 a layer gets smaller once half its weights are masked, in half precision two
    thirds. Stacks of layers (leading axes) stay stacks, each slice as large as the fullest.

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
    if not is_sparsified(model):
        raise ValueError(
            "`to_bcoo(model=...)` must contain a masked layer; `eqsparse.sparsify` makes them, pruners fill "
            f"their masks. Got {type(model).__name__} without any."
        )
    return exchange_masked(model, _export)


def _export(path: str, layer: AbstractMasked) -> Any:
    # A subclass of `Linear` may do anything with its weight.
    if not (isinstance(layer, MaskedLinear) and type(layer.layer) is eqx.nn.Linear):
        return layer.materialise()
    linear = layer.layer
    parts = csr_parts(linear.weight, layer.masks["weight"], join(path, "weight"))
    return BCOOLinear(*parts, linear.bias, linear.in_features, linear.out_features, linear.use_bias)
