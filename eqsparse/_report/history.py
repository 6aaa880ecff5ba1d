"""What becomes of masks while a model trains."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, PyTree, UInt8, UInt32

from .._check import integer
from .._mask import Mask
from .._pruner import OptaxState, PrunerState
from .._sites import masks_of, read
from .history_plot import plot

Row = dict[str, Any]  # numbers by name
Bits = dict[str, UInt8[Array, "..."]]  # masks packed along their last axis: small, and in buffers of their own

_PENDING = 256  # records left on the device: the oldest are long there when they are fetched


@final
class History:
    """Sparsity, churn, loss and whatever else a training loop knows, step by step.

    ```python
    history = eqsparse.History(every=10)
    for x, y in batches:
        model, state, loss = step(model, state, x, y)
        history.add(model, state, loss=loss)
    history.to_csv("run.csv")
    history.plot("run.png")
    ```

    `add` waits for nothing: what it computes stays on the device until it is asked for (or, of a long run, until much
    later). It keeps two bits for each masked weight, those of the last record and whether it was ever kept.

    A record holds, over all masked weights and for each:

    - `sparsity`: the fraction that is masked.
    - `churn`: of the weights that are kept, the fraction that was not at the last record. Drop-and-grow replaces that
        share; gradual pruning, which only removes, has 0.
    - `explored`: the fraction that was kept at any record so far.
    """

    def __init__(self, every: int = 1):
        """**Arguments:**

        - `every`: Of how many calls of `add` one is recorded; the first is. The others cost nothing.

        **Raises:** `ValueError` if it is no whole number of at least 1.
        """
        self.every = integer(every, "History(every=...)", 1)
        self._calls = 0
        self._sizes: dict[str, int] = {}
        self._names: set[str] = set()
        self._before: Bits | None = None
        self._ever: Bits | None = None
        self._pending: list[Any] = []
        self._fetched: list[Any] = []

    def add(self, model: PyTree, state: PyTree = None, **values: ArrayLike) -> None:
        """Records where training stands, if it is time to.

        **Arguments:**

        - `model`: The model with masked layers; or parameters of `as_optax`, whose masks are in `state`.
        - `state`: The pruner's state, or one that holds it, for the step. Without one, calls are counted.
        - `**values`: Numbers by name (`loss=loss`), arrays of one number or not. The names of one run are the same
            at each record.

        **Raises:** `ValueError` within a compiled function, if there is no mask, the masks are others than before, or
            a value is no number.
        """
        if self._calls % self.every:
            self._calls += 1
            return
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((model, state, values))):
            raise ValueError("`History.add` must be given arrays, not tracers: call it outside `jax.jit`. Got tracers.")
        masks, step = _masks_and_step(model, state)
        sizes = {path: int(np.prod(mask.shape)) for path, mask in masks.items()}
        for name, value in values.items():
            if not _is_number(value) or name in _OWN:
                rule = f"one number, under another name than {list(_OWN)}"
                got = f"shape {np.shape(value)}" if np.ndim(value) else repr(value)
                raise ValueError(f"`History.add({name}=...)` must be {rule}. Got {got}.")
        if not len(self):
            self._sizes, self._names = sizes, set(values)
        if sizes != self._sizes or set(values) != self._names:
            raise ValueError(
                "`History.add(model, **values)` must have the same masks and names at each record. Got "
                f"{sorted(sizes)} and {sorted(values)} after {sorted(self._sizes)} and {sorted(self._names)}."
            )
        call, self._calls = self._calls, self._calls + 1
        counts, self._before, self._ever = _compared(masks, self._before, self._ever)
        # Copies: the step is a leaf of the state, which may be donated, and so may be values.
        own = {name: jnp.copy(value) if isinstance(value, jax.Array) else value for name, value in values.items()}
        self._pending.append((call if step is None else jnp.copy(step), counts, own))
        if len(self._pending) >= 2 * _PENDING:
            self._fetch(_PENDING)

    def __len__(self) -> int:
        return len(self._fetched) + len(self._pending)

    @property
    def rows(self) -> list[Row]:
        """A dict for each record: `step`, `sparsity`, `churn`, `explored`, and the values. Ready for
        `pandas.DataFrame`."""
        return [self._row(record) for record in self._records()]

    @property
    def layers(self) -> dict[str, list[Row]]:
        """The same without the values, for each masked weight by its path."""
        return {
            path: [self._measures(record, [path]) for record in self._records()]
            for path in (self._sizes if len(self) else ())
        }

    def last(self) -> Row:
        """The last of `rows`.

        **Raises:** `ValueError` if nothing was recorded.
        """
        self._some("last")
        return self.rows_from(len(self) - 1)[0]

    def rows_from(self, start: int) -> list[Row]:
        """`rows` from one on: for loggers that are told of new ones now and then."""
        return [self._row(record) for record in self._records()[start:]]

    def to_dict(self) -> dict[str, Any]:
        """`{"rows": [...], "layers": {path: [...]}}` in plain data, ready for `json.dumps`."""
        return {"rows": self.rows, "layers": self.layers}

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as comma-separated values, with the sparsity of each weight as further columns.

        **Arguments:**

        - `path`: A file to write them to, or `None`.

        **Returns:** The text.
        """
        layers, text = self.layers, io.StringIO()
        columns = {f"sparsity {path}": [row["sparsity"] for row in rows] for path, rows in layers.items()}
        rows = [row | {name: column[i] for name, column in columns.items()} for i, row in enumerate(self.rows)]
        writer = csv.DictWriter(text, list(rows[0]) if rows else [*_OWN], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def plot(self, target: Any = None) -> Any:
        """Values, sparsity, churn and what was ever explored over the steps: of all weights and of each.

        **Arguments:**

        - `target`: A file to save the figure in, or `None`.

        **Returns:** The `matplotlib.figure.Figure`.

        **Raises:** `ImportError` without matplotlib (`pip install eqsparse[plot]`); `ValueError` if nothing was
        recorded.
        """
        self._some("plot")
        return plot(self.rows, self.layers, [name for name in self.rows[0] if name not in _OWN], target)

    def __repr__(self) -> str:
        if not len(self):
            return "History of 0 records"
        shown = ", ".join(f"{name}={value:.7g}" for name, value in self.last().items())
        return f"History of {len(self)} records, the last: {shown}"

    def _records(self) -> list[Any]:
        self._fetch(len(self._pending))
        return self._fetched

    def _fetch(self, n: int) -> None:
        self._fetched += jax.device_get(self._pending[:n])
        self._pending = self._pending[n:]

    def _row(self, record: Any) -> Row:
        step, _, values = record
        return {
            "step": int(step),
            **self._measures(record, list(self._sizes), with_step=False),
            **{name: float(value) for name, value in values.items()},
        }

    def _measures(self, record: Any, paths: list[str], *, with_step: bool = True) -> Row:
        step, counts, _ = record
        kept, new, ever = (sum(int(counts[path][i]) for path in paths) for i in range(3))
        size = sum(self._sizes[path] for path in paths)
        share = lambda part, whole: part / whole if whole else 0.0
        measures = {"sparsity": share(size - kept, size), "churn": share(new, kept), "explored": share(ever, size)}
        return {"step": int(step), **measures} if with_step else measures

    def _some(self, method: str) -> None:
        if not len(self):
            raise ValueError(f"`History.{method}()` needs a record at least: call `add` first. Got none.")


_OWN = ("step", "sparsity", "churn", "explored")


def _masks_and_step(model: PyTree, state: PyTree) -> tuple[Mapping[str, Mask], Array | None]:
    """The masks of a model, or those in a state of `as_optax`; and the step of the pruner's state."""
    is_state = lambda node: isinstance(node, OptaxState | PrunerState)
    states = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
    masks = masks_of(read(model))
    if not masks and states and isinstance(states[0], OptaxState):
        masks = states[0].masks
    if not masks:
        raise ValueError(
            "`History.add(model=...)` must hold masked layers, as those of `SparseTraining.masked`, or "
            f"`state` the masks of `as_optax`. Got {type(model).__name__} without any."
        )
    if not states:
        return masks, None
    step = states[0].pruner.step if isinstance(states[0], OptaxState) else states[0].step
    if step.ndim:
        raise ValueError(
            "`History.add(state=...)` must be of one model: give a member of an ensemble, with a history of its own. "
            f"Got a step of shape {step.shape}."
        )
    return masks, step


def _is_number(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float) or np.ndim(value) != 0:
        return False
    kind = jnp.result_type(value)
    return jnp.issubdtype(kind, np.number) or jnp.issubdtype(kind, np.bool_)


@jax.jit
def _compared(
    masks: Mapping[str, Mask], before: Bits | None, ever: Bits | None
) -> tuple[dict[str, UInt32[Array, "3"]], Bits, Bits]:
    """For each mask how many weights it keeps, how many of them it did not before, and how many were ever kept; and
    what to compare the next with."""
    # Packed in any case: a mask that is returned as it came would be in the buffer of the model, which may be donated.
    now = {path: _packed(mask) for path, mask in masks.items()}
    before = now if before is None else before
    ever = now if ever is None else {path: bits | ever[path] for path, bits in now.items()}
    ones = lambda bits: jnp.sum(jnp.bitwise_count(bits), dtype=jnp.uint32)
    counts = {path: jnp.stack([ones(bits), ones(bits & ~before[path]), ones(ever[path])]) for path, bits in now.items()}
    return counts, now, ever


def _packed(mask: Mask) -> UInt8[Array, "..."]:
    if mask.packed:
        return jax.lax.optimization_barrier(mask.bits)
    return jnp.packbits(mask.bits, axis=-1) if mask.bits.ndim else mask.bits.astype(jnp.uint8)
