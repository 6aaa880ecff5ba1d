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

BATCH = 128
CLASSES = 10
BLUE, ORANGE = "#0072b2", "#d55e00"


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR",
        help="read MNIST from DIR (train-*.gz to train on and t10k-*.gz to test; if only one of them is there, its "
        "first 80%% and the rest) instead of scikit-learn's digits",
    )  # fmt: skip
    parser.add_argument("--sparsity", type=float, default=0.9, help="fraction of each layer's weights to remove")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each of the two runs")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the two hidden layers")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches, in both runs")
    parser.add_argument("--out", type=Path, default=Path("quickstart.png"), metavar="FILE", help="the figure")
    args = parser.parse_args(argv)
    if not 0 <= args.sparsity <= 1 or min(args.steps, args.hidden) < 1:
        parser.error("--sparsity must be in [0, 1], --steps and --hidden at least 1")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.absolute().parent}")
    if args.mnist and not any(args.mnist.glob("*-images-idx3-ubyte.gz")):
        parser.error(f"--mnist: there is no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz in {args.mnist}")
    return args


def load(mnist):
    """Images as rows of numbers in [0, 1], and labels: to train on, and held out."""
    if mnist is None:
        digits = load_digits()
        parts = [(digits.data / 16, digits.target)]
    else:
        names = [name for name in ("train", "t10k") if (mnist / f"{name}-images-idx3-ubyte.gz").exists()]
        read = lambda name, start: np.frombuffer(gzip.decompress((mnist / name).read_bytes()), np.uint8, offset=start)
        parts = [
            (read(f"{n}-images-idx3-ubyte.gz", 16).reshape(-1, 784) / 255, read(f"{n}-labels-idx1-ubyte.gz", 8))
            for n in names
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
    """The trained model, and (step, accuracy, sparsity) along the way."""

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
    return model, np.array(history)


def latencies(models, x, rounds=60):
    """Milliseconds of each model on a batch: quartiles. The models take turns, so that other work disturbs all alike."""
    times = {name: [] for name in models}
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
    model = eqx.nn.MLP(pixels, CLASSES, args.hidden, depth=2, key=jax.random.key(args.seed))

    optim = optax.adamw(1e-3, weight_decay=0.5)
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
    figure(histories, eqsparse.get_masks(models["pruned"])["layers.0.weight"], held_out).savefig(args.out, dpi=110)
    console.print(f"Figure: {args.out}", soft_wrap=True)

    logits = [np.asarray(predict(models[name], held_out[0])) for name in ("pruned", "exported")]
    difference = float(np.max(np.abs(logits[0] - logits[1])))
    same = int(np.sum(np.argmax(logits[0], 1) == np.argmax(logits[1], 1)))
    console.print(f"Exported against pruned: same label for {same} of {len(logits[0])} held-out images, "
                  f"logits differ by {difference:.1e} at most.", soft_wrap=True)  # fmt: skip
    return 0 if same == len(logits[0]) and difference <= 1e-4 * max(1, float(np.max(np.abs(logits[0])))) else 1


def results(models, held_out):
    """The table: dense against pruned against exported."""
    size = eqsparse.report(models["dense"]).total["size"]
    kept = {name: eqsparse.report(models[name]).total["kept"] for name in ("dense", "pruned")}
    kept["exported"] = sum(layer.weight.nse for layer in models["exported"].layers)
    nbytes = {name: eqsparse.nbytes(model) for name, model in models.items()}
    batch, one = latencies(models, held_out[0][:BATCH]), latencies(models, held_out[0][:1])

    table = Table(box=box.SIMPLE_HEAD, title=f"MLP of {size:,} weights, {len(held_out[0]):,} held-out images")
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")

    def row(label, text):
        table.add_row(label, *map(text, models))

    row("accuracy", lambda name: f"{accuracy(models[name], *held_out):.1%}")
    row("weights kept", lambda name: f"{kept[name]:,} ({kept[name] / size:.0%})")
    row("bytes", lambda name: f"{nbytes[name]:,} ({nbytes[name] / nbytes['dense']:.0%})")
    for label, times in {f"ms for {len(held_out[0][:BATCH])} images": batch, "ms for 1 image": one}.items():
        row(label, lambda name, times=times: "{1:.2f} [{0:.2f}, {2:.2f}]".format(*times[name]))
    table.caption = "ms: median [quartiles]"
    return table


def figure(histories, mask, held_out):
    """Accuracy and sparsity over the steps; which inputs the first hidden units keep."""
    fig = Figure(figsize=(9, 3.8), layout="constrained")
    grid = fig.add_gridspec(2, 2, width_ratios=[1.25, 1])
    top = fig.add_subplot(grid[0, 0])
    bottom = fig.add_subplot(grid[1, 0], sharex=top)
    for (name, history), color in zip(histories.items(), (BLUE, ORANGE), strict=True):
        top.plot(history[:, 0], 100 * history[:, 1], color=color, label=name)
        bottom.plot(history[:, 0], 100 * history[:, 2], color=color, label=name)
    top.set(ylabel="accuracy, %")
    top.tick_params(labelbottom=False)
    bottom.set(ylabel="sparsity, %", xlabel="training step", ylim=(-5, 105))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    top.legend(frameon=False)

    units = np.asarray(mask)[:64]
    side = math.isqrt(units.shape[1])
    wide = math.ceil(math.sqrt(len(units)))
    tiles = np.full((wide * wide, side + 1, side + 1), np.nan)
    tiles[: len(units), :side, :side] = units.reshape(-1, side, side)
    image = tiles.reshape(wide, wide, side + 1, side + 1).swapaxes(1, 2).reshape(wide * (side + 1), -1)
    right = fig.add_subplot(grid[:, 1])
    right.imshow(image[:-1, :-1], cmap="Oranges", vmin=0, vmax=1.2, interpolation="nearest")
    right.set_title(f"first layer's masks, {len(units)} of {len(mask):,} units:\neach tile is the image, "
                    "dark pixels are kept", fontsize="medium")  # fmt: skip
    right.axis("off")
    return fig


if __name__ == "__main__":
    raise SystemExit(main())
