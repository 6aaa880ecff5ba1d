"""A linear layer at inference: exported by `to_bcoo`, dense, and JAX's own `BCOO @ x` under `vmap`.

    python examples/benchmarks/export_linear.py [--shape OUT IN] [--sparsity S] [--batch B] [--rounds N]

MB are what XLA reports for the compiled function: its arguments (without `x`) and its scratch.
"""

import argparse

import equinox as eqx
import jax
import numpy as np
from harness import interleave, machine, print_table, ratio, spread

import eqsparse


def contestants(shape, sparsity, key):
    """Name → a function of arrays and a batch, and the arrays."""
    mask = jax.random.uniform(key, shape) >= sparsity
    masked = eqsparse.MaskedLinear(shape[1], shape[0], mask=mask, key=key)
    exported = eqsparse.to_bcoo(masked)
    naive = lambda layer, x: jax.vmap(lambda x: layer[0] @ x + layer[1])(x)
    return {
        "dense": as_arguments(masked.materialise()),
        "vmap of BCOO @ x": (naive, (exported.weight, exported.bias)),
        "to_bcoo": as_arguments(exported),
    }


def as_arguments(layer):
    arrays, rest = eqx.partition(layer, eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=(3072, 768), metavar=("OUT", "IN"))
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=41)
    args = parser.parse_args()

    key = jax.random.key(0)
    x = jax.random.normal(key, (args.batch, args.shape[1]))
    runs, used, results = {}, {}, {}
    for name, (function, arrays) in contestants(tuple(args.shape), args.sparsity, key).items():
        compiled = jax.jit(function).lower(arrays, x).compile()
        memory = compiled.memory_analysis()
        used[name] = memory.argument_size_in_bytes - x.nbytes + memory.temp_size_in_bytes
        runs[name] = lambda compiled=compiled, arrays=arrays: compiled(arrays, x)
        results[name] = runs[name]()
        np.testing.assert_allclose(results[name], results["dense"], atol=1e-4, err_msg=name)
    seconds = interleave(runs, args.rounds)

    print(machine())
    print(f"{args.shape[0]}×{args.shape[1]}, {args.sparsity:.0%} sparse, batch {args.batch}, {x.dtype}\n")
    dense_seconds, dense_bytes = seconds["dense"], used["dense"]
    print_table(
        ["", "median [quartiles]", "time / dense", "MB", "MB / dense"],
        [
            [
                name,
                spread(seconds[name]),
                f"{ratio(seconds[name], dense_seconds):.2f}",
                f"{used[name] / 1e6:.2f}",
                f"{used[name] / dense_bytes:.2f}",
            ]
            for name in runs
        ],
    )


if __name__ == "__main__":
    main()
