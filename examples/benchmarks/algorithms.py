"""All algorithms on images of digits: accuracy at several sparsities over several seeds.

python examples/benchmarks/algorithms.py [--mnist DIR] [--seeds N] [--figure FILE]

Each algorithm is compiled once: targets are traced, so its sparsities and seeds share one program. Runs are shared out
between as many threads as there are cores.
"""

import argparse
import gzip
import os
import time
from concurrent.futures import as_completed, ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import machine, print_table
from rich.progress import Progress

import eqsparse

SPARSITIES = (0.9, 0.95, 0.98)
RATES = (3e-4, 1e-3, 3e-3)
# Fixed before any run. Of each pair the first is expected to be the better one.
PAIRS = [
    ("MagnitudeSTE", "RigL"), ("MagnitudePruning", "RigL"), ("GlobalMagnitudePruning", "RigL"),
    ("RigL", "StaticSparse"), ("SET", "StaticSparse"), ("StaticSparse", "RandomPruning"),
    ("MagnitudePruning", "RandomPruning"), ("MagnitudeSTE", "RandomSTE"),
]  # fmt: skip


def contestants(optim, sparsity, steps, key):
    """Name → pruner, each with the settings of its paper scaled to the length of this run."""
    erk, gradual = eqsparse.ERK(sparsity), eqsparse.Polynomial(steps // 4, 3 * steps // 4, 20)
    moving = {"distribution": erk, "key": key, "schedule": eqsparse.Periodic(0, 3 * steps // 4, 50)}
    phases = eqsparse.Alternating(steps // 8, 3 * steps // 4, steps // 16, steps // 16)
    return {
        "MagnitudePruning": eqsparse.MagnitudePruning(optim, distribution=erk, schedule=gradual),
        "GlobalMagnitudePruning": eqsparse.GlobalMagnitudePruning(optim, distribution=sparsity, schedule=gradual),
        "GlobalSaliencyPruning": eqsparse.GlobalSaliencyPruning(optim, distribution=sparsity, schedule=gradual),
        "LAMP": eqsparse.MagnitudePruning(optim, distribution=eqsparse.LAMP(sparsity), schedule=gradual),
        "SaliencyPruning": eqsparse.SaliencyPruning(optim, distribution=erk, schedule=gradual),
        "FisherPruning": eqsparse.FisherPruning(optim, distribution=erk, schedule=gradual),
        "MovementPruning": eqsparse.MovementPruning(optim, distribution=erk, schedule=gradual),
        "RandomPruning": eqsparse.RandomPruning(optim, distribution=erk, schedule=gradual, key=key),
        "MagnitudeSTE": eqsparse.MagnitudeSTE(optim, distribution=erk),
        "SRSTE": eqsparse.SRSTE(optim, distribution=erk),
        "RandomSTE": eqsparse.RandomSTE(optim, distribution=erk, key=key),
        "StaticSparse": eqsparse.StaticSparse(optim, distribution=erk, key=key),
        "SET": eqsparse.SET(optim, **moving),
        "RigL": eqsparse.RigL(optim, **moving),
        "SRigL": eqsparse.RigL(optim, **moving | {"structure": eqsparse.FixedFanIn(0.3)}),
        "SNFS": eqsparse.SNFS(optim, **moving),
        "TopKAST": eqsparse.TopKAST(
            optim, distribution=erk, backward_sparsity=1 - 2 * (1 - sparsity), schedule=moving["schedule"]
        ),
        "ACDC": eqsparse.ACDC(optim, distribution=erk, schedule=phases),
        "LotteryTicket": eqsparse.LotteryTicket(
            optim, distribution=erk, rounds=3, steps=steps // 4, rewind=steps // 16 - 1
        ),
        "SNIP": eqsparse.SNIP(optim, distribution=sparsity),
        "GraSP": eqsparse.GraSP(optim, distribution=sparsity),
        "SynFlow": eqsparse.SynFlow(optim, distribution=sparsity),
    }  # fmt: skip


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def mnist(folder):
    """The 10,000 images of the test set."""
    read = lambda name, offset: np.frombuffer(gzip.open(Path(folder) / name).read(), np.uint8, offset=offset)
    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784).astype(np.float32) / 255
    return images, read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int32)


def split(images, labels, seed):
    """Images and labels to train on, and the fifth to test on."""
    place = np.random.default_rng(seed).permutation(len(images))
    test, rest = np.split(place, [len(images) // 5])
    return [(jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (rest, test)]


def lenet(inputs, key):
    """LeNet-300-100."""
    sizes, keys = (inputs, 300, 100, 10), jax.random.split(key, 3)
    layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)]
    return eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jax.nn.relu), layers[1], eqx.nn.Lambda(jax.nn.relu), layers[2]])


def loss(model, data):
    x, y = data
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def with_temperature(model, data):
    """GraSP's loss."""
    x, y = data
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x) / 200, y).mean()


