"""Picking exactly k of n: bisection beside sorting, in the same run and of the same meaning.

python examples/benchmarks/selection.py
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from harness import interleave, machine, print_table, ratio, spread

import eqsparse


def argsort_mask(scores, sparsity):
    """The largest scores, ties to the lower index: a stable sort."""
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    k = round(scores.size * (1 - sparsity))
    return jnp.zeros(scores.size, bool).at[order[:k]].set(True).reshape(scores.shape)


def argsort_2_of_4(scores):
    """Ranks within each run by sorting twice."""
    runs = scores.reshape(-1, 4)
    ranks = jnp.argsort(jnp.argsort(-runs, axis=-1, stable=True), axis=-1)
    return (ranks < 2).reshape(scores.shape)


def concatenate_and_argsort(sites, sparsity):
    flat = jnp.concatenate([jnp.abs(w).reshape(-1) for w in sites])
    mask = argsort_mask(flat, sparsity)
    return [part.reshape(w.shape) for part, w in zip(jnp.split(mask, len(sites)), sites, strict=True)]


def contests(sparsity):
    """Name → (ours, theirs, arguments, how often ours runs for one of theirs, what the project asks for)."""
    draw = lambda seed, n: jnp.abs(jax.random.normal(jax.random.key(seed), (n // 1000, 1000)))
    site, pairs = eqsparse.Unstructured(), eqsparse.NM(2, 4)
    ours = jax.jit(lambda s: site.mask(s, sparsity))
    theirs = jax.jit(lambda s: argsort_mask(s, sparsity))
    million, ten_million = draw(0, 10**6), draw(1, 10**7)
    sites = [jax.random.normal(jax.random.key(i), (1024, 1024)) for i in range(10)]
    prune = eqsparse.MagnitudePruning(distribution=eqsparse.Global(sparsity, normalise=False))
    everywhere = jax.jit(lambda ws: [w != 0 for w in prune.prune(ws)])
    concatenated = jax.jit(lambda ws: concatenate_and_argsort(ws, sparsity))
    tied = jnp.round(million * 4) / 4
    yield "10⁶ float32", ours, theirs, million, 40
    yield "10⁶ float32, many ties", ours, theirs, tied, None
    yield "10⁶ bfloat16", ours, theirs, million.astype(jnp.bfloat16), None
    yield "10⁷ float32", ours, theirs, ten_million, 12
    yield "2:4 of 10⁶", jax.jit(lambda s: pairs.mask(s, 0.5)), jax.jit(argsort_2_of_4), million, 60
    yield "global, 10 × 1024×1024", everywhere, concatenated, sites, 15


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sparsity", type=float, default=0.9)
    args = parser.parse_args()

    print(f"Masks at sparsity {args.sparsity}. {machine()}")
    rows = []
    for name, ours, theirs, scores, asked in contests(args.sparsity):
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), ours(scores), theirs(scores))
        assert all(jax.tree.leaves(same)), f"{name}: the masks differ"
        runs = {"ours": lambda f=ours, s=scores: f(s), "sort": lambda f=theirs, s=scores: f(s)}
        seconds = interleave(runs, args.rounds)
        scratch = ours.lower(scores).compile().memory_analysis().temp_size_in_bytes
        keys = sum(leaf.nbytes for leaf in jax.tree.leaves(scores))
        times = ratio(seconds["sort"], seconds["ours"])
        rows.append(
            [
                name,
                spread(seconds["ours"]),
                spread(seconds["sort"]),
                f"{times:.0f}",
                "" if asked is None else f"{asked}",
                f"{scratch / keys:.2f}",
            ]
        )
    print_table(["scores", "bisection", "sorting", "times faster", "asked", "scratch / keys"], rows)


if __name__ == "__main__":
    main()
