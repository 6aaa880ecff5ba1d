"""All algorithms on images of digits: accuracy at several sparsities over several seeds.

python examples/benchmarks/algorithms.py [--mnist DIR] [--seeds N] [--figure FILE]
"""

import argparse
import gzip
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
        "LotteryTicket": eqsparse.LotteryTicket(optim, distribution=erk, rounds=3, steps=steps // 4, rewind=99),
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


def run(pruner, model, split, steps, batch, seed):
    """Accuracy on the test images, and the share of weights kept."""
    (x, y), (x_test, y_test) = split
    order = jnp.asarray(np.random.default_rng(seed).integers(0, len(x), (steps, batch)))
    if isinstance(pruner, eqsparse.SynFlow):
        model = pruner.prune(model, data=x[:1])
    elif isinstance(pruner, eqsparse.AbstractPruningAtInit):
        first = (x[order[0]], y[order[0]])
        model = pruner.prune(model, loss=with_temperature if isinstance(pruner, eqsparse.GraSP) else loss, data=first)
    model, state = pruner.init(model)
    model = train(pruner, model, state, x, y, order)
    masks = eqsparse.get_masks(model).values()
    return float(accuracy(model, x_test, y_test)), sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)


def holm(p_values):
    """Holm's correction for several tests."""
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate([(len(order) - i) * p_values[j] for i, j in enumerate(order)])
    return np.minimum(corrected, 1)[np.argsort(order)]


def print_pairs(results):
    """One-sided paired t-tests over the seeds."""
    from scipy import stats

    names = [(a, b, s) for s in SPARSITIES for a, b in PAIRS]
    differences = [np.subtract(results[a, s], results[b, s]) for a, b, s in names]
    p = holm(np.array([stats.ttest_1samp(d, 0, alternative="greater").pvalue for d in differences]))
    shown = [
        [f"{s:.0%}", f"{a} > {b}", f"{100 * d.mean():+.1f}", f"{q:.3f}", "yes" if q < 0.05 else "no"]
        for (a, b, s), d, q in zip(names, differences, p, strict=True)
    ]
    print_table(["sparsity", "expected", "difference, points", "p (Holm)", "shown"], shown)


def draw(results, names, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        means = [100 * np.mean(results[name, s]) for s in SPARSITIES]
        errors = [100 * np.std(results[name, s], ddof=1) / len(results[name, s]) ** 0.5 for s in SPARSITIES]
        axes.errorbar(np.arange(len(SPARSITIES)) + 0.02 * i, means, errors, label=name, marker="o", ls="-", lw=1)
    axes.set_xticks(range(len(SPARSITIES)), [f"{s:.0%}" for s in SPARSITIES])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("accuracy, % (mean and standard error)")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", metavar="DIR", help="a folder with t10k-*.gz; scikit-learn's digits without it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam; tuned on the dense run")
    parser.add_argument("--algorithms", nargs="*", help="only these")
    parser.add_argument("--figure", metavar="FILE")
    args = parser.parse_args()

    images, labels = mnist(args.mnist) if args.mnist else digits()
    optim = optax.adam(args.rate)
    names = list(contestants(optim, 0.9, args.steps, jax.random.key(0)))
    names = [n for n in names if not args.algorithms or n in args.algorithms]
    results = {}
    with Progress(transient=True) as progress:
        bar = progress.add_task("", total=args.seeds * (1 + len(names) * len(SPARSITIES)))
        for seed in range(args.seeds):
            key = jax.random.key(seed)
            place = np.random.default_rng(seed).permutation(len(images))
            test, rest = np.split(place, [len(images) // 5])
            split = [(jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (rest, test)]
            model = eqx.nn.MLP(images.shape[1], 10, 300, 2, key=key)
            model = eqx.tree_at(  # LeNet-300-100
                lambda m: (m.layers[1], m.layers[2]),
                model,
                (
                    eqx.nn.Linear(300, 100, key=jax.random.fold_in(key, 1)),
                    eqx.nn.Linear(100, 10, key=jax.random.fold_in(key, 2)),
                ),
            )
            runs = [("dense", 0.0, eqsparse.NoPruning(optim))]
            for s in SPARSITIES:
                made = contestants(optim, s, args.steps, jax.random.fold_in(key, 3))
                runs += [(name, s, made[name]) for name in names]
            for name, s, pruner in runs:
                progress.update(bar, description=f"seed {seed}: {name} {s:.0%}")
                result, kept = run(pruner, model, split, args.steps, args.batch, seed)
                assert kept <= 1 - s + 0.005, f"{name} keeps {kept:.2%} at {s:.0%}"
                results.setdefault((name, s), []).append(result)
                progress.advance(bar)

    data = f"MNIST, {len(images):,} images" if args.mnist else f"digits, {len(images):,} images"
    print(f"LeNet-300-100 on {data}, a fifth for the test, Adam {args.rate:g}, {args.steps} steps of {args.batch}, "
          f"{args.seeds} seeds. {machine()}")  # fmt: skip
    show = lambda r: f"{100 * np.mean(r):.1f} ± {100 * np.std(r, ddof=min(1, len(r) - 1)) / len(r) ** 0.5:.1f}"
    rows = [[name, *(show(results[name, s]) for s in SPARSITIES)] for name in names]
    rows.sort(key=lambda row: -np.mean(results[row[0], SPARSITIES[-1]]))
    dense = ["dense", show(results["dense", 0.0]), *[""] * (len(SPARSITIES) - 1)]
    print_table(["accuracy, %", *(f"{s:.0%}" for s in SPARSITIES)], [dense, *rows])
    if args.seeds > 1 and not args.algorithms:
        print()
        print_pairs(results)
    if args.figure:
        draw(results, names, args.figure)


if __name__ == "__main__":
    main()
