"""Train a small language model, remove half of its weights and more without training, in several ways; compare.

python examples/post_training.py --seeds 3    # on English text that comes with Python, its help pages
python examples/post_training.py --text FILE  # on another
python examples/post_training.py --quick      # a tiny model, to see what there is
"""

import argparse
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import eqsparse

CONTEXT = 64  # characters that the model looks back on
BATCH = 32
LEVELS = {
    "50%": {"distribution": 0.5},
    "60%": {"distribution": 0.6},
    "70%": {"distribution": 0.7},
    "2:4": {"distribution": 0.5, "structure": eqsparse.NM(2, 4)},
}


def by_rows(**settings):
    """By magnitude, all rows alike, as Wanda and RIA do it: so that only what a weight is worth differs."""
    return eqsparse.MagnitudePruning(**{"structure": eqsparse.Unstructured("row")} | settings)


PRUNERS = {
    "magnitude": eqsparse.MagnitudePruning,
    "magnitude, rows": by_rows,
    "Fisher": eqsparse.FisherPruning,
    "Wanda": eqsparse.Wanda,
    "RIA": eqsparse.RIA,
    "SparseGPT": eqsparse.SparseGPT,
}
EXPORTED = "60%"
RECOVERY = optax.adam(1e-3)


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--text", type=Path, metavar="FILE", help="to learn from, in UTF-8, in the place of Python's help pages")
    option("--seeds", type=int, default=1, help="how many models to train, of other initial weights (%(default)s)")
    option("--steps", type=int, default=500, help="training steps of each (%(default)s)")
    option("--recover", type=int, default=20, metavar="STEPS", help="to train on what SparseGPT left (%(default)s)")
    option("--width", type=int, default=96, help="of the model, a multiple of 4 (%(default)s)")
    option("--depth", type=int, default=3, help="blocks of the model (%(default)s)")
    option(
        "--one-pass", action="store_true", help="calibrate on the dense model, not block after block as it is pruned"
    )
    option("--quick", action="store_true", help="20 steps of a model of one block, 32 wide; 5 of recovery")
    option("--out", type=Path, default=Path("post_training"), metavar="DIR", help="figure, model, losses (%(default)s)")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.recover, args.width, args.depth = 20, 5, 32, 1
    if min(args.seeds, args.steps, args.depth, args.width) < 1 or args.recover < 0 or args.width % 4:
        parser.error("--seeds, --steps and --depth must be at least 1, --recover 0, --width a multiple of 4")
    if args.text and not args.text.is_file():
        parser.error(f"--text: there is no file {args.text}")
    return args


class Text:
    """Characters as numbers: what is trained on, and the last tenth, held out as rows of `CONTEXT` and one more."""

    def __init__(self, file, rows):
        if file is None:
            from pydoc_data.topics import topics

            text = "\n".join(topics[name] for name in sorted(topics))
        else:
            text = file.read_text(encoding="utf-8")
        self.alphabet = sorted(set(text))
        index = {character: i for i, character in enumerate(self.alphabet)}
        numbers = np.array([index[character] for character in text], np.int32)
        split = len(numbers) * 9 // 10
        there = (len(numbers) - split) // (CONTEXT + 1)
        if not there:
            raise SystemExit(f"--text: there must be {10 * (CONTEXT + 1)} characters at least. Got {len(numbers)}.")
        self.train = numbers[:split]
        self.held_out = numbers[split : split + there * (CONTEXT + 1)].reshape(there, -1)[:rows]

    def batch(self, rng, rows):
        starts = rng.integers(len(self.train) - CONTEXT, size=rows)
        return np.stack([self.train[start : start + CONTEXT + 1] for start in starts])

    def read(self, numbers):
        return "".join(self.alphabet[number] for number in np.asarray(numbers))


