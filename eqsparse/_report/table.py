"""A report as plain text."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

_WIDTH = 120
_NARROWEST_PATH = 12
_WIDEST_SHAPE = 32
_GAP = "  "


def table(rows: Sequence[Row], total: Row) -> str:
    """The rows and their totals in aligned columns, long paths shortened so that 120 columns hold it."""
    stacked = any(row["stack"] for row in rows)
    head = ["path", "shape", "structure", "kept", "sparsity", "dense", "masked", "exported"]
    body = [_cells(row) for row in rows]
    foot = _totals(total)
    if "operations_dense" in total:
        head += ["operations", "effective"]
    if stacked:
        head.insert(4, "least slice")
        for cells, row in zip(body, rows, strict=True):
            cells.insert(4, f"{row['smallest_slice']:,}" if row["stack"] else "")
        for cells in foot:
            cells.insert(4, "")
    return aligned(head, body, foot)


def aligned(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    """Columns under their heads, a rule above and below the body; the first three hold text, the rest numbers."""
    lines = [head, *body, *foot]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(head))]
    widths[0] = min(widths[0], max(_NARROWEST_PATH, _WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)))
    rule = "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    text = [_aligned(cells, widths) for cells in lines]
    return "\n".join([text[0], rule, *text[1 : 1 + len(body)], rule, *text[1 + len(body) :]])


def shorten(text: str, width: int) -> str:
    """The text with its middle left out where it is longer than `width`."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def in_units(count: int) -> str:
    """Bytes in B, KiB, MiB, ..., with one decimal."""
    if count < 1024:
        return f"{count} B"
    size, units = float(count), ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while True:
        size, unit = size / 1024, units.pop(0)
        if round(size, 1) < 1024 or not units:
            return f"{size:.1f} {unit}"


def in_thousands(count: int) -> str:
    """A count as it is, or in thousands (K), millions (M), ..., with one decimal."""
    if count < 1000:
        return str(count)
    size, units = float(count), ["K", "M", "G", "T", "P", "E"]
    while True:
        size, unit = size / 1000, units.pop(0)
        if round(size, 1) < 1000 or not units:
            return f"{size:.1f} {unit}"


def in_percent(sparsity: float) -> str:
    """Two decimals, but never 100 % for a weight that keeps something, nor 0 % for one that lost something."""
    if 0 < sparsity < 5e-5:
        return "<0.01%"
    return ">99.99%" if 1 - 5e-5 <= sparsity < 1 else f"{sparsity:.2%}"


def _cells(row: Row) -> list[str]:
    stack, core = row["stack"], row["shape"][len(row["stack"]) :]
    shape = " × ".join([*map(str, stack), str(tuple(core))])
    return [row["path"], shorten(shape, _WIDEST_SHAPE), row["structure"], *_numbers(row)]


def _numbers(row: Row, prefix: str = "") -> list[str]:
    sizes = [in_units(row[f"{prefix}bytes_{form}"]) for form in ("dense", "masked", "exported")]
    operations = [f"{prefix}operations_{which}" for which in ("dense", "effective")]
    counted = [in_thousands(row[name]) for name in operations if name in row]
    return [f"{row['kept']:,}", in_percent(row["sparsity"]), *sizes, *counted]


def _totals(total: Row) -> list[list[str]]:
    sites = f"{total['sites']} site{'' if total['sites'] == 1 else 's'}"
    of_sites = ["total", sites, f"of {total['size']:,}", *_numbers(total)]
    other = ["other arrays", "", "", f"{total['other_size']:,}", "", *[in_units(total["other_bytes"])] * 3]
    if "operations_other" in total:
        other += [in_thousands(total["operations_other"])] * 2
    parameters = total["kept"] + total["other_size"]
    model = ["whole model", "", f"of {total['model_size']:,}", f"{parameters:,}", "", *_numbers(total, "model_")[2:]]
    return [of_sites, other, model]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [shorten(cell, width) for cell, width in zip(cells, widths, strict=True)]
    left = 3  # path, shape and structure; the rest are numbers
    padded = [t.ljust(w) if i < left else t.rjust(w) for i, (t, w) in enumerate(zip(texts, widths, strict=True))]
    return _GAP.join(padded).rstrip()
