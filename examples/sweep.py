"""Train networks of many sparsities, each from several seeds, in one compiled program; plot accuracy against sparsity.

python examples/sweep.py
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import eqsparse

BATCH, CHUNK = 64, 20


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    levels = [0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99]
    option("--sparsities", type=float, nargs="+", default=levels, help="fractions of weights to remove (%(default)s)")
    option("--seeds", type=int, default=3, help="how many networks for each of them (%(default)s)")
    option("--steps", type=int, default=400, help="training steps, rounded up to a multiple of 20 (%(default)s)")
    option("--hidden", type=int, default=128, help="width of the two hidden layers (%(default)s)")
    option("--out", type=Path, default=Path("sweep.png"), metavar="FILE", help="the figure (%(default)s)")
    args = parser.parse_args(argv)
    if not all(0 <= sparsity <= 1 for sparsity in args.sparsities) or min(args.seeds, args.steps, args.hidden) < 1:
        parser.error("--sparsities must be in [0, 1], --seeds, --steps and --hidden at least 1")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.absolute().parent}")
    return args


def load():
    """Images as rows of numbers in [0, 1], and labels: to train on, and held out."""
    digits = load_digits()
    x, y, split = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32), len(digits.data) * 4 // 5
    return (x[:split], y[:split]), (x[split:], y[split:])


def grid(function):
    """`function(pruner, ...)` for a grid of pruners, seeds down and sparsities across."""
    return eqx.filter_vmap(eqx.filter_vmap(function))


@eqx.filter_jit
def begin(sparsities, keys, width, hidden, steps):
    """A pruner, a model and a state for each sparsity and key."""

    def one(key, sparsity):
        schedule = eqsparse.Polynomial(steps // 4, 3 * steps // 4, CHUNK)
        pruner = eqsparse.MagnitudePruning(optax.adam(2e-3), distribution=eqsparse.ERK(sparsity), schedule=schedule)
        return pruner, *pruner.init(eqx.nn.MLP(width, 10, hidden, depth=2, key=key))

    return grid(one)(*jnp.broadcast_arrays(keys[:, None], jnp.asarray(sparsities)))


@eqx.filter_jit
def train(pruners, models, states, x, y):
    """All networks, on the same batches: one step of each after the other in a `scan`."""

    def loss(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    def one(pruner, *carry):
        arrays, static = eqx.partition(carry, eqx.is_array)

        def step(arrays, batch):
            model, state = eqx.combine(arrays, static)
            grads = eqx.filter_grad(loss)(model, *batch)
            return eqx.filter(pruner.step(model, grads, state), eqx.is_array), None

        return eqx.combine(jax.lax.scan(step, arrays, (x, y))[0], static)

    return grid(one)(pruners, models, states)


@eqx.filter_jit
def accuracies(models, x, y):
    return grid(lambda model: (jax.vmap(model)(x).argmax(axis=1) == y).mean())(models)


def results(sparsities, kept, size, accuracy):
    title = f"MLPs of {size:,} weights, {accuracy.shape[0]} of each sparsity"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, caption="accuracy: mean (lowest–highest)")
    for name in ("sparsity", "weights kept", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for sparsity, k, of_seeds in zip(sparsities, kept, accuracy.T, strict=True):
        spread = f"{of_seeds.mean():.1%} ({of_seeds.min():.1%}–{of_seeds.max():.1%})"
        table.add_row(f"{sparsity:.1%}", f"{k:,}", spread)
    return table


def figure(kept, size, accuracy):
    fig = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = fig.add_subplot()
    low, mean, high = 100 * accuracy.min(axis=0), 100 * accuracy.mean(axis=0), 100 * accuracy.max(axis=0)
    axes.fill_between(kept / size, low, high, color="#d55e00", alpha=0.2, linewidth=0)
    axes.plot(kept / size, mean, "o-", color="#d55e00")
    axes.set(xscale="log", xlabel="share of weights kept", ylabel="accuracy, %", title="Mean and range of the seeds")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.invert_xaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return fig


def main(argv=None):
    args = arguments(argv)
    console = Console()
    (x, y), held_out = load()
    chunks = -(-args.steps // CHUNK)
    keys = jax.random.split(jax.random.key(0), args.seeds)
    pruners, models, states = begin(args.sparsities, keys, x.shape[1], args.hidden, chunks * CHUNK)

    rng = np.random.default_rng(0)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"training {keys.size * len(args.sparsities)} networks", total=chunks * CHUNK)
        for _ in range(chunks):
            rows = rng.integers(len(x), size=(CHUNK, BATCH))
            models, states = jax.block_until_ready(train(pruners, models, states, x[rows], y[rows]))
            progress.advance(task, CHUNK)

    masks = [np.asarray(mask)[0] for mask in eqsparse.get_masks(models).values()]  # of one seed: all keep as many
    kept, size = sum(m.sum(axis=(1, 2)) for m in masks), sum(m[0].size for m in masks)
    accuracy = np.asarray(accuracies(models, *held_out))
    console.print(results(args.sparsities, kept, size, accuracy))
    figure(kept, size, accuracy).savefig(args.out, dpi=110)
    console.print(f"Figure: {args.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
