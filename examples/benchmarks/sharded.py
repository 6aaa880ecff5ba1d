"""What an exact selection over many devices costs: passes and all-reduces as counted here, bytes worked out from it.

python examples/benchmarks/sharded.py
"""

import argparse
import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from harness import interleave, machine, print_table, ratio, spread
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqsparse

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def select(sparsity):
    return jax.jit(lambda scores: eqsparse.Unstructured().mask(scores, sparsity))


def passes(scores, sparsity):
    """How often a selection reads the scores to count: JAX's loops, run in Python."""
    search = importlib.import_module("eqsparse._selection.search")
    narrow, found = search._narrow, []
    search._narrow = lambda *args: found.append(1) or narrow(*args)
    try:
        with jax.disable_jit():
            eqsparse.Unstructured().mask(scores, sparsity)
    finally:
        search._narrow = narrow
    return len(found)


def collectives(compiled):
    found = re.findall(rf"({COLLECTIVES})(?:-start)?\(", compiled.as_text())
    return ", ".join(f"{found.count(name)} {name}" for name in sorted(set(found)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--devices", type=int, default=8, help="virtual devices to measure on (%(default)s)")
    option("--weights", type=int, default=2**20, help="in the array measured, of all devices (%(default)s)")
    option("--model", type=int, default=70 * 10**9, help="weights of the model worked out (%(default)s)")
    option("--accelerators", type=int, default=256, help="that it is spread over (%(default)s)")
    option("--sparsity", type=float, default=0.9, help="%(default)s")
    option("--rounds", type=int, default=3, help="runs of each that are timed (%(default)s)")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)

    print(f"One selection at sparsity {args.sparsity}, {args.weights} weights. {machine()}")
    mesh = jax.make_mesh((args.devices,), ("x",), axis_types=(AxisType.Auto,))
    rows, counted = [], {}
    for dtype in (jnp.float32, jnp.bfloat16):
        draw = jax.random.normal(jax.random.key(0), (args.weights // 1024, 1024)).astype(dtype)
        scores = jax.device_put(jnp.abs(draw), NamedSharding(mesh, PartitionSpec("x")))
        ours, count = select(args.sparsity), jax.jit(lambda s: jnp.sum(s > 1, dtype=jnp.uint32))
        seconds = interleave({"ours": partial(ours, scores), "pass": partial(count, scores)}, args.rounds)
        name, n = jnp.dtype(dtype).name, passes(scores, args.sparsity)
        counted[name] = n
        times = ratio(seconds["ours"], seconds["pass"])
        moved = collectives(ours.lower(scores).compile())
        per_pass = f"{np.median(seconds['ours']) / n * 1e3:.2f} ms"
        rows.append([name, n, moved, spread(seconds["ours"]), per_pass, f"{times / n:.2f}"])
    print_table(["scores", "passes", "in the program", "selection", "a pass", "of a sum over them"], rows)

    print(f"\nWorked out: {args.model} weights over {args.accelerators} devices, one budget for each site or for all")
    each, rows = args.model / args.accelerators, []
    for name, n in counted.items():
        size = jnp.dtype(name).itemsize
        most = 8 * size + 32  # the bits of a score, and those of an index
        gigabytes = lambda passes, size=size: f"{each * size * passes / 1e9:.1f} GB"
        rows.append(
            [name, gigabytes(1), n, gigabytes(n), most, gigabytes(most), f"{each / 1e9:.2f} / {each / 8e9:.2f} GB"]
        )
    header = ["scores", "read in a pass", "passes", "read", "passes at most", "read at most", "mask, bytes / packed"]
    print_table(header, rows)
    print("After each pass one all-reduce, of four bytes for each site. An update that drops and grows selects twice.")


if __name__ == "__main__":
    main()