class Block(eqx.Module):
    """A layer of a decoder-only transformer: attention to characters before, then two linear layers."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key, 3)
        self.norms = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(4, width, key=keys[0])
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, h: Float[Array, "time width"]) -> Float[Array, "time width"]:
        x = jax.vmap(self.norms[0])(h)
        h = h + self.attention(x, x, x, mask=jnp.tril(jnp.ones((len(h), len(h)), bool)))
        return h + jax.vmap(lambda x: self.down(jax.nn.relu(self.up(self.norms[1](x)))))(h)


class LanguageModel(eqx.Module):
    """Characters up to some place → logits of the next, at each place."""

    characters: eqx.nn.Embedding
    places: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, alphabet, width, depth, key):
        keys = jax.random.split(key, depth + 3)
        table = lambda rows, key: eqx.nn.Embedding(weight=0.1 * jax.random.normal(key, (rows, width)))
        self.characters, self.places = table(alphabet, keys[0]), table(CONTEXT, keys[1])
        self.blocks = [Block(width, key) for key in keys[3:]]
        self.norm, self.head = eqx.nn.LayerNorm(width), eqx.nn.Linear(width, alphabet, key=keys[2])

    def __call__(self, text: Int[Array, " time"]) -> Float[Array, "time alphabet"]:
        h = jax.vmap(self.characters)(text) + jax.vmap(self.places)(jnp.arange(len(text)))
        for block in self.blocks:
            h = block(h)
        return jax.vmap(lambda x: self.head(self.norm(x)))(h)


def text_loss(model, rows):
    """Nats for a character of rows of text."""
    logits = jax.vmap(model)(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def distill_loss(student, teacher, rows, *, share=0.5, temperature=2.0):
    """The loss of text, and by a share how far what the student expects is from what the teacher does.

    [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531): the divergence of logits that are
    divided by a temperature, times its square so that gradients stay of one size.
    """
    softened = lambda model: jax.nn.log_softmax(jax.vmap(model)(rows[:, :-1]) / temperature)
    expected = jax.lax.stop_gradient(softened(teacher))
    apart = optax.losses.kl_divergence_with_log_targets(softened(student), expected).mean()
    return (1 - share) * text_loss(student, rows) + share * temperature**2 * apart


text_loss_of = eqx.filter_jit(text_loss)


def train(model, text, steps, seed, tick):
    """A dense model."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))

    @eqx.filter_jit(donate="all")
    def step(model, state, rows):
        grads = eqx.filter_grad(text_loss)(model, rows)
        updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    rng, state = np.random.default_rng(seed), optim.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(steps):
        model, state = step(model, state, text.batch(rng, BATCH))
        tick()
    return model


@eqx.filter_jit
def recovery_step(pruned, state, pruner, teacher, rows):
    grads = eqx.filter_grad(distill_loss)(pruned, teacher, rows)
    return pruner.step(pruned, grads, state)


def recover(pruned, teacher, pruner, text, steps, seed, tick):
    """A pruned model trained on, with its masks, to what the dense one says."""
    rng = np.random.default_rng(seed)
    pruned, state = pruner.init(pruned)
    for _ in range(steps):
        pruned, state = recovery_step(pruned, state, pruner, teacher, text.batch(rng, BATCH))
        tick()
    return pruned


def row_loss(model, row):
    return text_loss(model, row[None])


def forward(model, rows):
    """How `eqsparse.calibrate` runs the model."""
    return jax.vmap(model)(rows[:, :-1])


def prune(name, model, settings, batches, one_pass):
    """All weights of the blocks, in one of the ways."""
    pruner = PRUNERS[name](where="blocks.*", **settings)
    if name.startswith("magnitude"):
        return pruner.prune(model)
    if name == "Fisher":
        grads = eqsparse.rms_gradients(model, batches[:2], row_loss)
        return pruner.prune(model, grads=grads)
    if one_pass:
        found = eqsparse.calibrate(model, batches, statistics=pruner.statistic, forward=forward, where="blocks.*")
        return pruner.prune(model, statistics=found)
    blocks = [f"blocks.{i}.*" for i in range(len(model.blocks))]
    return eqsparse.prune_sequentially(pruner, model, batches, blocks, forward=forward)


@eqx.filter_jit
def written(model, start, length, key):
    """What the model writes after `start`, character by character."""

    def step(before, key):
        found = jax.random.categorical(key, model(before)[-1] / 0.7)
        return jnp.append(before[1:], found), found

    return jax.lax.scan(step, start, jax.random.split(key, length))[1]


class Results:
    """Losses on held-out text: of the dense models, and name → level → of each seed."""

    def __init__(self, names):
        self.dense = []
        self.pruned = {name: {level: [] for level in LEVELS} for name in names}

    def table(self, title):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, caption="nats a character: mean of the seeds")
        for column in ("", *LEVELS):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        table.add_row("dense", f"{np.mean(self.dense):.3f}")
        for name, levels in self.pruned.items():
            table.add_row(name, *(f"{np.mean(losses):.3f}" for losses in levels.values()))
        return table

    def orders(self):
        """How often SparseGPT is best and magnitude worst, seed by seed."""
        for level, seeds in ((level, len(self.dense)) for level in LEVELS):
            of = lambda name, level=level: np.array(self.pruned[name][level])
            pairs = [("SparseGPT", "RIA"), ("SparseGPT", "Wanda")]
            pairs += [(less, more) for more in ("magnitude", "magnitude, rows") for less in ("RIA", "Wanda")]
            found = [f"{less} < {more} {np.sum(of(less) < of(more))}/{seeds}" for less, more in pairs]
            yield f"{level}: {', '.join(found)}"

    def figure(self):
        fig = Figure(figsize=(7, 3.6), layout="constrained")
        lines, bars = fig.subplots(1, 2, width_ratios=[2, 1], sharey=True)
        percent = [level for level in LEVELS if level.endswith("%")]
        colors = ("#999999", "#444444", "#cc79a7", "#0072b2", "#009e73", "#d55e00", "#e69f00")
        for i, ((name, levels), color) in enumerate(zip(self.pruned.items(), colors, strict=False)):
            lines.plot(percent, [np.mean(levels[level]) for level in percent], "o-", color=color, label=name, ms=4)
            bars.plot([i] * len(self.dense), levels["2:4"], "o", color=color, ms=4)
        for axes, title in ((lines, "share of weights removed"), (bars, "2:4, each seed")):
            axes.axhline(np.mean(self.dense), color="black", lw=1, ls="--")
            axes.set_xlabel(title)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
        bars.set(xticks=[], xlim=(-1, len(self.pruned)))
        lines.set_ylabel("nats a character (dashed: dense)")
        lines.legend(frameon=False)
        return fig


