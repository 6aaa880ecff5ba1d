"""What the examples share: their options, a pruner by name, a progress bar, the table and the lines of a figure."""

import argparse
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import eqsparse

GENERAL = {"GradualPruning", "StraightThrough", "DynamicSparse", "NoPruning"}  # want a criterion, or prune nothing
ALGORITHMS = sorted(
    name
    for name, value in vars(eqsparse).items()
    if inspect.isclass(value) and issubclass(value, eqsparse.AbstractPruner) and not inspect.isabstract(value)
    if not name.startswith("Abstract") and name not in GENERAL
)
AT_INIT = {"SNIP", "GraSP", "SynFlow"}
AFTER_TRAINING = {"Wanda", "RIA", "SparseGPT"}
AT_ONCE = {"StaticSparse", *AT_INIT, *AFTER_TRAINING}
GLOBAL = {"GlobalMagnitudePruning", "GlobalSaliencyPruning"}
MOVING = {"SET", "RigL", "SNFS", "TopKAST"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def console():
    """As wide as the terminal, or, where there is none, as the widest table."""
    return Console(width=None if sys.stdout.isatty() else 110)


def options(doc, *, algorithm, sparsity, distribution, name, algorithms=ALGORITHMS):
    """A parser with what all examples take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    option = parser.add_argument
    option("--algorithm", default=algorithm, choices=algorithms, metavar="NAME",
           help=f"one of {', '.join(algorithms)} (%(default)s)")  # fmt: skip
    option("--sparsity", type=float, default=sparsity, help="fraction of the weights to remove (%(default)s)")
    option("--distribution", default=distribution, choices=("ERK", "Uniform"),
           help="how layers share it; global algorithms have their own (%(default)s)")  # fmt: skip
    option(
        "--seed", type=int, default=0, help="of initial weights and batches, the same dense and sparse (%(default)s)"
    )
    option("--out", type=Path, default=Path(name), metavar="FILE", help="the figure (%(default)s)")
    return parser


def parsed(parser, argv, at_least_one):
    """The arguments, checked. `at_least_one`: names of options that are counts."""
    args = parser.parse_args(argv)
    if not 0 <= args.sparsity <= 1:
        parser.error(f"--sparsity must be in [0, 1]. Got {args.sparsity}.")
    for name in at_least_one:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Got {getattr(args, name)}.")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.absolute().parent}")
    return args


def pruner_config(algorithm, sparsity, steps, *, every, distribution="ERK", dense=(), seed=0, **more):
    """Plain data for `eqsparse.from_config`: the settings of each algorithm's paper, for a run of so many steps.

    `every`: steps between updates of the masks. `dense`: patterns of weights to leave as they are. `more` is put in.
    """
    kind = "Global" if algorithm in GLOBAL else distribution
    config = {
        "algorithm": algorithm,
        "distribution": {"name": kind, "sparsity": sparsity, "overrides": dict.fromkeys(dense)},
        "key": seed,
    }
    stop = 3 * steps // 4
    if algorithm in AT_INIT:
        config["distribution"] |= {"name": "Global", "normalise": False}
    if algorithm in MOVING:  # sparse from the first step on
        config["schedule"] = {"name": "Periodic", "start": 0, "stop": stop, "every": every}
    elif algorithm == "ACDC":
        phase = max(1, steps // 16)
        config["schedule"] = {"name": "Alternating", "start": steps // 8, "stop": stop}
        config["schedule"] |= {"dense_steps": phase, "sparse_steps": phase}
    elif algorithm == "LotteryTicket":
        config |= {"rounds": 3, "steps": max(1, steps // 4)}
    elif algorithm not in AT_ONCE:  # dense for a quarter, then more and more sparse; straight-through ones too
        config["schedule"] = {"name": "Polynomial", "start": steps // 4, "stop": stop, "every": every}
    if algorithm == "TopKAST":
        config["backward_sparsity"] = max(0.0, 1 - 2 * (1 - sparsity))
    return config | more


def make_pruner(algorithm, optim, **settings):
    """The pruner of `pruner_config`; `"dense"` is one that prunes nothing."""
    if algorithm == "dense":
        return eqsparse.NoPruning(optim)
    return eqsparse.from_config(pruner_config(algorithm, **settings) | {"optim": optim})


def begin(pruner, model, loss, batch, forward):
    """The model and the pruner's state; those that prune at initialisation do so first.

    `loss`: (model, batch) → number. `forward`: (model, batch) → outputs. For both the batch holds at least examples.
    """
    if isinstance(pruner, eqsparse.SynFlow):
        model = pruner.prune(model, data=batch, forward=forward)
    elif isinstance(pruner, eqsparse.AbstractPruningAtInit):
        model = pruner.prune(model, loss=loss, data=batch)
    return pruner.init(model)


def after_training(pruner, model, batches, forward):
    """The trained model, pruned by what flows into its weights: those that prune after training."""
    statistics = "gram" if isinstance(pruner, eqsparse.SparseGPT) else "second_moment"
    found = eqsparse.calibrate(model, batches, statistics=statistics, forward=forward)
    return pruner.prune(model, statistics=found)


def rows_of(rng, data, size):
    """A batch of rows drawn from arrays of the same length."""
    rows = rng.integers(len(data[0]), size=size)
    return tuple(array[rows] for array in data)


def weights_kept(model):
    """How many weights the model keeps and how many it has, counting those that are never pruned (biases, norms)."""
    removed = sum(int(m.size - m.sum()) for m in eqsparse.get_masks(model).values())
    size = sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    return size - removed, size


def sparsity_of(model):
    kept, size = weights_kept(model)
    return 1 - kept / size


@contextmanager
def progress(console, runs):
    """A bar for each run: `runs` is name → number of steps. Gives a function of the name, and of steps taken."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        width = max(map(len, runs))
        tasks = {name: bars.add_task(f"{name:{width}}", total=total, start=False) for name, total in runs.items()}

        def tick(name, steps=1):
            bars.start_task(tasks[name])
            bars.advance(tasks[name], steps)

        yield tick


def exported(model):
    """The model to deploy: a pruned one exported, a dense one as the plain Equinox model that it is."""
    return eqsparse.export(model) if sparsity_of(model) else eqsparse.materialise(model)


def results_table(title, head, rows, caption=""):
    """`rows`: the name of a run, and its numbers as text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, caption=caption)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def size_cells(model, dense):
    """Two cells of a table: weights kept, and bytes of the exported model beside those of the dense one."""
    kept, size = weights_kept(model)
    nbytes, of = eqsparse.nbytes(exported(model)), eqsparse.nbytes(eqsparse.materialise(dense))
    return f"{kept:,} ({kept / size:.0%})", f"{nbytes:,} ({nbytes / of:.0%})"


def lines(curves, ylabel, xlabel, file, second="sparsity, %"):
    """A figure of two panels. `curves`: name → rows of (step, number, sparsity)."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for (name, rows), color in zip(curves.items(), COLORS * len(curves), strict=False):
        step, number, sparsity = np.array(rows, float).T
        style = "--" if name.startswith("dense") else "-"  # seen where it is the same as another
        left.plot(step, number, style, color=color, label=name)
        right.plot(step, 100 * sparsity, style, color=color)
    left.set(ylabel=ylabel, xlabel=xlabel)
    right.set(ylabel=second, xlabel=xlabel, ylim=(-5, 105))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(file, dpi=110)


def digits(mnist=None):
    """Images as rows of numbers in [0, 1] with a side for height and width, and labels: to train on, and held out."""
    from quickstart import load

    (x, y), (held_x, held_y) = load(mnist)
    side = int(np.sqrt(x.shape[1]))
    as_images = lambda rows: rows.reshape(-1, 1, side, side)
    return (as_images(x), y), (as_images(held_x), held_y)


def same_predictions(run, model, inputs):
    """Compares the exported model with the one it was made from: `run(model, inputs)` gives arrays of numbers.

    Raises `SystemExit` if they differ by more than rounding.
    """
    with jax.default_matmul_precision("highest"):  # GPUs round products of dense matrices by default
        ours, theirs = (np.asarray(run(m, inputs)) for m in (eqsparse.materialise(model), exported(model)))
    difference, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
    if not difference <= 1e-4 * max(1, largest):
        raise SystemExit(f"The exported model does not predict the same: {difference:.1e} apart.")
    return f"Exported against pruned: outputs of up to {largest:.1f} differ by {difference:.1e} at most."