@eqx.filter_jit
def train(pruner, model, state, x, y, order):
    """The whole run in one program: `order` are the examples of each batch."""
    arrays, rest = eqx.partition((model, state), eqx.is_array)

    def step(arrays, batch):
        model, state = eqx.combine(arrays, rest)
        model, state = pruner.step(model, eqx.filter_grad(loss)(model, (x[batch], y[batch])), state)
        return eqx.filter((model, state), eqx.is_array), None

    return eqx.combine(jax.lax.scan(step, arrays, order)[0], rest)[0]


@eqx.filter_jit
def accuracy(model, x, y):
    return (jnp.argmax(jax.vmap(model)(x), axis=1) == y).mean()


def run(pruner, model, data, steps, batch, seed):
    """Accuracy on the test images, the share of weights kept, and how many seconds it took."""
    began = time.perf_counter()
    (x, y), (x_test, y_test) = data
    order = jnp.asarray(np.random.default_rng(seed).integers(0, len(x), (steps, batch)))
    if isinstance(pruner, eqsparse.SynFlow):
        model = pruner.prune(model, data=x[:1])
    elif isinstance(pruner, eqsparse.AbstractPruningAtInit):
        first = (x[order[0]], y[order[0]])
        model = pruner.prune(model, loss=with_temperature if isinstance(pruner, eqsparse.GraSP) else loss, data=first)
    model, state = pruner.init(model)
    model = train(pruner, model, state, x, y, order)
    masks = eqsparse.get_masks(model).values()
    kept = sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)
    return float(accuracy(model, x_test, y_test)), kept, time.perf_counter() - began


def tuned(images, labels, args):
    """The learning rate at which the dense run is best, on splits that no other run sees."""

    def dense(rate):
        pruner = eqsparse.NoPruning(optax.adam(rate))
        for seed in (1000, 1001):
            model = lenet(images.shape[1], jax.random.key(seed))
            yield run(pruner, model, split(images, labels, seed), args.steps, args.batch, seed)[0]

    found = {rate: np.mean(list(dense(rate))) for rate in RATES}
    print("dense, to choose the learning rate:", ", ".join(f"{rate:g} {100 * x:.1f}%" for rate, x in found.items()))
    return max(found, key=found.get)


def holm(p_values):
    """Holm's correction for several tests."""
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate([(len(order) - i) * p_values[j] for i, j in enumerate(order)])
    return np.minimum(corrected, 1)[np.argsort(order)]


def print_pairs(results):
    """One-sided paired t-tests over the seeds, of those pairs that have run."""
    from scipy import stats

    names = [(a, b, s) for s in SPARSITIES for a, b in PAIRS if {(a, s), (b, s)} <= set(results)]
    if not names:
        return
    differences = [np.subtract(results[a, s], results[b, s]) for a, b, s in names]
    p = holm(np.array([stats.ttest_1samp(d, 0, alternative="greater").pvalue for d in differences]))
    shown = [
        [f"{s:.0%}", f"{a} > {b}", f"{100 * d.mean():+.1f}", f"{q:.3f}", "yes" if q < 0.05 else "no"]
        for (a, b, s), d, q in zip(names, differences, p, strict=True)
    ]
    print(f"\n{len(names)} one-sided paired t-tests over the seeds, Holm's correction")
    print_table(["sparsity", "expected", "difference, points", "p (Holm)", "shown"], shown)


def error(values):
    """The standard error of the mean; 0 where there is one value."""
    return np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


def draw(results, names, file):
    """Each algorithm a row, the best at the highest sparsity on top; what lies far below is written at the edge."""
    from matplotlib.figure import Figure

    mean = lambda name, s: 100 * np.mean(results[name, s])
    names = sorted(names, key=lambda name: mean(name, SPARSITIES[-1]))
    dense, rows = mean("dense", 0.0), np.arange(len(names))
    shown = [m for m in (mean(name, s) for name in names for s in SPARSITIES) if m > dense - 10]
    edge = min(shown, default=dense) - 1
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot(xlim=(edge, max([dense, *shown]) + 0.5))
    for i, s in enumerate(SPARSITIES):
        means = [mean(name, s) for name in names]
        errors = [100 * error(results[name, s]) for name in names]
        height = rows + 0.2 * (1 - i)
        axes.errorbar(means, height, xerr=errors, fmt="o", ms=4, lw=1, label=f"{s:.0%} sparse")
        for m, y in zip(means, height, strict=True):
            if m < edge:
                axes.annotate(f"← {m:.0f}", (edge, y), (2 + 24 * i, 0), textcoords="offset points", va="center", size=7)
    axes.axvline(dense, color="black", lw=1, ls=":", label="dense")
    axes.set_yticks(rows, names)
    axes.grid(axis="x", lw=0.3)
    axes.set_xlabel("accuracy, % (mean and standard error)")
    axes.legend()
    figure.savefig(file, dpi=150)


