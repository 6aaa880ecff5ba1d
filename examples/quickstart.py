"""Train an MLP on images of digits, dense and with gradual magnitude pruning; export the pruned one; compare.

python examples/quickstart.py              # scikit-learn's digits, 8x8 pixels
python examples/quickstart.py --mnist DIR  # MNIST, 28x28 pixels, from its IDX files in DIR
"""

import argparse
import gzip
import math
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import eqsparse

BATCH = 128


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="read MNIST from DIR instead of scikit-learn's digits: trains on "
        "train-*.gz and tests on t10k-*.gz, or, if only one is there, on its first 80%% and the rest",
    )
    option("--sparsity", type=float, default=0.9, help="fraction of each layer's weights to remove (%(default)s)")
    option("--steps", type=int, default=600, help="training steps of each of the two runs (%(default)s)")
    option("--hidden", type=int, default=1024, help="width of the two hidden layers (%(default)s)")
    option("--seed", type=int, default=0, help="of initial weights and batches, the same in both runs (%(default)s)")
    option("--out", type=Path, default=Path("quickstart.png"), metavar="FILE", help="the figure (%(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.sparsity <= 1 or min(args.steps, args.hidden) < 1:
        parser.error("--sparsity must be in [0, 1], --steps and --hidden at least 1")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.absolute().parent}")
    if args.mnist and not any((args.mnist / f"{name}-images-idx3-ubyte.gz").exists() for name in ("train", "t10k")):
        parser.error(f"--mnist: there is no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz in {args.mnist}")
    return args


def load(mnist):
    """Images as rows of numbers in [0, 1], and labels: to train on, and held out."""
    if mnist is None:
        digits = load_digits()
        parts = [(digits.data / 16, digits.target)]
    else:
        names = [name for name in ("train", "t10k") if (mnist / f"{name}-images-idx3-ubyte.gz").exists()]
        read = lambda file, header: np.frombuffer(gzip.decompress((mnist / file).read_bytes()), np.uint8, offset=header)
        parts = [
            (
                read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28 * 28) / 255,
                read(f"{name}-labels-idx1-ubyte.gz", 8),
            )
            for name in names
        ]
    if len(parts) == 1:
        (x, y), split = parts[0], len(parts[0][0]) * 4 // 5
        parts = [(x[:split], y[:split]), (x[split:], y[split:])]
    return [(np.asarray(x, np.float32), np.asarray(y, np.int32)) for x, y in parts]


@eqx.filter_jit
def predict(model, x):
    return jax.vmap(model)(x)


def accuracy(model, x, y):
    return float(np.mean(np.argmax(predict(model, x), axis=1) == y))


def train(model, pruner, data, held_out, steps, seed, tick):
    """The trained model; steps, accuracies and sparsities along the way."""

    def loss(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    @eqx.filter_jit
    def step(model, state, x, y):
        grads = eqx.filter_grad(loss)(model, x, y)
        return pruner.step(model, grads, state)

    model, state = pruner.init(model)
    rng = np.random.default_rng(seed)
    history = []
    for i in range(steps):
        rows = rng.integers(len(data[0]), size=BATCH)
        model, state = step(model, state, data[0][rows], data[1][rows])
        if (i + 1) % max(1, steps // 60) == 0 or i + 1 == steps:
            masks = eqsparse.get_masks(model).values()
            sparsity = 1 - sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)
            history.append((i + 1, accuracy(model, *held_out), sparsity))
        tick()
    return model, np.array(history).T


def latencies(models, x, rounds=60):
    """Milliseconds of each model on a batch: quartiles. The models take turns: other work disturbs all alike."""
    x, times = jax.device_put(x), {name: [] for name in models}
    for i in range(rounds + 5):
        for name, model in models.items():
            start = time.perf_counter()
            predict(model, x).block_until_ready()
            if i >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.percentile(t, [25, 50, 75]) for name, t in times.items()}


