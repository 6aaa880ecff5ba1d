"""A history as a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from .plot import matplotlib_for, save_if_asked
from .table import shorten

_ALL, _EACH = "#222222", "#9aa5b1"
_MEASURES = {
    "sparsity": "sparsity",
    "churn": "new among the kept,\nsince the last record",
    "explored": "ever kept",
}
_NAMED = 6


def plot(
    rows: Sequence[dict[str, Any]], layers: Mapping[str, Sequence[dict[str, Any]]], values: list[str], target: Any
) -> Any:
    """A panel for each value and each measure, steps along the bottom; see `History.plot`."""
    _, figure_type = matplotlib_for("History.plot", target, on_axes=False)
    panels = [*values, *_MEASURES]
    figure: Any = figure_type(figsize=(9.0, 1.2 + 1.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    steps = [row["step"] for row in rows]
    for axis, name in zip(axes, panels, strict=True):
        if name in _MEASURES and len(layers) > 1:
            for i, (path, of_layer) in enumerate(layers.items()):
                label = shorten(path, 30) if len(layers) <= _NAMED else "each weight" if i == 0 else None
                style = {"color": _EACH} if len(layers) > _NAMED else {}
                axis.plot(steps, [row[name] for row in of_layer], label=label, linewidth=1.0, **style)
        axis.plot(steps, [row[name] for row in rows], color=_ALL, linewidth=2.0, label="all", marker=".")
        axis.set_ylabel(_MEASURES.get(name, name))
        if name in _MEASURES:
            axis.set_ylim(-0.03, 1.03)
    if len(layers) > 1:
        axes[len(values)].legend(fontsize="small", ncols=2)
    axes[-1].set_xlabel("step")
    return save_if_asked(figure, target)
