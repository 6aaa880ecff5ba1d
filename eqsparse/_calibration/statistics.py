"""What a calibration found, by path."""

from collections.abc import ItemsView, Iterator
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from .._check import known
from .inputs import Form
from .measure import Sums
from .statistic import ABSOLUTE_MAXIMUM, ASKED_FOR, COUNT, GRAM, MEAN, SECOND_MOMENT


@final
class SiteStatistics(eqx.Module):
    """What flows into one weight, over all rows that it was multiplied by.

    All in float32. Of an `eqx.nn.Linear` the inputs are of shape `(in,)`; of a convolution those of its patches,
    `(in / groups, *kernel)`; of an embedding one for each token, 1 where it is looked up and 0 elsewhere. A stack of
    layers has its axes in front, then groups theirs where there are several. What was not asked for is `None`.
    """

    path: str = eqx.field(static=True)
    sums: Sums
    form: Form = eqx.field(static=True)

    @property
    def count(self) -> Float32[Array, "*stack"]:
        """How many rows, or the sum of their weights."""
        return self.sums[COUNT]

    @property
    def mean(self) -> Float32[Array, "..."] | None:
        """Their mean."""
        if MEAN not in self.sums:
            return None
        count = self.count[..., None, None]
        return self._of_inputs(self.sums[MEAN] / jnp.where(count > 0, count, 1))

    @property
    def second_moment(self) -> Float32[Array, "..."] | None:
        """Σ x² of each input."""
        found = self.squares()
        return None if found is None else self._of_inputs(found)

    @property
    def gram(self) -> Float32[Array, "..."] | None:
        """Σ x xᵀ, the inputs in one axis. `None` for an embedding, where it has `second_moment` on its diagonal and
        zeros elsewhere."""
        found = self.sums.get(GRAM)
        return found if found is None or self.form.groups > 1 else found[..., 0, :, :]

    @property
    def absolute_maximum(self) -> Float32[Array, "..."] | None:
        """max |x| of each input."""
        return self._of_inputs(self.sums[ABSOLUTE_MAXIMUM]) if ABSOLUTE_MAXIMUM in self.sums else None

    def names(self) -> list[str]:
        """What was asked for."""
        return [name for name in self.sums if name in ASKED_FOR]

    def squares(self) -> Float32[Array, "*stack groups features"] | None:
        """Σ x², as the weight's matrix has its inputs."""
        if SECOND_MOMENT in self.sums:
            return self.sums[SECOND_MOMENT]
        return jnp.diagonal(self.sums[GRAM], axis1=-2, axis2=-1) if GRAM in self.sums else None

    def _of_inputs(self, sums: Float32[Array, "*stack groups features"]) -> Float32[Array, "..."]:
        groups = (self.form.groups,) if self.form.groups > 1 else ()
        return sums.reshape(*sums.shape[:-2], *groups, *self.form.inputs)


@final
class Statistics(eqx.Module):
    """What flows into each weight of a model, by its path. Made by `eqsparse.calibrate`.

    ```python
    statistics["layers.0.weight"].second_moment
    ```

    `len`, `in`, `items` and loops work as those of a dict. A PyTree of float32 arrays.
    """

    sites: dict[str, SiteStatistics]

    def __getitem__(self, path: str) -> SiteStatistics:
        return self.sites[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, path: str) -> bool:
        return path in self.sites

    def items(self) -> ItemsView[str, SiteStatistics]:
        """Paths and what was found."""
        return self.sites.items()

    def __repr__(self) -> str:
        rows = [["path", "inputs", "rows", "statistics"]]
        rows += [_row(path, found) for path, found in self.items()]
        if len(rows) > _SHOWN + 2:
            left_out = len(rows) - 1 - _SHOWN
            rows[_SHOWN // 2 + 1 : -(_SHOWN // 2)] = [[f"({left_out} more)", "", "", ""]]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows)


_SHOWN = 20  # rows that fit on a screen


def _row(path: str, found: SiteStatistics) -> list[str]:
    count = found.sums[COUNT]
    stack = f"{' × '.join(map(str, count.shape))} × " if count.shape else ""
    rows = "?" if not known(count) else f"{np.max(np.asarray(count), initial=0):,.7g}"
    return [path, f"{stack}{found.form.inputs}", rows, ", ".join(name for name in found.sums if name in ASKED_FOR)]
