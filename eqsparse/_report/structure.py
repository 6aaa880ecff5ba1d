"""Which structure a mask shows, told from the mask alone."""

import math

import numpy as np
from jaxtyping import Bool

# A pattern is named only if fewer than one in this many unstructured masks of the same count would show it:
# small masks are channels, blocks or N:M by chance.
_RARE = 100
_LARGEST_RUN = 32


def structure_of(mask: Bool[np.ndarray, "slices *core"], contraction_axis: int) -> str:
    """`"dense"`, `"empty"`, `"channel"`, `"block 4x4"`, `"2:4"` or `"unstructured"`, the first that fits.

    Channels are blocks, and regular blocks are N:M, so the more special name is tried first. A pattern must
    hold in every slice of a stack.

    **Arguments:**

    - `mask`: The mask of a site, its stack flattened into the first axis.
    - `contraction_axis`: The axis of the core that runs of N:M lie along.
    """
    kept = int(np.count_nonzero(mask))
    if kept == mask.size:
        return "dense"
    if kept == 0:
        return "empty"
    tile = [_tile_length(mask, axis) for axis in range(1, mask.ndim)]
    return _channel(mask, tile) or _block(mask, tile) or _n_of_m(mask, contraction_axis) or "unstructured"


def _channel(mask: Bool[np.ndarray, "slices *core"], tile: list[int]) -> str | None:
    varying = [axis for axis, length in enumerate(mask.shape[1:]) if tile[axis] < length]
    if len(tile) < 2 or len(varying) > 1:
        return None
    along = varying[0] if varying else 0
    chosen = mask[(slice(None), *(slice(None) if axis == along else 0 for axis in range(len(tile))))]
    return "channel" if _is_rare(mask, _log_choose(chosen.size, int(np.count_nonzero(chosen)))) else None


def _block(mask: Bool[np.ndarray, "slices *core"], tile: list[int]) -> str | None:
    if len(tile) < 2:
        return None
    rows, columns = tile[:2]
    chosen = mask[:, ::rows, ::columns]
    rare = _is_rare(mask, _log_choose(chosen.size, int(np.count_nonzero(chosen))))
    return f"block {rows}x{columns}" if rare else None


def _n_of_m(mask: Bool[np.ndarray, "slices *core"], contraction_axis: int) -> str | None:
    if mask.ndim < 2:
        return None
    counts = np.moveaxis(mask, 1 + contraction_axis, -1).astype(np.uint8)
    m = 1
    # With one run in a row, N:M would say no more than that all rows keep as many.
    while m < _LARGEST_RUN and counts.shape[-1] % 2 == 0 and counts.shape[-1] >= 4:
        m, counts = 2 * m, counts[..., ::2] + counts[..., 1::2]
        n = int(counts.flat[0])
        if np.all(counts == n):
            return f"{n}:{m}" if _is_rare(mask, counts.size * _log_choose(m, n)) else None
    return None


def _tile_length(mask: Bool[np.ndarray, "slices *core"], axis: int) -> int:
    """Length of the longest equal tiles along `axis`, counted from its start, in which nothing changes.

    Tiles that are constant along each of two axes are constant blocks, so each axis can be looked at alone.
    """
    lines = np.moveaxis(mask, axis, 0)
    changes = np.any(lines[1:] != lines[:-1], axis=tuple(range(1, mask.ndim)))
    return int(np.gcd.reduce(np.flatnonzero(changes) + 1)) or len(lines)


def _is_rare(mask: Bool[np.ndarray, "..."], log_patterned: float) -> bool:
    """Whether few of the masks with this count have the pattern, `exp(log_patterned)` being those that do."""
    return _log_choose(mask.size, int(np.count_nonzero(mask))) - log_patterned > math.log(_RARE)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
