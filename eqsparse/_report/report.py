"""What is left of each weight of a model, and what it takes to store."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, PyTree

from .._sites import read
from .account import account_rows, account_table, account_total, corner_of, exported_weights
from .exported import export_forms
from .plot import plot
from .rows import all_arrays, corner, Row, row_of, totals
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

    Of an exported model: `path`, `shape`, `layout`, `reason` (why it is dense), `size`, `kept`, `sparsity`,
    `bytes_dense`, `bytes_exported`, `bytes_minimum` (the kept values, and the entropy of a mask of that size and
    count) and `of_minimum` (bytes exported over that).

    All counts are Python integers, exact at any size.
    """

    rows: list[Row]
    total: Row
    corners: dict[str, Bool[np.ndarray, "rows columns"]] = dataclasses.field(default_factory=dict, compare=False)
    write: Callable[[list[Row], Row], str] = dataclasses.field(default=table, compare=False)

    def __str__(self) -> str:
        return self.write(self.rows, self.total)

    def __repr__(self) -> str:
        return str(self)

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


def report(model: PyTree) -> Report:
    """How sparse a model is, weight by weight, and how many bytes it takes.

    ```python
    print(eqsparse.report(model))
    ```

    **Arguments:**

    - `model`: A model with masked layers: its masked weights are the rows. Or an exported model: its sparse
        weights are, and what each has saved. Or a plain model (or a PyTree of arrays): its weights that could be
        masked are, all of them dense whatever they hold.

    **Returns:** A [`eqsparse.Report`][].

    **Raises:** `ValueError` if the model has no such weight, or is traced by `jax.jit` or its like.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
        raise ValueError("`report(model=...)` must hold arrays, not tracers: call it outside `jax.jit`. Got tracers.")
    exported = exported_weights(model)
    if exported:
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
    return Report(rows, total, {site.path: corner(site, _CORNER_LENGTH) for site in sites[:_CORNERS]})