def print_reasons(images, labels, rate, args):
    """Runs at 90% for the pairs that come out the other way: with a rate that falls, and without a dense beginning."""
    erk = eqsparse.ERK(SPARSITIES[0])
    falling = optax.adam(optax.cosine_decay_schedule(rate, args.steps))
    moves = eqsparse.Periodic(0, 3 * args.steps // 4, 50)
    at_once = {"distribution": erk, "schedule": eqsparse.OneShot(0)}
    makers = {
        "MagnitudeSTE": lambda key: eqsparse.MagnitudeSTE(optax.adam(rate), distribution=erk),
        "MagnitudeSTE, a third of the rate": lambda key: eqsparse.MagnitudeSTE(optax.adam(rate / 3), distribution=erk),
        "MagnitudeSTE, cosine rate": lambda key: eqsparse.MagnitudeSTE(falling, distribution=erk),
        "RigL, cosine rate": lambda key: eqsparse.RigL(falling, distribution=erk, key=key, schedule=moves),
        "RandomPruning at step 0": lambda key: eqsparse.RandomPruning(optax.adam(rate), key=key, **at_once),
        "StaticSparse": lambda key: eqsparse.StaticSparse(optax.adam(rate), distribution=erk, key=key),
    }
    rows = []
    for name, make in makers.items():
        found = []
        for seed in range(args.seeds):
            key = jax.random.key(seed)
            model, data = lenet(images.shape[1], key), split(images, labels, seed)
            found.append(run(make(key), model, data, args.steps, args.batch, seed)[0])
        rows.append([name, f"{100 * np.mean(found):.1f} ± {100 * error(found):.1f}"])
    print_table(["accuracy, %", f"{SPARSITIES[0]:.0%}"], rows)


def all_runs(images, labels, names, optim, args):
    """Name, sparsity and seed of each run, and the run as a function without arguments.

    Neighbours are of different algorithms, so that no two threads compile the same program at the same time.
    """
    for seed in range(args.seeds):
        key = jax.random.key(seed)
        data, model = split(images, labels, seed), lenet(images.shape[1], key)
        go = lambda pruner, data=data, model=model, seed=seed: run(pruner, model, data, args.steps, args.batch, seed)
        yield "dense", 0.0, seed, lambda go=go: go(eqsparse.NoPruning(optim))
        for s in SPARSITIES:
            made = contestants(optim, s, args.steps, jax.random.fold_in(key, 3))
            for name in names:
                yield name, s, seed, lambda go=go, pruner=made[name]: go(pruner)


def main():
    known = list(contestants(None, 0.9, 1600, jax.random.key(0)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", metavar="DIR", help="a folder with t10k-*.gz; scikit-learn's digits without it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, help=f"of Adam; without it, the best of {RATES} for the dense run")
    parser.add_argument("--algorithms", nargs="+", choices=known, metavar="NAME", help=f"only these of {known}")
    parser.add_argument("--figure", metavar="FILE")
    parser.add_argument("--reasons", action="store_true", help="why some pairs come out the other way, and no more")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    images, labels = mnist(args.mnist) if args.mnist else digits()
    rate = args.rate or tuned(images, labels, args)
    if args.reasons:
        return print_reasons(images, labels, rate, args)
    names = [name for name in known if not args.algorithms or name in args.algorithms]
    results, seconds = {}, {}
    with Progress(transient=True) as progress, ThreadPoolExecutor(args.threads) as threads:
        waiting = {
            threads.submit(go): which
            for *which, go in all_runs(images, labels, names, optax.adam(rate), args)
        }  # fmt: skip
        bar = progress.add_task("", total=len(waiting))
        for done in as_completed(waiting):
            name, s, seed = waiting[done]
            result, kept, took = done.result()
            assert kept <= 1 - s + 0.005, f"{name} keeps {kept:.2%} at {s:.0%}"
            results.setdefault((name, s), {})[seed] = result
            seconds.setdefault(name, []).append(took)
            progress.update(bar, advance=1, description=f"seed {seed}: {name} {s:.0%}")
    results = {which: [by_seed[seed] for seed in sorted(by_seed)] for which, by_seed in results.items()}

    data = f"MNIST, {len(images):,} images" if args.mnist else f"digits, {len(images):,} images"
    print(f"LeNet-300-100 on {data}, a fifth for the test, Adam {rate:g}, {args.steps} steps of {args.batch}, "
          f"{args.seeds} seeds, {args.threads} threads. {machine()}")  # fmt: skip
    show = lambda r: f"{100 * np.mean(r):.1f} ± {100 * error(r):.1f}"
    took = lambda name: f"{np.median(seconds[name]):.1f}"  # the first run of a few, which compiles, does not count
    rows = [[name, *(show(results[name, s]) for s in SPARSITIES), took(name)] for name in names]
    rows.sort(key=lambda row: -np.mean(results[row[0], SPARSITIES[-1]]))
    dense = ["dense", show(results["dense", 0.0]), *[""] * (len(SPARSITIES) - 1), took("dense")]
    print_table(["accuracy, %", *(f"{s:.0%}" for s in SPARSITIES), "seconds a run"], [dense, *rows])
    if args.seeds > 1:
        print_pairs(results)
    if args.figure:
        draw(results, names, args.figure)


if __name__ == "__main__":
    main()
