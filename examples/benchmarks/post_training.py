"""What calibration costs beside the forward passes it makes, and SparseGPT beside a Cholesky factor of its Hessian.

python examples/benchmarks/post_training.py
"""

import argparse
import resource

import equinox as eqx
import jax
import jax.numpy as jnp
from harness import interleave, machine, print_table, ratio, spread

import eqsparse


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(4, width, key=keys[0])
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, h):
        h = h + self.attention(h, h, h)
        return h + jax.vmap(lambda x: self.down(jax.nn.gelu(self.up(x))))(h)


class Scanned(eqx.Module):
    """Blocks one after the other, stacked and run in a scan."""

    blocks: Block

    def __init__(self, width, depth, key):
        self.blocks = eqx.filter_vmap(lambda key: Block(width, key))(jax.random.split(key, depth))

    def __call__(self, h):
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        return jax.lax.scan(lambda h, block: (eqx.combine(block, rest)(h), None), h, arrays)[0]


def calibration(rounds, width):
    """Calibration of one batch against the forward pass, and the products x xᵀ by themselves."""
    key = jax.random.key(0)
    conv = [eqx.nn.Conv2d(64, 64, 3, padding=1, key=k) for k in jax.random.split(key, 3)]
    models = {
        f"transformer, 4 blocks of {width}, in a scan": (
            Scanned(width, 4, key),
            (8, 128, width),
            3 * [width] + [4 * width],
        ),
        "3 convolutions 3×3, 64 channels of 16×16": (eqx.nn.Sequential(conv), (16, 64, 16, 16), None),
    }
    rows = []
    for name, (model, shape, features) in models.items():
        x = jax.random.normal(key, shape)
        forward = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
        places = 4 * shape[0] * 128 if features else 3 * 16 * 256
        inputs = [jax.random.normal(key, (places, n)) for n in features or [64 * 9]]
        products = jax.jit(lambda inputs: [x.T @ x for x in inputs])
        sums = lambda statistic, model=model, x=x: [
            site.sums for _, site in eqsparse.calibrate(model, [x], statistics=statistic).items()
        ]
        found = interleave(
            {
                "forward": lambda f=forward, m=model, x=x: f(m, x),
                "second moment": lambda s=sums: s("second_moment"),
                "gram": lambda s=sums: s("gram"),
                "products alone": lambda p=products, i=inputs: p(i),
            },
            rounds,
        )
        for kind, seconds in found.items():
            rows.append([name, kind, spread(seconds), f"{ratio(seconds, found['forward']):.2f}"])
        less = found["gram"] - found["products alone"]
        rows.append([name, "gram less products", spread(less), f"{ratio(less, found['forward']):.2f}"])
    print_table(["model", "pass", "time", "of forward"], rows)


def solver(rounds):
    """SparseGPT of a layer of 1024 × 4096 against the Cholesky factor of its Hessian."""
    key = jax.random.key(0)
    layer = eqx.nn.Linear(4096, 1024, key=key)
    statistics = eqsparse.calibrate(layer, [jax.random.normal(key, (6000, 4096))], statistics="gram")
    gram = statistics["weight"].gram
    hessian = gram + 0.01 * jnp.mean(jnp.diagonal(gram)) * jnp.eye(4096)
    factor = jax.jit(jnp.linalg.cholesky)
    prune = lambda structure: (
        lambda: eqsparse.SparseGPT(distribution=0.5, structure=structure).prune(layer, statistics=statistics).weight
    )
    runs = {
        "Cholesky": lambda: factor(hessian),
        "SparseGPT 50%": prune(eqsparse.Unstructured()),
        "SparseGPT 2:4": prune(eqsparse.NM(2, 4)),
    }
    found = interleave(runs, rounds, warmup=1)
    rows = [[name, spread(seconds), f"{ratio(seconds, found['Cholesky']):.2f}"] for name, seconds in found.items()]
    print_table(["1024 × 4096", "time", "of Cholesky"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--solver-rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    print(machine())
    calibration(args.rounds, args.width)
    print()
    solver(args.solver_rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    least = (2 * 4096 + 1024) * 4096 * 4 / 2**30
    print(f"\npeak memory of all of it: {peak:.2f} GiB (Hessian, its factor and the layer alone: {least:.2f})")


if __name__ == "__main__":
    main()
