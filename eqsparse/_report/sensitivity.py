"""How much each weight of a model can lose."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._calibration import Statistics
from .._check import instance, integer, unit
from .._criterion import Magnitude
from .._distribution import AbstractDistribution, PerPath, Uniform
from .._model import is_sparsified, sparsify
from .._pruner import AbstractPruner, GradualPruning
from .._sites import pick, read, Where
from .plot import heat_map
from .table import aligned, in_percent


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Sensitivity:
    """The loss when one weight alone is pruned to each of some sparsities. Made by `eqsparse.sensitivity`.

    - `losses`: a row for each weight, a column for each sparsity.
    - `paths`, `sizes`: of the weights.
    - `sparsities`: in rising order.
    - `dense`: the loss of the model as it was.

    `str()` is a table of what each adds to the loss.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    sparsities: tuple[float, ...]
    dense: float
    losses: Float[np.ndarray, "paths sparsities"]

    def __str__(self) -> str:
        head = ["path", "", "", *(in_percent(sparsity) for sparsity in self.sparsities)]
        added = self.losses - self.dense
        body = [[path, "", "", *(f"{x:+.4g}" for x in row)] for path, row in zip(self.paths, added, strict=True)]
        return aligned(head, body, [["dense", "", "", f"{self.dense:.4g}", *([""] * (len(self.sparsities) - 1))]])

    def __repr__(self) -> str:
        return str(self)

    def plot(self, target: Any = None) -> Any:
        """A heat map of what each adds to the loss.

        **Arguments:**

        - `target`: A file to save the figure in, matplotlib `Axes` to draw on, or `None`.

        **Returns:** The `matplotlib.figure.Figure`.

        **Raises:** `ImportError` without matplotlib (`pip install eqsparse[plot]`).
        """
        columns = [in_percent(sparsity) for sparsity in self.sparsities]
        return heat_map(self.losses - self.dense, self.paths, columns, target)

    def distribution(self, sparsity: float) -> PerPath:
        """Sparsities for all weights together that reach a total where it hurts least.

        As if what the weights add to the loss added up: step by step that weight is pruned to its next level which adds
        least for each weight removed (of levels that it could go to), until the total is reached; the last step is
        taken in part, so that the total is met.

        **Arguments:**

        - `sparsity`: Fraction of these weights to remove, in `[0, 1]`, at most the largest of `sparsities`.

        **Raises:** `ValueError` if it is beyond that.
        """
        largest, total = max(self.sparsities), sum(self.sizes)
        wanted = float(unit(sparsity, "Sensitivity.distribution(sparsity=...)")) * total
        if wanted > largest * total * (1 + 1e-6):
            raise ValueError(
                f"`Sensitivity.distribution(sparsity=...)` must be at most the largest that was tried, {largest:g}. "
                f"Got {sparsity}."
            )
        wanted = min(wanted, largest * total)
        now, levels = dict.fromkeys(self.paths, 0.0), self._levels()
        sizes = dict(zip(self.paths, self.sizes, strict=True))
        removed = 0.0
        while removed < wanted * (1 - 1e-9):
            left = [path for path in self.paths if now[path] < largest]
            _, level, path = min((*self._step(levels[path], now[path], sizes[path]), path) for path in left)
            level = min(level, now[path] + (wanted - removed) / sizes[path])
            removed += (level - now[path]) * sizes[path]
            now[path] = level
        return PerPath({path: min(level, 1.0) for path, level in now.items()})

    def _levels(self) -> dict[str, list[tuple[float, float]]]:
        """For each weight sparsities and what they add, from nothing on; a loss of NaN is the worst there is."""
        added = np.nan_to_num(self.losses - self.dense, nan=np.inf, posinf=np.inf)
        each = (zip(self.sparsities, row.tolist(), strict=True) for row in added)
        return {path: [(0.0, 0.0), *row] for path, row in zip(self.paths, each, strict=True)}

    @staticmethod
    def _step(levels: list[tuple[float, float]], now: float, size: int) -> tuple[float, float]:
        """The next level of the least price for each weight removed, and the price before it."""
        cost = float(np.interp(now, [s for s, _ in levels], [c for _, c in levels]))
        ahead = [((c - cost) / ((s - now) * size), s) for s, c in levels if s > now]
        return min(ahead)


