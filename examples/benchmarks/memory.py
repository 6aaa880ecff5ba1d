"""What a sparse training step of a ViT-B/16 holds at its peak beside the dense one, by the compiler's account.

python examples/benchmarks/memory.py

The step is compiled for shapes only: nothing is initialised and nothing runs, so that it needs no memory of that size.
Counted are arguments, which are donated, and scratch. Mask updates are part of the step. The blocks are one stack, run
by `lax.scan`; with `--list` they are twelve modules in a list, which takes minutes to compile for each row.
"""

import argparse
import sys
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from harness import machine, print_table
from jaxtyping import Array, Float, Key, PyTree

import eqsparse


class Block(eqx.Module):
    """Attention and an MLP, each after a layer norm and around a skip connection."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear

    def __init__(self, width: int, heads: int, key: Key[Array, ""]):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attention = eqx.nn.MultiheadAttention(heads, width, **biases, key=keys[0])
        self.wide = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.narrow = eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(self.norms[1])(x)
        return x + jax.vmap(self.narrow)(jax.nn.gelu(jax.vmap(self.wide)(y)))


class ViT(eqx.Module):
    """A vision transformer on images of 224 by 224 in patches of 16 by 16."""

    patches: eqx.nn.Conv2d
    token: Float[Array, "1 width"]
    places: Float[Array, "tokens width"]
    blocks: Block | list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: Key[Array, ""], *, stacked: bool, depth: int = 12, width: int = 768, heads: int = 12):
        classes = 1000
        keys = jax.random.split(key, depth + 2)
        self.patches = eqx.nn.Conv2d(3, width, 16, stride=16, key=keys[0])
        self.token = jnp.zeros((1, width))
        self.places = jnp.zeros((1 + 14 * 14, width))
        make = lambda key: Block(width, heads, key)
        self.blocks = eqx.filter_vmap(make)(keys[1:-1]) if stacked else [make(key) for key in keys[1:-1]]
        self.norm = eqx.nn.LayerNorm(width)
        self.head = eqx.nn.Linear(width, classes, key=keys[-1])

    def __call__(self, image: Float[Array, "3 224 224"]) -> Float[Array, " classes"]:
        patches = self.patches(image)
        x = jnp.concatenate([self.token, patches.reshape(len(patches), -1).T]) + self.places
        if isinstance(self.blocks, list):
            for block in self.blocks:
                x = block(x)
        else:
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, static)(x), None), x, arrays)
        return self.head(self.norm(x[0]))


def loss(model: ViT, images: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()


def compiled(step: Callable, *carry: PyTree, batch: int):
    """The step, its model and state donated, compiled for shapes."""
    data = jax.ShapeDtypeStruct((batch, 3, 224, 224), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    arrays, rest = eqx.partition(carry, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    run = lambda arrays, *data: eqx.filter(step(*eqx.combine(arrays, rest), *data), eqx.is_array)
    return jax.jit(run, donate_argnums=0).lower(arrays, *data).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--list", action="store_true", help="blocks in a list rather than in one stack")
    parser.add_argument("--only", default="", help="part of the names of the steps to compile, beside the dense one")
    args = parser.parse_args()

    key, optim = jax.random.key(0), optax.adam(1e-3)
    make = lambda: ViT(key, stacked=not args.list, depth=args.depth)

    def dense_step(model, state, *data):
        updates, state = optim.update(eqx.filter_grad(loss)(model, *data), state)
        return eqx.apply_updates(model, updates), state

    def dense():
        model = eqx.filter_eval_shape(make)
        state = jax.eval_shape(lambda: optim.init(eqx.filter(make(), eqx.is_inexact_array)))
        return compiled(dense_step, model, state, batch=args.batch)

    def sparse(pruner):
        step = lambda model, state, *data: pruner.step(model, eqx.filter_grad(loss)(model, *data), state)
        return compiled(step, *eqx.filter_eval_shape(lambda: pruner.init(make())), batch=args.batch)

    gradual = {"distribution": 0.8, "schedule": eqsparse.Polynomial(20_000, 60_000, 1000)}
    moving = {"distribution": eqsparse.ERK(0.8), "schedule": eqsparse.Periodic(0, 60_000, 1000), "key": key}
    made: dict[str, Callable] = {
        "MagnitudePruning": lambda **how: eqsparse.MagnitudePruning(optim, **gradual, **how),
        "GlobalMagnitudePruning": lambda **how: eqsparse.GlobalMagnitudePruning(optim, **gradual, **how),
        "SaliencyPruning": lambda **how: eqsparse.SaliencyPruning(optim, **gradual, **how),
        "MagnitudeSTE": lambda **how: eqsparse.MagnitudeSTE(optim, distribution=0.8, **how),
        "StaticSparse": lambda **how: eqsparse.StaticSparse(optim, distribution=0.8, key=key, **how),
        "SET": lambda **how: eqsparse.SET(optim, **moving, **how),
        "RigL": lambda **how: eqsparse.RigL(optim, **moving, **how),
        "TopKAST": lambda **how: eqsparse.TopKAST(
            optim, distribution=0.8, backward_sparsity=0.5, schedule=eqsparse.Periodic(0, 60_000, 100), **how
        ),
        "ACDC": lambda **how: eqsparse.ACDC(
            optim, distribution=0.8, schedule=eqsparse.Alternating(0, 60_000, 2000, 2000), **how
        ),
    }
    steps = {"dense": dense}
    for name, make_pruner in made.items():
        for kind, packed in (("packed masks", True), ("bool masks", False)):
            steps[f"{name}, {kind}"] = lambda make_pruner=make_pruner, packed=packed: sparse(make_pruner(packed=packed))
    steps = {name: step for name, step in steps.items() if name == "dense" or args.only in name}

    sizes = [leaf.size for leaf in jax.tree.leaves(eqx.filter_eval_shape(make)) if hasattr(leaf, "size")]
    print(f"Adam step of a ViT-B/16 of {sum(sizes):,} parameters, depth {args.depth}, batch {args.batch}. {machine()}")
    rows, base = [], None
    for name, step in steps.items():
        start = time.perf_counter()
        memory = step().memory_analysis()
        counts = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        base = sum(counts) if base is None else base
        seconds = time.perf_counter() - start
        print(f"{name}: {sum(counts) / base:.4f} of dense, {seconds:.0f} s to compile", file=sys.stderr)
        rows.append([name, *(f"{n / 1e6:,.1f} MB" for n in (*counts, sum(counts))), f"{sum(counts) / base:.4f}"])
    print_table(["step", "arguments", "scratch", "together", "of dense"], rows)


if __name__ == "__main__":
    main()
