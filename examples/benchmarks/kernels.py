"""eqsparse's kernels for CPUs beside XLA's dense product: as fast as asked, and how near to what the machine can do.

    python examples/benchmarks/kernels.py [--quick] [--parts P ...] [--rounds N] [--seconds S]

Contestants take turns, compiled, their arrays arguments. A turn is one call that is not timed, which brings the arrays
to the caches, and as many as fill some milliseconds. A figure is the median [quartiles] of the turns, a factor the
median of the factors of the rounds. `limit` is the share of the ceiling: the time that this many operations, or bytes,
take at the rates measured in the same run, over the time taken. `auto` is what `export(objective="latency")` chooses.
"""

import argparse
import ctypes
import dataclasses
import importlib.util
import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from export import shown, ViT
from harness import machine, print_table, ratio, spread

import eqsparse

# Times as fast as dense, by shape and batch, at 80, 90 and 95%.
ASKED = {
    ((1024, 1024), 128): (2.5, 4, 6),
    ((3072, 768), 128): (2.3, 4.5, 8),
    ((4096, 4096), 128): (2, 3.5, 6),
    ((3072, 768), 16): (1.5, 3, 5),
    ((4096, 4096), 1): (2, 4, 6.5),
}
SHAPES = [(1024, 1024), (3072, 768), (4096, 4096)]
SPARSITIES = [0.5, 0.8, 0.9, 0.95]
BATCHES = [1, 16, 128]
PARTS = ["products", "layouts", "gradients", "models"]
_TURN = 5e-3  # seconds
HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns each contestant takes")
    parser.add_argument("--seconds", type=float, default=1.5, help="about the most that the turns of one row may take")
    parser.add_argument("--quick", action="store_true", help="only what is asked for, without `auto`")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    print(machine())
    built = eqsparse.kernels.build()
    print(f"{built.compiler}: {f'{built.seconds:.1f} s' if built.seconds else 'in the cache'}")
    ceilings = Ceilings(built)
    print(f"ceilings of all cores: {ceilings.flops / 1e9:.0f} GFLOP/s, {ceilings.bandwidth / 1e9:.1f} GB/s\n")
    for part in args.parts:
        globals()[f"print_{part}"](args, ceilings)


class Ceilings:
    """What all cores together can do in a second: the best of some tries."""

    def __init__(self, built):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "ceilings.so")
            subprocess.run(
                [*shlex.split(built.compiler), "-shared", str(HERE / "ceilings.cc"), "-o", str(target)], check=True
            )
            library = ctypes.CDLL(str(target))
        library.flops.restype = library.bandwidth.restype = ctypes.c_double
        cores = os.cpu_count() or 1
        data = [np.ones(2**25, np.float32) for _ in range(cores)]  # 128 MB each: no cache holds them
        flops = lambda _: library.flops(ctypes.c_int64(400_000))
        read = lambda array: library.bandwidth(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.size))
        with ThreadPoolExecutor(cores) as pool:
            self.flops = max(sum(pool.map(flops, range(cores))) for _ in range(100))
            self.bandwidth = max(sum(pool.map(read, data)) for _ in range(10))

    def share(self, seconds, operations, nbytes):
        """Of the ceiling that is lower for this work. What the caches hold can be read faster."""
        by_flops, by_bytes = operations / self.flops, nbytes / self.bandwidth
        share = max(by_flops, by_bytes) / np.median(seconds)
        return f"{share:.0%} of {'compute' if by_flops > by_bytes else 'memory'}"


def timed(runs, args):
    """Seconds of a call of each, in turns; fewer rounds where they would take long."""
    seconds, calls = {name: [] for name in runs}, dict.fromkeys(runs, 1)
    start = time.perf_counter()
    for i in range(args.rounds + 1):
        for name, run in runs.items():
            jax.block_until_ready(run())
            begin = time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(run())
            each = (time.perf_counter() - begin) / calls[name]
            if i == 0:  # finds out how many calls fill a turn
                calls[name] = max(1, int(_TURN / each))
            else:
                seconds[name].append(each)
        if i >= 5 and time.perf_counter() - start > args.seconds:
            break
    return {name: np.array(s) for name, s in seconds.items()}


# A random mask, in `bcsr`.


