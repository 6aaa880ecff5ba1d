"""What is left of each weight of a model, and what it takes to store."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, PyTree

from .._sites import read
from .account import account_rows, account_table, account_total, corner_of, exported_weights
from .exported import export_forms
from .magnitudes import kept_magnitudes, Magnitudes, plot_magnitudes
from .operations import Forward, operations_of
from .plot import plot
from .rows import all_arrays, corner, Row, row_of, totals, with_operations
from .table import table

_CORNERS = 4
_CORNER_LENGTH = 64


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """A table of the sites of a model; `str()` prints it. Made by `eqsparse.report`.

    - `rows`: A dict for each site: `path`; `shape`; `stack` (the axes before those of one layer);
        `structure` (seen in the mask: `"dense"`, `"empty"`, `"channel"`, `"block 4x4"`, `"2:4"`,
        `"unstructured"`); `size` and `kept`; `sparsity` (fraction of zeros); `smallest_slice` (kept in the
        emptiest layer of the stack); `bytes_dense`; `bytes_masked` (weight and mask as stored);
        `bytes_exported` (as `to_bcoo` stores it).
    - `total`: `sites` and the sums of the above; `other_size` and `other_bytes` of the arrays that are no
        site (biases, norms); `model_size`, `model_bytes_dense`, ... of everything.

    With `x`, in the rows and in the total, `operations_dense` and `operations_effective`: multiplications and
    additions of the weight's products, with all of its weights and with those kept; the layers of a stack count as
    used equally often. In the total also `operations_other` (products that are not of one site's weight with data,
    as those of attention) and `model_operations_...` (with them). Of all else (biases, activations, norms, sums)
    nothing counts.

    Of an exported model: `path`, `shape`, `layout`, `reason` (why it is dense), `size`, `kept`, `sparsity`,
    `bytes_dense`, `bytes_exported`, `bytes_minimum` (the kept values, and the entropy of a mask of that size and
    count) and `of_minimum` (bytes exported over that).

    All counts are Python integers, exact at any size.
    """

    rows: list[Row]
    total: Row
    corners: dict[str, Bool[np.ndarray, "rows columns"]] = dataclasses.field(default_factory=dict, compare=False)
    write: Callable[[list[Row], Row], str] = dataclasses.field(default=table, compare=False)
    magnitudes: Callable[[], Magnitudes] = dataclasses.field(default=dict, compare=False)

    def __str__(self) -> str:
        return self.write(self.rows, self.total)

    def __repr__(self) -> str:
        return str(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: what is told of the weights, without the weights."""
        return self.__dict__ | {"magnitudes": functools.partial(dict, self.magnitudes())}

    def to_dict(self) -> dict[str, Any]:
        """`{"rows": [...], "total": {...}}` in plain data, ready for `json.dumps`."""
        rows = [{k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in self.rows]
        return {"rows": rows, "total": dict(self.total)}

    def plot(self, target: Any = None) -> Any:
        """Bars of kept and removed weights for each site, and corners of the first masks.

        **Arguments:**

        - `target`: Where to: a file to save the figure in, matplotlib `Axes` to draw the bars on (then no
            masks are shown), or `None`.

        **Returns:** The `matplotlib.figure.Figure`.

        **Raises:** `ImportError` without matplotlib (`pip install eqsparse[plot]`).
        """
        return plot(self.rows, self.corners, target)

    def plot_magnitudes(self, target: Any = None) -> Any:
        """How the magnitudes of the weights that are kept are distributed, for each site: a line of a histogram over
        powers of two, the share of the kept weights in each. Zeros that are kept are left out.

        The weights are read when this is called, those of the model that the report was made of.

        **Arguments:**

        - `target`: A file to save the figure in, matplotlib `Axes` to draw on, or `None`.

        **Returns:** The `matplotlib.figure.Figure`.

        **Raises:** `ImportError` without matplotlib (`pip install eqsparse[plot]`); `ValueError` for an exported
        model, or if nothing is kept.
        """
        return plot_magnitudes(self.magnitudes(), target)


def report(model: PyTree, x: Any = None, *, forward: Forward | None = None) -> Report:
    """How sparse a model is, weight by weight, and how many bytes it takes.

    ```python
    print(eqsparse.report(model))
    print(eqsparse.report(model, x))  # and how many operations a call takes
    ```

    **Arguments:**

    - `model`: A model with masked layers: its masked weights are the rows. Or an exported model: its sparse
        weights are, and what each has saved. Or a plain model (or a PyTree of arrays): its weights that could be
        masked are, all of them dense whatever they hold.
    - `x`: What the model is called with, to count operations: arrays, or `jax.ShapeDtypeStruct`s, in any PyTree.
        The call is traced, nothing is computed. A product in a `scan` counts as often as it is run, in a `while`
        loop once (how often it runs is not known), in a `cond` where its branch is the one that takes most.
    - `forward`: `(model, x) -> outputs`, how it is called; `model(x)` by default: one example.
        `lambda model, x: jax.vmap(model)(x)` for a batch.

    **Returns:** A [`eqsparse.Report`][].

    **Raises:** `ValueError` if the model has no such weight, or is traced by `jax.jit` or its like; if `x` is given
    for an exported model, whose products can't be told from its program.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
        raise ValueError("`report(model=...)` must hold arrays, not tracers: call it outside `jax.jit`. Got tracers.")
    exported = exported_weights(model)
    if exported:
        if x is not None:
            raise ValueError(
                "`report(x=...)` must be left out for an exported model: count the operations of the masked one. Got x."
            )
        rows = account_rows(exported)
        corners = {path: corner_of(layout, _CORNER_LENGTH) for path, layout, _ in exported[:_CORNERS]}
        return Report(rows, account_total(rows, model), corners, account_table)
    sites = [site for site in read(model).values() if site.default]
    if not sites:
        raise ValueError(
            "`report(model=...)` must contain a weight that is masked or could be (that of `eqx.nn.Linear`, `Conv`, "
            "`Embedding`, `GRUCell`, `LSTMCell`, or of `eqsparse.Masked`). "
            f"Got {type(model).__name__} without any."
        )
    forms = export_forms(model)
    rows = [row_of(site, forms.get(site.path, "dense")) for site in sites]
    size, nbytes = all_arrays(model)
    in_sites = totals(rows, 0, 0)
    total = totals(rows, size - in_sites["size"], nbytes - in_sites["bytes_masked"])
    if x is not None:
        found = operations_of(model, x, _called if forward is None else forward, {site.path: site for site in sites})
        rows, total = with_operations(rows, total, found)
    corners = {site.path: corner(site, _CORNER_LENGTH) for site in sites[:_CORNERS]}
    return Report(rows, total, corners, magnitudes=lambda: kept_magnitudes(sites))


def _called(model: Any, x: Any) -> Any:
    """The usual `forward`."""
    if not callable(model):
        raise ValueError(f"`report(forward=...)` must say how a {type(model).__name__} is called with `x`. Got None.")
    return model(x)
