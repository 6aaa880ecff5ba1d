"""How the magnitudes of kept weights are distributed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .._sites import Site
from .plot import canvas, save_if_asked
from .table import shorten

# Path → exponents from the smallest up, and how many magnitudes lie between that power of two and the next.
Magnitudes = dict[str, tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]]

_MOST = 12  # lines that can be told apart


def kept_magnitudes(sites: Sequence[Site]) -> Magnitudes:
    """Those of each site; a site that keeps nothing but zeros is left out."""
    found = {site.path: _histogram(_kept(site)) for site in sites}
    return {path: (exponents, counts) for path, (exponents, counts) in found.items() if counts.size}


def plot_magnitudes(magnitudes: Mapping[str, Any], target: Any) -> Any:
    """A line for each of the first sites; see `Report.plot_magnitudes`."""
    if not magnitudes:
        raise ValueError(
            "`Report.plot_magnitudes()` needs weights that are kept, of a masked or a plain model. Got none."
        )
    figure, axes = canvas("Report.plot_magnitudes", target, (9.0, 3.6))
    for path, (exponents, counts) in list(magnitudes.items())[:_MOST]:
        edges = 2.0 ** np.append(exponents, exponents[-1] + 1)
        axes.stairs(counts / counts.sum(), edges, label=shorten(path, 40), linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("magnitude of a kept weight")
    axes.set_ylabel("share of kept weights")
    axes.legend(fontsize="small")
    return save_if_asked(figure, target)


def _kept(site: Site) -> Float[np.ndarray, "kept"]:
    weight = np.abs(np.asarray(site.weight)).astype(np.float32)
    return weight.reshape(-1) if site.mask is None else weight[np.asarray(site.mask.dense())]


def _histogram(kept: Float[np.ndarray, "kept"]) -> tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]:
    kept = kept[(kept > 0) & np.isfinite(kept)]
    if not kept.size:
        return np.zeros(0, int), np.zeros(0, int)
    exponents = np.frexp(kept)[1] - 1
    lowest = int(exponents.min())
    counts = np.bincount(exponents - lowest)
    return np.arange(lowest, lowest + counts.size), counts
