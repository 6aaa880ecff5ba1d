"""eqsparse's products of blocks in Pallas beside dense ones by cuBLAS, on an NVIDIA GPU.

    python examples/benchmarks/pallas_blocks.py [--tune] [--size N] [--batches B ...] [--blocks B ...] [--interpret]

Contestants take turns, compiled, their arrays arguments: a dense product, that of `BlockLayout` as it is without
Pallas, and with it. A turn is a program that multiplies many batches one after the other, so that no launch from
Python counts; what depends on no batch, as the order of the blocks by columns, may be computed once for a turn. A
figure is the median of the turns, a factor the median of the factors of the rounds. Rows are printed as they come.

`--tune` looks for the fastest tile of each kind of product, for those in `eqsparse/_kernels/_pallas/block.py`. It
compiles some tens of programs for a row, on all cores: name few, as in `--tune --sparsities 0.8`.

float32 is computed as JAX does by default on a GPU, with TF32; `--precision highest` without.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from harness import interleave, machine, ratio

import eqsparse
from eqsparse._kernels import block_product
from eqsparse._kernels._pallas import block

SPARSITIES = [0.5, 0.8, 0.9, 0.95]
BLOCKS = [16, 32, 64, 128]
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
KINDS = ["product", "of x", "of values"]
TOLERANCE = {"bfloat16": 0.02, "float32": 5e-3}  # of TF32
WIDTHS = [10, 7, 9, 10, 11, 22, 22, 8, 8]
_MOST = 2**28  # numbers in all batches of a turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--batches", type=int, nargs="*", default=[1024])
    parser.add_argument("--blocks", type=int, nargs="*", default=BLOCKS, help="rows and columns of a block")
    parser.add_argument("--sparsities", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="the product, and its gradients")
    parser.add_argument("--rounds", type=int, default=10, help="turns each contestant takes")
    parser.add_argument("--repeats", type=int, default=32, help="batches in a turn, at most")
    parser.add_argument("--precision", default="default", choices=["default", "highest"])
    parser.add_argument("--tune", action="store_true", help="look for the fastest tiles instead")
    parser.add_argument("--interpret", action="store_true", help="without a GPU, small: to see that all of it runs")
    args = parser.parse_args()
    if args.interpret:
        args.size, args.batches, args.blocks, args.sparsities, args.rounds, args.repeats = 64, [24], [16], [0.5], 1, 2
    elif jax.devices()[0].platform != "gpu":
        sys.exit(
            f"This measures on an NVIDIA GPU, and JAX runs on {jax.devices()[0].device_kind!r} here. "
            "`--interpret` runs all of it on small arrays; its times say nothing."
        )
    jax.config.update("jax_default_matmul_precision", None if args.precision == "default" else args.precision)
    print(f"{jax.devices()[0].device_kind}; {machine()}\n")
    (print_tiles if args.tune else print_products)(args)


@functools.cache
def matrix(size, side, sparsity, dtype):
    """A layout with blocks kept at random, and the same matrix dense."""
    rng, across = np.random.default_rng(0), -(-size // side)
    kept = np.zeros(across * across, bool)
    kept[rng.permutation(kept.size)[: round((1 - sparsity) * kept.size)]] = True
    mask = np.kron(kept.reshape(across, across), np.ones((side, side), bool))[:size, :size] > 0
    weight = jnp.asarray(np.where(mask, rng.standard_normal(mask.shape, np.float32), 0), DTYPES[dtype])
    return eqsparse.BlockLayout.from_dense(weight, mask), weight


@functools.cache
def factors(size, batch, dtype, repeats):
    """Batches of what a matrix is multiplied with, from both sides."""
    make = lambda key: jax.random.normal(key, (batch, size), DTYPES[dtype])
    return tuple([make(key) for key in jax.random.split(key, repeats)] for key in jax.random.split(jax.random.key(0)))


def in_one_program(one, weight, xs, ys):
    """All batches."""
    one = jax.jit(one)
    run = jax.jit(lambda weight, xs, ys: [one(weight, x, y) for x, y in zip(xs, ys, strict=True)])
    return run.lower(weight, xs, ys).compile()


@functools.cache
def dense_product(kind, size, batch, dtype, repeats):
    """Of all weights of a size."""
    one = {
        "product": lambda weight, x, y: x @ weight.T,
        "of x": lambda weight, x, y: y @ weight,
        "of values": lambda weight, x, y: y.T @ x,
    }
    weight = jax.ShapeDtypeStruct((size, size), DTYPES[dtype])
    return in_one_program(one[kind], weight, *factors(size, batch, dtype, repeats))


class Case:
    """A matrix of blocks, the same one dense, and batches of both factors."""

    def __init__(self, args, dtype, side, sparsity, batch):
        size = args.size
        self.layout, self.weight = matrix(size, side, sparsity, dtype)
        self.repeats = max(1, min(args.repeats, _MOST // (batch * size)))
        self.what = size, batch, dtype, self.repeats
        self.xs, self.ys = factors(*self.what)
        self.operations = 2 * size * size * batch * self.repeats
        self.interpret, self.tolerance = args.interpret, TOLERANCE[dtype]

    def dense(self, kind):
        run = dense_product(kind, *self.what)
        return lambda: run(self.weight, self.xs, self.ys)

    def sparse(self, kind, batches=None):
        """As a layout multiplies: all batches, or so many."""
        places, shape = (self.layout.block_rows, self.layout.block_columns), self.layout.shape
        forward = lambda values, x: block_product(values, places, x, shape)
        one = {
            "product": lambda values, x, y: forward(values, x),
            "of x": lambda values, x, y: jax.vjp(lambda x: forward(values, x), x)[1](y)[0],
            "of values": lambda values, x, y: jax.vjp(lambda values: forward(values, x), values)[1](y)[0],
        }
        return self.compiled(one[kind], self.layout.values, batches)

    def tiled(self, kind, tile):
        """By some tile."""
        places = self.layout.block_rows, self.layout.block_columns
        how = {"shape": self.layout.shape, "tile": tile}
        stored = self.layout.values.shape
        one = {
            "product": lambda values, x, y: block.product(values, *places, x, **how),
            "of x": lambda values, x, y: block.transposed(values, *places, y, **how),
            "of values": lambda values, x, y: block.sampled(*places, y, x, stored=stored, **how),
        }
        return self.pallas(lambda: self.compiled(one[kind], self.layout.values))

    def pallas(self, make):
        with eqsparse.kernels.use_pallas(interpret=self.interpret):
            return make()

    def xla(self, make):
        with eqsparse.kernels.use_pallas(False):
            return make()

    def compiled(self, one, weight, batches=None):
        factors = self.xs[:batches], self.ys[:batches]
        run = in_one_program(one, weight, *factors)
        return lambda: run(weight, *factors)

    def check(self, kind, run):
        """Against dense."""
        found, expected = run()[0], np.asarray(self.dense(kind)()[0], np.float32)
        if kind == "of values":
            found = dataclasses.replace(self.layout, values=found).to_dense()
            expected = np.where(self.layout.mask(), expected, 0)
        worst = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
        if not worst <= self.tolerance:
            raise RuntimeError(f"{kind}: off by {worst:.1e} of the largest")

    def sizes(self, kind):
        """Rows and columns of a part of the result, and what is summed over."""
        batch, (_, height, width) = len(self.xs[0]), self.layout.values.shape
        if kind == "of values":
            return height, width, batch
        return (batch, height, width) if kind == "product" else (batch, width, height)


def cases(args):
    for dtype, side, sparsity, batch in itertools.product(args.dtypes, args.blocks, args.sparsities, args.batches):
        case = Case(args, dtype, side, sparsity, batch)
        for kind in args.kinds:
            yield [dtype, batch, f"{side}×{side}", f"{sparsity:.0%}", kind], case, kind


def show(cells):
    """A row at once: what is printed is kept if time runs out."""
    print("".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip(), flush=True)


def print_products(args):
    print(f"{args.size}×{args.size}: a dense product, and times as fast\n")
    show(["dtype", "batch", "blocks", "sparsity", "", "dense, microseconds", "dense, TFLOP/s", "XLA", "Pallas"])
    rows = list(cases(args))
    for _, case, kind in rows:
        case.dense(kind)  # compiled here, as the compiler times what it may choose from
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda row: contestants(*row[1:]), rows))
    for (name, case, kind), run in zip(rows, runs, strict=True):
        case.check(kind, run["pallas"])
        xla = interleave({"": run.pop("xla")}, 3)[""] * case.repeats
        seconds = interleave(run, args.rounds)
        dense = np.median(seconds["dense"])
        cells = [f"{dense / case.repeats * 1e6:.0f}", f"{case.operations / dense / 1e12:.3g}"]
        times = dense / np.median(xla), 1 / ratio(seconds["pallas"], seconds["dense"])
        show([*name, *cells, *(f"{factor:.2f}" for factor in times)])


def contestants(case, kind):
    """Without Pallas it takes so long that one batch will do."""
    xla, pallas = case.xla(lambda: case.sparse(kind, 1)), case.pallas(lambda: case.sparse(kind))
    return {"dense": case.dense(kind), "xla": xla, "pallas": pallas}


def print_tiles(args):
    print("Tiles (rows, columns, depth, warps, stages): now, the fastest, and how much faster it is\n")
    show(["dtype", "batch", "blocks", "sparsity", "", "now", "fastest", "times"])
    for name, case, kind in cases(args):
        tile_of = block.tile_of_samples if kind == "of values" else block.tile_of_product
        now = tile_of(*case.sizes(kind), case.weight.dtype.itemsize)
        runs = compiled_tiles(case, kind, now, args.interpret)
        seconds = interleave(runs, args.rounds)
        best = min(runs, key=lambda tile: np.median(seconds[tile]))
        case.check(kind, runs[best])
        show([*name, tuple(now), tuple(best), f"{1 / ratio(seconds[best], seconds[now]):.2f}"])


def compiled_tiles(case, kind, now, few):
    """All that are sensible and compile, on all cores."""

    def compiled(tile):
        try:
            return case.tiled(kind, tile)
        except Exception as error:  # more shared memory than there is, say
            print(f"{tuple(tile)}: {str(error).splitlines()[0][:100]}", file=sys.stderr)

    tiles = [now, *(tile for tile in sensible_tiles(case, kind) if tile != now)]
    tiles = tiles[:2] if few else tiles
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {tile: run for tile, run in zip(tiles, pool.map(compiled, tiles), strict=True) if run}


def sensible_tiles(case, kind):
    """Not much smaller than what they work on, and within registers and shared memory of an H100."""
    rows, columns, depth = (max(16, 1 << (size - 1).bit_length()) for size in case.sizes(kind))
    itemsize = case.weight.dtype.itemsize
    choices = [64, 128, 256] if rows > 128 else [rows // 2, rows], [columns // 2, columns], [32, 64, 128, 256]
    warps = [1, 2, 4] if rows < 64 else [4, 8]
    for tile in itertools.starmap(block.Tile, itertools.product(*choices, warps, [3, 4])):
        of_a_thread = tile.rows * tile.columns // (32 * tile.warps)
        held = (tile.rows + tile.columns) * tile.depth * tile.stages * itemsize
        fits = 16 <= tile.columns <= 128 and 16 <= tile.rows and tile.depth <= max(64, depth)
        if fits and 8 <= of_a_thread <= 128 and 24_000 <= held <= 200_000:
            yield tile


if __name__ == "__main__":
    main()