def print_products(args, ceilings):
    print("Products with random masks, float32, `bcsr`\n")
    rows, header = [], ["shape", "batch", "sparsity", "dense", "ours", "limit", "times dense", "asked", ""]
    header += ["JAX's CSR", *(["torch CSR"] if has_torch() else []), *([] if args.quick else ["auto"])]
    for shape in SHAPES:
        for sparsity in SPARSITIES:
            masked = random_layer(shape, sparsity)
            layer = eqsparse.export([masked], {"*": "bcsr"})[0]
            for batch in BATCHES:
                asked = dict(zip(SPARSITIES[1:], ASKED.get((shape, batch), ()), strict=False)).get(sparsity)
                if asked or not args.quick:
                    rows.append(product_row(masked, layer, sparsity, batch, asked, args, ceilings))
    print_table(header, rows)
    met = [row[8] for row in rows if row[7]]
    print(f"\nas asked: {met.count('yes')} of {len(met)}\n")


def product_row(masked, layer, sparsity, batch, asked, args, ceilings):
    weight, dense = layer.weights["weight"], masked.materialise()
    layers = {"dense": dense, "ours": layer}
    if not args.quick:
        layers["auto"] = eqsparse.export([masked], objective="latency", batch=batch)[0]
    runs, x = compiled(layers, batch, dense.in_features, masked.weight.dtype)
    runs["jax"] = compiled_by_jax(layer, x)
    if has_torch():
        runs["torch"] = by_torch(weight, dense.bias, x)
    seconds = timed(runs, args)
    gain = {name: 1 / ratio(taken, seconds["dense"]) for name, taken in seconds.items()}
    moved = weight.nbytes + x.nbytes + 4 * batch * dense.out_features
    cells = [shown(weight.shape), batch, f"{sparsity:.0%}", spread(seconds["dense"]), spread(seconds["ours"])]
    cells += [ceilings.share(seconds["ours"], 2 * weight.values.size * batch, moved), f"{gain['ours']:.2f}"]
    cells += [f"{asked:g}", "yes" if gain["ours"] >= asked else "no"] if asked else ["", ""]
    cells += [f"{gain[name]:.2f}" for name in ("jax", "torch") if name in gain]
    if "auto" in layers:
        auto = layers["auto"].weights["weight"].name
        cells.append(f"{gain['auto']:.2f} {auto}")
    return cells


def compiled(layers, batch, in_features, dtype):
    """Runs of layers on one batch, which agree."""
    x = jax.random.normal(jax.random.key(1), (batch, in_features), dtype)
    runs, expected = {}, None
    for name, layer in layers.items():
        arrays, rest = eqx.partition(layer, eqx.is_array)
        run = jax.jit(lambda arrays, x, rest=rest: jax.vmap(eqx.combine(arrays, rest))(x)).lower(arrays, x).compile()
        runs[name] = lambda run=run, arrays=arrays: run(arrays, x)
        result = np.asarray(runs[name](), np.float32)
        expected = result if expected is None else expected
        tolerance = 1e-3 if dtype == jnp.float32 else 0.1
        np.testing.assert_allclose(result, expected, atol=tolerance, err_msg=name)
    return runs, x


def compiled_by_jax(layer, x):
    """The same without our kernels."""
    from eqsparse._kernels import operations_of_jax

    arrays, rest = eqx.partition(layer, eqx.is_array)
    with operations_of_jax():
        run = jax.jit(lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x)).lower(arrays, x).compile()
    return lambda: run(arrays, x)


def has_torch():
    return importlib.util.find_spec("torch") is not None


def by_torch(weight, bias, x):
    """PyTorch's CSR product, which is MKL's on Intel's and AMD's processors."""
    import torch

    copy = lambda array: torch.from_numpy(np.array(array))
    parts = copy(weight.row_pointers), copy(weight.columns.astype(jnp.int32)), copy(weight.values)
    matrix, bias = torch.sparse_csr_tensor(*parts, size=weight.shape), copy(bias)[:, None]
    x = copy(x).T.contiguous()  # as it likes it
    return lambda: torch.addmm(bias, matrix, x) and None


def random_layer(shape, sparsity, dtype=jnp.float32):
    key = jax.random.key(0)
    mask = jax.random.uniform(key, shape) >= sparsity
    return eqsparse.MaskedLinear(shape[1], shape[0], mask=mask, dtype=dtype, key=key)


# Other layouts and dtypes.


