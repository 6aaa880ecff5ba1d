"""Taps: what flows into each weight, read as a cotangent."""

from collections.abc import Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float32, PyTree

from .._sites import join, map_layers, pick, Where
from .flow import AbstractFlow, Weight
from .inputs import flows_into, forms_of
from .measure import measure, Sums
from .statistic import COUNT


@jax.custom_vjp
def tap(y: Any, zeros: Sums, flow: AbstractFlow, weight: Weight) -> Any:
    """`y`, whatever it is. The cotangent of `zeros` is the statistics of the flow, over all calls.

    A cotangent is added up wherever its primal is used: by `vmap`, `scan` and every other transformation. That of `y`
    goes on as it is, so that it reaches the layers before; nothing is computed from it, and the compiler leaves the
    rest of the backward pass out.
    """
    return y


def _tap_forward(y, zeros, flow, weight):
    return y, measure(flow, weight, zeros)


def _tap_backward(sums, cotangent):
    return cotangent, sums, None, None


tap.defvjp(_tap_forward, _tap_backward)


class Tapped(eqx.Module):
    """A layer whose inputs are read. All else of it reads through."""

    layer: Any
    zeros: dict[str, Sums]
    weights: dict[str, Weight]
    path: str = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = self.layer(*args, **kwargs)
        flows = flows_into(self.layer, args, kwargs)
        for name, zeros in self.zeros.items():
            y = tap(y, zeros, flows[name], self.weights[name])
        return y

    def by_path(self) -> dict[str, Array]:
        """The weights that are tapped."""
        return {join(self.path, name): getattr(self.layer, name) for name in self.zeros}

    def weighted(self, weight: Float32[Array, "..."], paths: Collection[str]) -> "Tapped":
        """With that weight of rows for the weights at those paths."""
        new = {name: self._for_each_slice(name, weight) for name in self.zeros if join(self.path, name) in paths}
        return Tapped(self.layer, self.zeros, {**self.weights, **new}, self.path)

    def _for_each_slice(self, name: str, weight: Float32[Array, "..."]) -> Float32[Array, "..."]:
        # What slices the layers of a stack slices all their arrays.
        return jnp.broadcast_to(weight, (*self.zeros[name][COUNT].shape, *weight.shape))

    def __getattr__(self, name: str) -> Any:
        if name in ("layer", "zeros", "weights", "path") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.layer, name)


def with_taps(model: PyTree, zeros: Mapping[str, Sums]) -> PyTree:
    """The model with a tap at each weight for which there are zeros."""

    def tapped(path: str, layer: Any) -> Any:
        names = [name for name in forms_of(layer) if join(path, name) in zeros]
        if not names:
            return layer
        return Tapped(layer, {name: zeros[join(path, name)] for name in names}, dict.fromkeys(names), path)

    return map_layers(model, tapped)


def weighted(model: PyTree, weight: ArrayLike, where: Where = None) -> PyTree:
    """The model, of whose inputs a calibration counts each row with a weight: 0 for padding, 1 for the rest.

    To be called in the `forward` of `eqsparse.calibrate`, where one example is mapped over. A model that is not being
    calibrated comes back as it is, so that `forward` serves other ends too.

    ```python
    def forward(model, batch):
        tokens, keep = batch  # both of shape (examples, positions)
        return jax.vmap(lambda t, k: eqsparse.weighted(model, k)(t))(tokens, keep)
    ```

    **Arguments:**

    - `model`: The model, or a part of it (as in a loop over positions: `weighted(cell, keep[t])(x[t], hidden)`).
    - `weight`: A number for the example; or an array, of an axis for each further `vmap` that its layers are called
        under, the outermost first (positions of a sequence). The axes that a convolution goes over may follow.
        Rows of weight 0 may hold anything, also NaN.
    - `where`: Which weights of the model it is for, as in `eqsparse.sparsify`. All by default; others keep the weight
        they had. A head that is called once an example, after a sum over positions, takes another than the layers
        before: `weighted(weighted(model, keep), 1.0, "head.*")`.

    **Raises:** `ValueError` if a pattern matches no weight, or a layer is called along other axes than those of
    `weight`.
    """
    is_tapped = lambda node: isinstance(node, Tapped)
    taps = [node for node in jax.tree.leaves(model, is_leaf=is_tapped) if is_tapped(node)]
    if not taps:
        return model
    weight = jnp.asarray(weight, jnp.float32)
    picked = pick(where, {path: array for node in taps for path, array in node.by_path().items()})
    give = lambda node: node.weighted(weight, picked) if is_tapped(node) else node
    return jax.tree.map(give, model, is_leaf=is_tapped)
