"""A report as a figure."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .table import in_percent, shorten

_KEPT, _REMOVED = "#2f6db5", "#d9dde3"
_LONGEST_LABEL = 40


def plot(rows: Sequence[dict[str, Any]], corners: Mapping[str, Bool[np.ndarray, "rows columns"]], target: Any) -> Any:
    """Bars of kept and removed weights, and the corners of some masks; see `Report.plot`."""
    axes_type, figure_type = matplotlib_for("Report.plot", target)
    if isinstance(target, axes_type):
        _bars(target, rows)
        return target.figure
    bars_height = min(1.2 + 0.3 * len(rows), 60.0)
    figure: Any = figure_type(figsize=(9.0, bars_height + 2.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(bars_height, 2.6))
    _bars(figure.add_subplot(grid[0]), rows)
    images = grid[1].subgridspec(1, max(len(corners), 1))
    axes = [figure.add_subplot(images[i]) for i in range(len(corners))]
    for axis, (path, corner) in zip(axes, corners.items(), strict=True):
        _mask_image(axis, path, corner)
    if target is not None:
        figure.savefig(target)
    return figure


def canvas(method: str, target: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and the axes to draw one plot on: those of `target`, or new ones."""
    axes_type, figure_type = matplotlib_for(method, target)
    if isinstance(target, axes_type):
        return target.figure, target
    figure: Any = figure_type(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def matplotlib_for(method: str, target: Any, on_axes: bool = True) -> tuple[Any, Any]:
    """The types `Axes` and `Figure`, where `target` is one that the method takes."""
    try:
        # Not `pyplot`, whose global state and windows a library has no business with.
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"`{method}()` needs matplotlib. Install it with `pip install eqsparse[plot]`.") from error
    if not (target is None or isinstance(target, str | os.PathLike) or (on_axes and isinstance(target, Axes))):
        allowed = "a path, matplotlib `Axes` or `None`" if on_axes else "a path or `None`"
        raise ValueError(f"`{method}(target=...)` must be {allowed}. Got {target!r}.")
    return Axes, Figure


def save_if_asked(figure: Any, target: Any) -> Any:
    """The figure, saved where `target` is a path."""
    if isinstance(target, str | os.PathLike):
        figure.savefig(target)
    return figure


def heat_map(
    values: Float[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], target: Any
) -> Any:
    """Colours for the values of each row and column; see `Sensitivity.plot`."""
    figure, axes = canvas("Sensitivity.plot", target, (9.0, min(1.6 + 0.3 * len(rows), 60.0)))
    image = axes.imshow(values, aspect="auto", cmap="Blues", interpolation="nearest")
    axes.set_yticks(range(len(rows)), [shorten(row, _LONGEST_LABEL) for row in rows])
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel("sparsity of this weight alone")
    figure.colorbar(image, ax=axes, label="added to the loss")
    return save_if_asked(figure, target)


def _bars(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    kept = [row["kept"] for row in rows]
    removed = [row["size"] - row["kept"] for row in rows]
    axes.barh(places, kept, color=_KEPT, label="kept")
    axes.barh(places, removed, left=kept, color=_REMOVED, label="removed")
    labels = [f"{shorten(row['path'], _LONGEST_LABEL)}  {in_percent(row['sparsity'])}" for row in rows]
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel("weights")
    axes.legend()


def _mask_image(axes: Any, path: str, corner: Bool[np.ndarray, "rows columns"]) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(corner, cmap=ListedColormap([_REMOVED, _KEPT]), vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(f"{shorten(path, 24)}\n[:{corner.shape[0]}, :{corner.shape[1]}]", fontsize="small")
    axes.set_xticks([])
    axes.set_yticks([])