def print_layouts(args, ceilings):
    print("3072×768: layouts, times as fast as dense of the same dtype, and bytes of dense\n")
    rows = []
    for dtype in (jnp.float32, jnp.bfloat16):
        for kind, sparsity in (("random", 0.5), ("random", 0.8), ("random", 0.9), ("2:4", 0.5), ("16×16", 0.9)):
            masked = random_layer((3072, 768), sparsity, dtype)
            scores = jax.random.uniform(jax.random.key(0), (3072, 768))
            if kind != "random":
                structure = eqsparse.NM(2, 4) if kind == "2:4" else eqsparse.Block((16, 16))
                masked = eqsparse.set_masks([masked], {"0.weight": structure.mask(scores, sparsity)})[0]
            own = {"random": [], "2:4": ["nm"], "16×16": ["block"]}[kind]
            for batch in (1, 128):
                names = [*own, "bcsr", "fixed_fanin", "bitmask"]
                layers = {name: eqsparse.export([masked], {"*": name})[0] for name in names}
                seconds = timed(compiled({"dense": masked.materialise()} | layers, batch, 768, dtype)[0], args)
                size = lambda name: layers[name].weights["weight"].nbytes / masked.layer.weight.nbytes  # noqa: B023
                cells = {n: f"{1 / ratio(seconds[n], seconds['dense']):.2f} ({size(n):.2f})" for n in names}
                columns = [cells.get(name, "") for name in ("bcsr", "fixed_fanin", "bitmask", "nm", "block")]
                rows.append([dtype.__name__, f"{kind} {sparsity:.0%}", batch, spread(seconds["dense"]), *columns])
    print_table(["", "mask", "batch", "dense", "bcsr", "fixed_fanin", "bitmask", "nm", "block"], rows)
    print()


# The three products of a training step.


def print_gradients(args, ceilings):
    print("3072×768, float32, batch 128: the product, and its gradients\n")
    rows = []
    x, y = (jax.random.normal(jax.random.key(size), (128, size)) for size in (768, 3072))
    for sparsity in SPARSITIES[1:]:
        masked = random_layer((3072, 768), sparsity)
        layout = eqsparse.export([masked], {"*": "bcsr"})[0].weights["weight"]

        def parts(product, weight):
            _, of_x = jax.vjp(lambda x: product(weight, x), x)
            _, of_weight = jax.vjp(lambda weight: product(weight, x), weight)
            of = {"of x": lambda y: of_x(y)[0], "of weight": lambda y: of_weight(y)[0]}
            return {"product": lambda y: product(weight, x), **of}

        sparse = lambda values, x: dataclasses.replace(layout, values=values).product(x)  # noqa: B023
        dense = lambda weight, x: x @ weight.T
        runs = {}
        for kind, product, weight in (("dense", dense, masked.layer.weight), ("ours", sparse, layout.values)):
            for name in parts(product, weight):
                run = jax.jit(lambda weight, y, product=product, name=name: parts(product, weight)[name](y))
                run = run.lower(weight, y).compile()
                runs[kind, name] = lambda run=run, weight=weight: run(weight, y)
        seconds = timed(runs, args)
        for name in ("product", "of x", "of weight"):
            ours, whole = seconds["ours", name], seconds["dense", name]
            limit = ceilings.share(ours, 2 * layout.values.size * 128, layout.nbytes + x.nbytes + y.nbytes)
            rows.append([f"{sparsity:.0%}", name, spread(whole), spread(ours), limit, f"{1 / ratio(ours, whole):.2f}"])
    print_table(["sparsity", "", "dense", "ours", "limit", "times dense"], rows)
    print()


# Whole models.


def print_models(args, ceilings):
    print('Models pruned to 90%, `export(objective="latency")`, batch 128, float32; asked: 2\n')
    key, rows = jax.random.key(0), []
    models = {
        "MLP 784-1024-1024-10": (eqx.nn.MLP(784, 10, 1024, 2, key=key), (784,), 128),
        "ViT, width 256, depth 3": (ViT(key), (8, 8), 128 * 16),
    }
    for name, (model, shape, vectors) in models.items():
        pruned = eqsparse.MagnitudePruning(distribution=0.9).prune(model)
        fast = eqsparse.export(pruned, objective="latency", batch=vectors)
        x = jax.random.normal(key, (128, *shape))
        runs = {}
        for kind, model in {"dense": eqsparse.materialise(pruned), "exported": fast}.items():
            arrays, rest = eqx.partition(model, eqx.is_array)
            run = (
                jax.jit(lambda arrays, x, rest=rest: jax.vmap(eqx.combine(arrays, rest))(x)).lower(arrays, x).compile()
            )
            runs[kind] = lambda run=run, arrays=arrays, x=x: run(arrays, x)
        np.testing.assert_allclose(runs["exported"](), runs["dense"](), atol=1e-3)
        seconds = timed(runs, args)
        gain = 1 / ratio(seconds["exported"], seconds["dense"])
        layouts = ", ".join(sorted({row["layout"] for row in eqsparse.report(fast).rows}))
        rows.append([name, *map(spread, seconds.values()), f"{gain:.2f}", "yes" if gain >= 2 else "no", layouts])
    print_table(["", "dense", "exported", "times dense", "as asked", "layouts"], rows)


if __name__ == "__main__":
    main()