def sensitivity(
    model: PyTree,
    loss: Callable[[Any], Array],
    sparsities: float | Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
    *,
    where: Where = None,
    prune: Callable[[AbstractDistribution], AbstractPruner] | None = None,
    statistics: Statistics | None = None,
    batch_size: int = 1,
) -> Sensitivity:
    """The loss when each weight alone is pruned to each of some sparsities.

    ```python
    found = eqsparse.sensitivity(model, lambda model: loss(model, x, y))
    pruner = eqsparse.MagnitudePruning(distribution=found.distribution(0.7))
    ```

    **Arguments:**

    - `model`: An Equinox model, masked or plain.
    - `loss`: `(model) -> scalar`, of data of its own.
    - `sparsities`: In `[0, 1]`, one or several.
    - `where`: Which weights, as in `eqsparse.sparsify`. All by default.
    - `prune`: A distribution → the pruner that masks the weight: by magnitude by default. It must do without gradients.
    - `statistics`: What `prune` on that pruner takes, if it goes by them: from [`eqsparse.calibrate`][].
    - `batch_size`: How many sparsities are tried side by side: as many models are held at once.

    **Returns:** [`eqsparse.Sensitivity`][].

    **Raises:** `ValueError` if a sparsity is outside `[0, 1]` or beyond what the pruner's structure can express, or a
    pattern matches no weight.
    """
    batch_size = integer(batch_size, "sensitivity(batch_size=...)", 1)
    several = sparsities if isinstance(sparsities, Sequence) else np.atleast_1d(np.asarray(sparsities)).tolist()
    levels = sorted({float(unit(sparsity, "sensitivity(sparsities=...)")) for sparsity in several})
    if not levels:
        raise ValueError("`sensitivity(sparsities=...)` must hold one at least. Got none.")
    model = model if is_sparsified(model) else sparsify(model)
    sites = read(model)
    picked = pick(where, {path: site.weight for path, site in sites.items()}, "sensitivity(where=...)")
    paths = tuple(path for path in sites if path in picked)

    def pruner_of(path: str, level: ArrayLike) -> AbstractPruner:
        made = (prune or _by_magnitude)(Uniform(level, {other: None for other in sites if other != path}))
        instance(made, AbstractPruner, "sensitivity(prune=...)", "a function of a distribution that returns a pruner")
        return made

    for path in paths:  # levels are not known where they are traced
        largest = pruner_of(path, levels[-1])
        largest.plan_for(sites)(largest.distribution).check()

    @eqx.filter_jit
    def of_path(model: PyTree, path: str, levels: Array, more: dict[str, Any]) -> Array:
        pruned = lambda level: pruner_of(path, level).prune(model, **more)
        return jax.lax.map(lambda level: loss(pruned(level)).astype(jnp.float32), levels, batch_size=batch_size)

    found = _loss_of(model, loss)
    if jnp.shape(found) != ():
        raise ValueError(f"`sensitivity(loss=...)` must return one number. Got shape {jnp.shape(found)}.")
    if not isinstance(found, jax.Array):
        raise TypeError(f"`sensitivity(loss=...)` must return what JAX computes of the model. Got {found!r}.")
    dense, more = float(found), {} if statistics is None else {"statistics": statistics}
    losses = np.stack([np.asarray(of_path(model, path, jnp.asarray(levels), more)) for path in paths])
    return Sensitivity(paths, tuple(sites[p].weight.size for p in paths), tuple(levels), dense, losses)


def _loss_of(model: PyTree, loss: Callable[[Any], Any]) -> Any:
    try:
        return eqx.filter_jit(loss)(model)
    except Exception as error:
        error.add_note("It was raised by `sensitivity(loss=...)`, which is compiled: no `float()` or NumPy in it.")
        raise


def _by_magnitude(distribution: AbstractDistribution) -> AbstractPruner:
    return GradualPruning(criterion=Magnitude(), distribution=distribution)
