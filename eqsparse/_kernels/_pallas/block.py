"""Products of dense blocks with a batch, on tensor cores: through Pallas' compiler to Triton.

Triton works on tiles whose sides are powers of two, of 16 or more. Blocks, and what of a matrix no block or tile
divides, are cut into such tiles; what sticks out is masked. Conventions are those of `blocks.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Integer

from ..faster import Faster
from .switch import interpreted, serves


class Tile(NamedTuple):
    """What one program of a kernel multiplies at a time."""

    rows: int
    columns: int  # of its part of the result
    depth: int  # of what is summed over
    warps: int
    stages: int


# The fastest that fit the shared memory of GPUs from NVIDIA's Ampere on, of those that `examples/benchmarks/
# pallas_blocks.py --tune` tried on an H200.


def tile_of_product(batch: int, outer: int, inner: int, itemsize: int) -> Tile:
    """For `inner` numbers of a block's row (or column), each of `outer` rows, times a batch."""
    rows, columns, depth = _fit(batch, 128), _fit(outer, 256 // itemsize), 128 // itemsize
    depth = depth if depth % inner == 0 else _fit(inner, depth)
    return Tile(rows, columns, depth, _within(rows * columns // 256, 1, 16 // itemsize), 3 if itemsize < 4 else 4)


def tile_of_samples(height: int, width: int, batch: int, itemsize: int) -> Tile:
    """For blocks of a product that sums over a batch."""
    rows, columns = _fit(height, 128), _fit(width, 128)
    depth = max(32, 2**12 // itemsize // max(rows, columns))
    return Tile(rows, columns, _fit(batch, depth), _within(rows * columns // 1024, 1, 4), 3)


def _fit(size: int, most: int) -> int:
    """A power of two: not less than 16, as tensor cores want it."""
    return _within(1 << (size - 1).bit_length(), 16, most)


def _within(size: int, least: int, most: int) -> int:
    return min(max(size, least), most)


def product(
    values: Inexact[Array, "blocks height width"],
    rows: Integer[Array, " blocks"],
    columns: Integer[Array, " blocks"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
    tile: Tile | None = None,
) -> Inexact[Array, "batch out_size"]:
    """`x @ A.T`."""
    starts = _starts(rows, -(-shape[0] // values.shape[1]))
    order = jnp.arange(len(rows), dtype=jnp.int32)  # they lie by rows
    return _multiply(values, order, columns, starts, x, shape[0], tile, is_transposed=False)


def transposed(
    values: Inexact[Array, "blocks height width"],
    rows: Integer[Array, " blocks"],
    columns: Integer[Array, " blocks"],
    y: Inexact[Array, "batch out_size"],
    *,
    shape: tuple[int, int],
    tile: Tile | None = None,
) -> Inexact[Array, "batch in_size"]:
    """`y @ A`."""
    down, across = (-(-size // block) for size, block in zip(shape, values.shape[1:], strict=True))
    columns = jnp.where(_wide(rows) < down, _wide(columns), across)  # padding goes last
    order = jnp.argsort(columns).astype(jnp.int32)
    return _multiply(values, order, rows[order], _starts(columns[order], across), y, shape[1], tile, is_transposed=True)


def sampled(
    rows: Integer[Array, " blocks"],
    columns: Integer[Array, " blocks"],
    y: Inexact[Array, "batch out_size"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
    stored: tuple[int, ...],
    tile: Tile | None = None,
) -> Inexact[Array, "blocks height width"]:
    """The blocks of `y.T @ x`; zeros for padding, which lies below the last row."""
    batch, (blocks, height, width) = len(x), stored
    tile = tile or tile_of_samples(height, width, batch, x.dtype.itemsize)
    run = functools.partial(_sample_kernel, tile=tile, height=height, width=width)
    grid = (blocks, -(-height // tile.rows), -(-width // tile.columns))
    return _call(run, grid, tile, stored, _wide(rows), _wide(columns), y, x)


def calls() -> Faster:
    """All three."""
    return Faster(product, transposed, sampled, serves)


def _multiply(
    values: Array,
    order: Array,
    others: Array,
    starts: Array,
    x: Array,
    out_size: int,
    tile: Tile | None,
    *,
    is_transposed: bool,
) -> Array:
    """Blocks `order[starts[i]:starts[i + 1]]` make the i-th part of the result, from parts `others` of `x`."""
    outer, inner = values.shape[2:0:-1] if is_transposed else values.shape[1:]
    tile = tile or tile_of_product(len(x), outer, inner, x.dtype.itemsize)
    run = functools.partial(_multiply_kernel, tile=tile, outer=outer, inner=inner, is_transposed=is_transposed)
    grid = (-(-len(x) // tile.rows), len(starts) - 1, -(-outer // tile.columns))
    return _call(run, grid, tile, (len(x), out_size), order, _wide(others), starts, values, x)


def _multiply_kernel(
    order: Any,
    others: Any,
    starts: Any,
    values: Any,
    x: Any,
    out: Any,
    *,
    tile: Tile,
    outer: int,
    inner: int,
    is_transposed: bool,
) -> None:
    pl, triton = _pallas()
    example, group, part = pl.program_id(0) * tile.rows, pl.program_id(1), pl.program_id(2) * tile.columns
    begin, end = starts[group], starts[group + 1]
    examples = _below(example, tile.rows, x.shape[0], tile.rows)
    of_block = _below(part, tile.columns, outer, tile.columns)
    rows, columns = _places(example, tile.rows), _places(part, tile.columns)
    steps = _Steps(tile.depth, inner)

    def find(step: Any) -> tuple[Array, Array]:
        """Where the blocks of a step are stored, and which part of `x` they multiply."""
        place = jnp.minimum(begin + steps.blocks(step), np.int32(others.shape[0] - 1))
        return (order[place] if is_transposed else place), others[place]

    def add(step: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, block, other = state
        following = find(step + 1)  # ahead of time: loads then need not wait for where to load from
        within, of_inner = steps.within(step), steps.mask(step, end - begin)
        column = steps.hinted(other * inner + within)
        of_x = None if x.shape[1] % inner == 0 else column < x.shape[1]
        left = _load(x.at[rows[:, None], column[None, :]], _cross(examples, _both(of_inner, of_x)))
        if is_transposed:
            places, mask = (_as_column(block), within[:, None], columns[None, :]), _cross(of_inner, of_block)
        else:
            places, mask = (_as_row(block), columns[:, None], within[None, :]), _cross(of_block, of_inner)
        total += _dot(left, _load(values.at[places], mask), (1, 0 if is_transposed else 1))
        return total, *following

    first = np.int32(0)
    total = jnp.zeros((tile.rows, tile.columns), jnp.float32)
    total, *_ = jax.lax.fori_loop(first, steps.count(end - begin), add, (total, *find(first)))
    column = group * outer + part
    mask = _cross(examples, _both(of_block, _below(column, tile.columns, out.shape[1], outer)))
    place = out.at[pl.ds(example, tile.rows), pl.ds(column, tile.columns)]
    triton.store(place, total.astype(out.dtype), mask=mask)


class _Steps(NamedTuple):
    """How a sum over blocks, of `inner` terms each, goes on in steps of `depth` terms: several small blocks in one, or
    a large one in several."""

    depth: int
    inner: int

    @property
    def joined(self) -> int:
        """Blocks in a step."""
        return max(1, self.depth // self.inner) if self.depth % self.inner == 0 else 1

    @property
    def chunks(self) -> int:
        """Steps in a block."""
        return -(-self.inner // self.depth)

    def count(self, blocks: Array) -> Array:
        return jax.lax.div(blocks * self.chunks + np.int32(self.joined - 1), np.int32(self.joined))

    def blocks(self, step: Any) -> Array:
        """Which block is added; for several, that of each term."""
        if self.joined == 1:
            return jax.lax.div(step, np.int32(self.chunks))
        return step * self.joined + jax.lax.div(_places(0, self.depth), np.int32(self.inner))

    def within(self, step: Array) -> Array:
        """Which part of its block each term is."""
        if self.joined == 1:
            return _places(jax.lax.rem(step, np.int32(self.chunks)) * self.depth, self.depth)
        return jax.lax.rem(_places(0, self.depth), np.int32(self.inner))

    def mask(self, step: Array, blocks: Array) -> Array | None:
        """Which terms there are."""
        if self.joined > 1:
            return self.blocks(step) < blocks
        return None if self.inner % self.depth == 0 else self.within(step) < self.inner

    def hinted(self, column: Array) -> Array:
        """Tells the compiler what it cannot see through an index: that the terms of a block lie side by side."""
        if self.joined == 1:
            return column
        pl, triton = _pallas()
        max_contiguous = getattr(triton, "max_contiguous", None) or pl.max_contiguous  # JAX moved this
        return max_contiguous(pl.multiple_of(column, self.inner), self.inner)


def _sample_kernel(rows: Any, columns: Any, y: Any, x: Any, out: Any, *, tile: Tile, height: int, width: int) -> None:
    pl, triton = _pallas()
    block, part_row, part_column = pl.program_id(0), pl.program_id(1) * tile.rows, pl.program_id(2) * tile.columns
    row, column = rows[block] * height + part_row, columns[block] * width + part_column
    down = _below(part_row, tile.rows, height, tile.rows)
    across = _below(part_column, tile.columns, width, tile.columns)
    of_y = _both(down, _places(row, tile.rows) < y.shape[1])  # padding is below the last row
    of_x = _both(across, _below(column, tile.columns, x.shape[1], width))

    def add(step: Array, total: Array) -> Array:
        example = step * tile.depth
        examples = _below(example, tile.depth, x.shape[0], tile.depth)
        left = _load(y.at[pl.ds(example, tile.depth), pl.ds(row, tile.rows)], _cross(examples, of_y))
        right = _load(x.at[pl.ds(example, tile.depth), pl.ds(column, tile.columns)], _cross(examples, of_x))
        return total + _dot(left, right, (0, 0))

    total = jnp.zeros((tile.rows, tile.columns), jnp.float32)
    total = jax.lax.fori_loop(np.int32(0), np.int32(-(-x.shape[0] // tile.depth)), add, total)
    place = out.at[block, pl.ds(part_row, tile.rows), pl.ds(part_column, tile.columns)]
    triton.store(place, total.astype(out.dtype), mask=_cross(down, across))


def _call(run: Any, grid: tuple[int, ...], tile: Tile, shape: tuple[int, ...], *arrays: Array) -> Array:
    pl, triton = _pallas()
    like = jax.typeof(arrays[-1])
    # In `jax.shard_map` it varies over the same axes. JAX renamed this, as `linear.py` tells.
    name = "manual_axis_type" if hasattr(like, "manual_axis_type") else "vma"
    varying: dict[str, Any] = {name: getattr(like, name, None)}
    out = jax.ShapeDtypeStruct(shape, like.dtype, **varying)
    params = triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return pl.pallas_call(run, out, grid=grid, compiler_params=params, interpret=interpreted())(*arrays)


def _pallas() -> tuple[Any, Any]:
    # Not at the top: it takes long to import, and few want it.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    return pallas, triton


def _starts(groups: Integer[Array, " blocks"], count: int) -> Integer[Array, " ends"]:
    """Where each group begins in a sorted array, and where the last one ends."""
    ends = jnp.arange(count + 1, dtype=jnp.int32)
    return jnp.searchsorted(_wide(groups), ends, method="compare_all").astype(jnp.int32)


def _wide(indices: Array) -> Array:
    return indices.astype(jnp.int32)


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    dimensions = ((contracted[:1], contracted[1:]), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


# Masks: `None` is true everywhere, which makes loads faster.


def _places(start: Any, count: int) -> Array:
    return start + jax.lax.broadcasted_iota(jnp.int32, (count,), 0)


def _below(start: Any, count: int, end: int, part: int) -> Array | None:
    """Which of `count` places from `start` on lie before `end`: all, where parts fill it and `count`s fill a part."""
    return None if end % part == 0 and part % count == 0 else _places(start, count) < end


def _both(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a & b


def _cross(down: Array | None, across: Array | None) -> Array | None:
    """Of a matrix, from those of its rows and columns."""
    return _both(None if down is None else down[:, None], None if across is None else across[None, :])


def _as_row(index: Array) -> Array:
    return index[None, :] if index.ndim else index


def _as_column(index: Array) -> Array:
    return index[:, None] if index.ndim else index


def _load(place: Any, mask: Array | None) -> Array:
    triton = _pallas()[1]
    return triton.load(place) if mask is None else triton.load(place, mask=mask, other=0.0)