def main(argv=None):
    args = arguments(argv)
    console = Console()
    data, held_out = load(args.mnist)
    pixels = data[0].shape[1]
    model = eqx.nn.MLP(pixels, 10, args.hidden, depth=2, key=jax.random.key(args.seed))

    optim = optax.adam(1e-3)
    schedule = eqsparse.Polynomial(start=args.steps // 4, stop=3 * args.steps // 4, every=max(1, args.steps // 60))
    pruners = {
        "dense": eqsparse.NoPruning(optim),
        "pruned": eqsparse.MagnitudePruning(optim, distribution=args.sparsity, schedule=schedule),
    }

    models, histories = {}, {}
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for name, pruner in pruners.items():
            task = progress.add_task(f"training {name:6}", total=args.steps)
            tick = lambda task=task: progress.advance(task)
            models[name], histories[name] = train(model, pruner, data, held_out, args.steps, args.seed, tick)

    models["dense"] = eqsparse.materialise(models["dense"])  # its masks are full: the plain Equinox model
    models["exported"] = eqsparse.to_bcoo(models["pruned"])

    console.print(results(models, held_out))
    figure(histories, eqsparse.get_masks(models["pruned"])["layers.0.weight"]).savefig(args.out, dpi=110)
    console.print(f"Figure: {args.out}", soft_wrap=True)

    with jax.default_matmul_precision("highest"):  # GPUs round products of dense matrices by default
        pruned, exported = (np.asarray(predict(models[name], held_out[0])) for name in ("pruned", "exported"))
    same, difference = np.argmax(pruned, axis=1) == np.argmax(exported, axis=1), np.abs(pruned - exported).max()
    console.print(
        f"Exported against pruned: the same label for {same.sum()} of {len(same)} test images, logits of up "
        f"to {np.abs(pruned).max():.1f} differ by {difference:.1e} at most.",
        soft_wrap=True,
    )
    if not (same.all() and difference <= 1e-5 * max(1, np.abs(pruned).max())):
        raise SystemExit("The exported model does not predict the same.")


def results(models, held_out):
    """The table: dense against pruned against exported."""
    total = eqsparse.report(models["pruned"]).total
    stored = sum(layer.weight.nse for layer in models["exported"].layers)
    size, kept = total["size"], {"dense": total["size"], "pruned": total["kept"], "exported": stored}
    nbytes = {name: eqsparse.nbytes(model) for name, model in models.items()}
    title = f"MLP of {size:,} weights, {len(held_out[0]):,} test images"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, caption="ms: median (quartiles)")
    for name in ("", *models):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)

    def row(label, text):
        table.add_row(label, *(text(name) for name in models))

    row("accuracy", lambda name: f"{accuracy(models[name], *held_out):.1%}")
    row("weights kept", lambda name: f"{kept[name]:,} ({kept[name] / size:.0%})")
    row("bytes", lambda name: f"{nbytes[name]:,} ({nbytes[name] / nbytes['dense']:.0%})")
    for count in (BATCH, 1):
        times = latencies(models, held_out[0][:count])
        row(f"ms, batch of {count}", lambda name, times=times: "{1:.2f} ({0:.2f}–{2:.2f})".format(*times[name]))
    return table


def figure(histories, mask):
    """Accuracy and sparsity over the steps; which pixels the units of the first layer look at."""
    fig = Figure(figsize=(10, 3.4), layout="constrained")
    grid = fig.add_gridspec(2, 3, width_ratios=[1.3, 1, 1])
    top = fig.add_subplot(grid[0, 0])
    bottom = fig.add_subplot(grid[1, 0], sharex=top)
    for (name, (step, accuracy, sparsity)), color in zip(histories.items(), ("#0072b2", "#d55e00"), strict=True):
        top.plot(step, 100 * accuracy, color=color, label=name)
        bottom.plot(step, 100 * sparsity, color=color, label=name)
    top.set(ylabel="accuracy, %")
    top.tick_params(labelbottom=False)
    bottom.set(ylabel="sparsity, %", xlabel="training step", ylim=(-5, 105))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    top.legend(frameon=False)

    mask = np.asarray(mask)
    side = math.isqrt(mask.shape[1])
    masks = mask.reshape(-1, side, side)
    tiles = np.full((64, side + 1, side + 1), np.nan)
    tiles[: len(masks), :side, :side] = masks[:64]
    mosaic = tiles.reshape(8, 8, side + 1, side + 1).swapaxes(1, 2).reshape(8 * (side + 1), -1)[:-1, :-1]
    share = masks.mean(axis=0)
    titles = (
        f"Masks of the first layer:\n{min(64, len(masks))} of {len(masks):,} units, kept pixels dark",
        f"Share of the units that keep\na pixel, {share.min():.0%} to {share.max():.0%}",
    )
    for column, (image, title) in enumerate(zip((mosaic, share), titles, strict=True), start=1):
        axes = fig.add_subplot(grid[:, column])
        axes.imshow(image, cmap="Oranges", vmin=0, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.set(xticks=[], yticks=[])
    return fig


if __name__ == "__main__":
    main()
