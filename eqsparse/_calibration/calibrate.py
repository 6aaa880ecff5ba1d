"""Statistics of what flows into the weights of a model, from batches of data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._sites import pick, read, Site, Where
from .inputs import Form, forms_in
from .maximum import with_true_maxima
from .measure import MISFIT, Sums
from .statistic import ASKED_FOR, CALLS, COUNT, GRAM, SECOND_MOMENT, STATISTICS
from .statistics import SiteStatistics, Statistics
from .tap import with_taps

Forward = Callable[[Any, Any], PyTree]
Table = dict[str, Sums]


def calibrate(
    model: PyTree,
    batches: Iterable[Any],
    *,
    statistics: str | tuple[str, ...] = SECOND_MOMENT,
    forward: Forward | None = None,
    where: Where = None,
) -> Statistics:
    """What flows into each weight of a model, summed up over some data, in float32.

    ```python
    statistics = eqsparse.calibrate(model, batches, statistics="gram")
    model = eqsparse.SparseGPT(distribution=0.5).prune(model, statistics=statistics)
    ```

    Each layer is called, by whatever transformations, as `forward` calls it: under `vmap` and `jit`, several times, in
    a `scan` over a stack of layers (each layer of which has statistics of its own). The statistics come out as the
    cotangents of one `jax.grad`, so `forward` must be differentiable: a layer whose output reaches what `forward`
    returns only through `jax.lax.stop_gradient` or whole numbers is not seen, and neither a `jax.lax.while_loop` nor a
    gradient that `forward` itself takes may be around it. The rest of the backward pass is not computed.

    A row of inputs counts as often as the layer is called on it. A layer that is called outside `vmap`, or on what is
    the same for all examples of one (positions, say), sees one row for each batch. Of a `jax.lax.cond` whose condition
    differs between examples both branches are run, but only the rows of the one that is taken count; there are sums for
    each example in between, so Gram matrices take as much more memory.

    **Arguments:**

    - `model`: An Equinox model, masked or plain. As it is trained or not: `eqx.nn.inference_mode` first, if dropout
        shall not count.
    - `batches`: Any iterable of what `forward` takes, gone through once (also one with a progress bar around it, as
        `rich.progress.track(batches)`). Batches of another shape than the one before are compiled anew.
    - `statistics`: What to sum up, one name or several: `"second_moment"` (Σ x² of each input, for
        [`eqsparse.Wanda`][]), `"gram"` (Σ x xᵀ, for [`eqsparse.SparseGPT`][] and [`eqsparse.reconstruct`][]; it holds
        the second moment too), `"mean"`, `"count"`, `"absolute_maximum"`. A Gram matrix takes `in²` numbers for each
        weight, once more in a `scan` for each of its steps: `where` bounds that. The absolute maximum of a layer that
        is called several times takes eight forward passes more.
    - `forward`: `(model, batch) -> outputs`, `jax.vmap(model)(batch)` by default. Keys, states and padding (see
        [`eqsparse.weighted`][]) are its own business; outputs may be anything.
    - `where`: Which weights, as in `eqsparse.sparsify`. All by default whose inputs are known: not those of
        [`eqsparse.Masked`][] around a module of your own.

    **Returns:** [`eqsparse.Statistics`][].

    **Raises:** `ValueError` if there is no batch, a name is unknown, a pattern matches no weight, no row reaches a
    weight, or what does is infinite or NaN.
    """
    names = _names(statistics)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
        raise ValueError("`calibrate(model=...)` must not be traced: call it outside of `jit`, `grad` and `vmap`.")
    forms = forms_in(model)
    sites = {path: site for path, site in read(model).items() if path in forms}
    if not sites:
        raise ValueError(
            "`calibrate(model=...)` must contain a layer whose inputs can be read (`eqx.nn.Linear`, `Conv`, "
            f"`Embedding`, `GRUCell`, `LSTMCell`, masked or not). Got {type(model).__name__} without any."
        )
    picked = pick(where, {path: site.weight for path, site in sites.items()}, "calibrate(where=...)")
    zeros = {path: _zeros(site, forms[path], names) for path, site in sites.items() if path in picked}
    sums, seen = zeros, 0
    for batch in iterated(batches, "calibrate(batches=...)"):
        sums, seen = (
            _joined(sums, _of_batch(model, batch, seen, mapped if forward is None else forward, zeros)),
            seen + 1,
        )
    if not seen:
        raise ValueError("`calibrate(batches=...)` must hold one batch at least. Got none.")
    _check(sums)
    return Statistics({path: SiteStatistics(path, found, forms[path]) for path, found in sums.items()})


def mapped(model: Any, batch: PyTree) -> PyTree:
    """The usual `forward`."""
    return jax.vmap(model)(batch)


def _names(statistics: Any) -> tuple[str, ...]:
    names = tuple(statistics) if isinstance(statistics, list | tuple | set) else (statistics,)
    for name in names:
        if name not in ASKED_FOR:
            raise ValueError(f"`calibrate(statistics=...)` must be of {list(ASKED_FOR)}. Got {name!r}.")
    if not names:
        raise ValueError(f"`calibrate(statistics=...)` must be one or several of {list(ASKED_FOR)}. Got none.")
    return names


def iterated(batches: Any, argument: str) -> Iterable[Any]:
    """Batches, and not one of them."""
    if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping) or hasattr(batches, "dtype"):
        raise ValueError(
            f"`{argument}` must be an iterable of batches: of one batch a list. Got {type(batches).__name__}."
        )
    return batches


def _zeros(site: Site, form: Form, names: tuple[str, ...]) -> Sums:
    if jnp.issubdtype(site.weight.dtype, jnp.complexfloating):
        raise ValueError(
            f"`calibrate(model=...)` must have real weights, or leave others out by `where`. Got {site.weight.dtype} "
            f"at `{site.path}`."
        )
    # The Gram matrix of lookups is diagonal, and has the second moment there.
    chosen = (COUNT, CALLS, *(SECOND_MOMENT if name == GRAM and form.is_table else name for name in names))
    return {n: jnp.zeros((*site.stack, *STATISTICS[n].shape(form.groups, form.features)), jnp.float32) for n in chosen}


def _of_batch(model: PyTree, batch: PyTree, index: int, forward: Forward, zeros: Table) -> Table:
    try:
        sums = _sums(model, batch, forward, zeros)
        return with_true_maxima(sums, lambda values: _sums(model, batch, forward, values))
    except Exception as error:
        if forward is mapped:
            error.add_note("By default `forward` is `jax.vmap(model)(batch)`: give it if a batch is used otherwise.")
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}" if eqx.is_array(x) else x, batch)
        error.add_note(f"It was raised by `forward` on batch {index} of `calibrate(batches=...)`: {shapes}.")
        raise


@eqx.filter_jit
def _sums(model: PyTree, batch: PyTree, forward: Forward, zeros: Table) -> Table:
    def total(zeros: Table) -> Array:
        outputs = forward(with_taps(model, zeros), batch)
        floats = jax.tree.leaves(eqx.filter(outputs, eqx.is_inexact_array))
        return sum((jnp.sum(jnp.real(y)).astype(jnp.float32) for y in floats), start=jnp.zeros((), jnp.float32))

    return jax.grad(total)(zeros)


@jax.jit
def _joined(sums: Table, more: Table) -> Table:
    return {path: {n: STATISTICS[n].join(x, more[path][n]) for n, x in found.items()} for path, found in sums.items()}


def _check(sums: Table) -> None:
    counts = {path: np.asarray(found[COUNT]) for path, found in sums.items()}
    for path, count in counts.items():
        if np.any(count == MISFIT):
            raise ValueError(
                f"`weighted(weight=...)` must have the axes along which `{path}` is called within one example, the "
                "outermost first. Got others. With `where=` some layers have another weight."
            )
    unknown = [p for p, found in sums.items() if not all(bool(jnp.all(jnp.isfinite(x))) for x in found.values())]
    if unknown:
        raise ValueError(
            f"`calibrate(batches=...)` must give finite inputs to all layers, whose squares float32 can hold. Got "
            f"NaN or infinity at {unknown}."
        )
    unreached = [
        path if not np.any(count > 0) else f"{path} (slice {_first(count <= 0)} of its stack)"
        for path, count in counts.items()
        if not np.all(count > 0)
    ]
    if not any(np.any(count > 0) for count in counts.values()):
        raise ValueError(
            "`calibrate(batches=..., forward=...)` must reach the weights. Got no row at any: batches without rows, "
            "weights of rows that are 0 or less, or a `forward` that returns nothing differentiable."
        )
    if unreached:
        raise ValueError(
            "`calibrate(batches=..., forward=...)` must reach all weights that are calibrated, by a way that is "
            f"differentiable up to an output. Got none at {unreached}: leave them out by `where`."
        )


def _first(missing: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(missing)[0])