def run_seed(seed, args, text, results, bar):
    """Trains, prunes in all ways, and trains on; the dense model and the one to be exported."""
    held_out = lambda model: float(text_loss_of(model, text.held_out))
    model = LanguageModel(len(text.alphabet), args.width, args.depth, jax.random.key(seed))
    model = train(model, text, args.steps, seed, bar(f"seed {seed}: training", args.steps))
    results.dense.append(held_out(model))

    rng = np.random.default_rng(seed)
    batches = [text.batch(rng, BATCH) for _ in range(1 if args.quick else 4)]
    tick, kept, best = bar(f"seed {seed}: pruning", len(LEVELS) * len(PRUNERS)), {}, {}
    for level, settings in LEVELS.items():
        for name in PRUNERS:
            pruned = prune(name, model, settings, batches, args.one_pass)
            results.pruned[name][level].append(held_out(pruned))
            kept.setdefault(level, set()).add(eqsparse.report(pruned).total["kept"])
            if name == "SparseGPT":
                best[level] = pruned
            tick()
        assert len(kept[level]) == 1, f"unequal counts at {level}: {kept[level]}"

    if args.recover:
        tick, pruner = bar(f"seed {seed}: recovery", len(LEVELS) * args.recover), eqsparse.NoPruning(RECOVERY)
        for level, pruned in best.items():
            recovered = recover(pruned, model, pruner, text, args.recover, seed, tick)
            results.pruned[f"{args.recover} steps on"][level].append(held_out(recovered))
    return model, best


def main(argv=None):
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console, text = Console(), Text(args.text, rows=16 if args.quick else 256)
    results = Results([*PRUNERS, *([f"{args.recover} steps on"] if args.recover else [])])
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:

        def bar(label, total):
            task = progress.add_task(label, total=total)
            return lambda: progress.advance(task)

        runs = []
        for seed in range(args.seeds):
            runs.append(run_seed(seed, args, text, results, bar))
            (args.out / "losses.json").write_text(json.dumps(vars(results), indent=1))  # of the seeds so far

    model, best = runs[0]
    size = sum(mask.size for path, mask in eqsparse.get_masks(best[EXPORTED]).items() if path.startswith("blocks."))
    console.print(results.table(f"{size:,} weights to prune, seeds: {args.seeds}"))
    for line in results.orders():
        console.print(line, soft_wrap=True)
    results.figure().savefig(args.out / "post_training.png", dpi=110)

    exported = eqsparse.export(best[EXPORTED])
    eqsparse.save(args.out / "model.eqs", exported)
    exported = eqsparse.load(args.out / "model.eqs", like=model)
    pruned_loss, loss = (float(text_loss_of(m, text.held_out)) for m in (best[EXPORTED], exported))
    console.print(
        f"\nSparseGPT at {EXPORTED}, exported: {(args.out / 'model.eqs').stat().st_size:,} bytes, "
        f"{eqsparse.nbytes(model):,} dense. Loss {loss:.4f}, pruned {pruned_loss:.4f}.",
        soft_wrap=True,
    )
    if not abs(loss - pruned_loss) <= 1e-4 * pruned_loss:
        raise SystemExit("The exported model does not predict the same.")
    start = jnp.asarray(text.held_out[0, :CONTEXT])
    console.print(f"\nAfter {text.read(start)!r}", markup=False, soft_wrap=True)
    for name, writer in {"dense": model, f"exported, {EXPORTED}": exported}.items():
        found = text.read(written(writer, start, 40 if args.quick else 200, jax.random.key(0)))
        console.print(f"{name}: {found!r}", markup=False, soft_wrap=True)
    console.print(f"Figure, model and losses: {args.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
