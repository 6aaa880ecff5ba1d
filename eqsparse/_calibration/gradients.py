"""How strongly a loss depends on each weight, example by example."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._check import integer
from .._sites import leaves_by_path
from .calibrate import iterated

_BATCHES = "rms_gradients(batches=...)"


def rms_gradients(
    model: PyTree, batches: Iterable[Any], loss: Callable[[Any, Any], Array], *, batch_size: int = 1
) -> PyTree:
    """The root of the mean square of each parameter's gradient, over examples.

    Its squares are the diagonal of the empirical Fisher matrix, the curvature by which [`eqsparse.FisherPruning`][]
    weighs a weight. The gradient of the loss of a whole batch, squared, is another thing: there the gradients of
    examples cancel each other, at the end of training nearly all.

    ```python
    grads = eqsparse.rms_gradients(model, batches, lambda model, example: ...)
    model = eqsparse.FisherPruning(distribution=0.5).prune(model, grads=grads)
    ```

    **Arguments:**

    - `model`: An Equinox model, masked or plain; or parameters in any PyTree.
    - `batches`: Any iterable of PyTrees of arrays, whose first axes are examples; gone through once.
    - `loss`: `(model, example) -> scalar`, an example being a batch without its first axis.
    - `batch_size`: Of how many examples gradients are held at once, in float32. Of these as many as divide the batch.

    **Returns:** As `eqx.filter_grad` gives them, in float32: an array for each floating-point array of the model,
    `None` elsewhere.

    **Raises:** `ValueError` if there is no example, the arrays of a batch have different first axes, or a gradient is
    infinite or NaN.

    ??? cite

        [Faster gaze prediction with dense networks and Fisher pruning](https://arxiv.org/abs/1801.05787), equation
        (6); [Optimal Brain Damage](https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html)
    """
    batch_size = integer(batch_size, "rms_gradients(batch_size=...)", 1)
    parameters = eqx.filter(model, eqx.is_inexact_array)
    sums, count = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), parameters), 0
    for batch in iterated(batches, _BATCHES):
        examples = _examples(batch)
        if not examples:
            continue
        size = max(size for size in range(1, min(batch_size, examples) + 1) if examples % size == 0)
        sums, count = _more(sums, model, batch, loss, size), count + examples
    if not count:
        raise ValueError(f"`{_BATCHES}` must hold one example at least. Got none.")
    unknown = [path for path, x in leaves_by_path(sums) if not bool(jnp.all(jnp.isfinite(x)))]
    if unknown:
        raise ValueError(f"`rms_gradients(loss=...)` must have finite gradients. Got NaN or infinity at {unknown}.")
    return jax.tree.map(lambda x: jnp.sqrt(x / count), sums)


def _examples(batch: PyTree) -> int:
    shapes = [x.shape for x in jax.tree.leaves(batch) if eqx.is_array(x) or isinstance(x, np.ndarray)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"`{_BATCHES}` must hold arrays whose first axes are examples. Got shapes {shapes}.")
    return shapes[0][0]


@eqx.filter_jit
def _more(sums: PyTree, model: PyTree, batch: PyTree, loss: Callable[[Any, Any], Array], size: int) -> PyTree:
    """The sums with the squares of the gradients of a batch."""
    arrays, rest = eqx.partition(batch, eqx.is_array)
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    of_one = lambda example: eqx.filter_grad(loss)(model, eqx.combine(example, rest))
    squares = lambda grads: jnp.sum(jnp.abs(grads).astype(jnp.float32) ** 2, axis=0)

    def more(sums: PyTree, chunk: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(lambda total, grads: total + squares(grads), sums, jax.vmap(of_one)(chunk)), None

    return jax.lax.scan(more, sums, chunks)[0]
