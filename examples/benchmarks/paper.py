"""The paper's tables 1, 3, 4 and 5, small: the tasks of the examples over several seeds.

python examples/benchmarks/paper.py            # hours: all runs, tables and figures into docs/results/
python examples/benchmarks/paper.py --quick    # minutes: a few steps of tiny networks, to see that it runs

Settings are those of the JaxPruner paper where its scale allows. The learning rate of each task is the one that is best
for the dense run on seeds that no other run has; nothing else is tuned. Runs are kept in OUT/runs.json as they end, and
what is there already with the same settings is not run again.
"""

import os
import sys

if "--quick" in sys.argv:  # compiling is most of it, and takes half of that with little optimisation
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import argparse
import dataclasses
import functools
import json
import threading
import time
from concurrent.futures import as_completed, ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where the examples are

import _common as common
import federated
import jax
import language
import numpy as np
import optax
import reinforcement
import vision
from algorithms import error, holm
from harness import machine
from matplotlib.figure import Figure
from rich.progress import Progress

ROOT = Path(__file__).parents[2]
RATES = {
    "T5": (1e-3, 3e-3, 1e-2),
    "DQN": (2.5e-4, 5e-4, 1e-3),
    "ResNet": (1e-3, 3e-3, 1e-2),
    "ViT": (1e-3, 2e-3, 4e-3),
    "Federated": (1e-3, 3e-3, 1e-2),
}
LOWER_IS_BETTER = {"T5"}
SHOWN = {"T5": 1, "DQN": 1, "ResNet": 100, "ViT": 100, "Federated": 100}  # factors: percent, or as it is
ALGORITHMS = [
    "dense", "RandomPruning", "MagnitudePruning", "SaliencyPruning", "GlobalMagnitudePruning", "MagnitudeSTE",
    "StaticSparse", "SET", "RigL",
]  # fmt: skip
STRUCTURES = {
    "unstructured": (0.8, None),
    "2:4": (0.5, {"name": "NM", "n": 2, "m": 4}),
    "1:4": (0.75, {"name": "NM", "n": 1, "m": 4}),
    "1:8": (0.875, {"name": "NM", "n": 1, "m": 8}),
    # The paper's weights are (in, out), Equinox's (out, in).
    "4x1": (0.8, {"name": "Block", "shape": [1, 4]}),
    "4x4": (0.8, {"name": "Block", "shape": [4, 4]}),
    "8x8": (0.8, {"name": "Block", "shape": [8, 8]}),
}
EMBEDDING_SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)

# What the paper has: table 1 in the order of ALGORITHMS (ViT: the column ViT-B/16), `None` where it was not legible.
PAPER_1 = {
    "T5": (2.57, 3.28, 2.98, 3.52, 5.68, 2.71, 3.21, 3.13, 3.10),
    "DQN": (2589, 1435, 2124, None, None, None, 1157, 1723, 1535),
    "ResNet": (76.60, None, None, None, None, None, 71.15, 74.12, 74.51),
    "ViT": (73.94, 69.67, 73.43, 73.36, 73.24, 74.42, 65.05, 69.83, 71.10),
    "Federated": (86.21, 83.53, 85.74, 85.60, 86.01, 86.16, 83.33, 84.20, 84.64),
}
PAPER_3 = {
    "MagnitudePruning": (73.43, 73.29, 72.35, 44.96, 69.28, 67.61, 68.57),
    "MagnitudeSTE": (74.42, 73.72, 73.50, 71.46, 45.02, 32.74, 43.94),
}
PAPER_4 = {"dense": 2.55, "embedding": 2.56, "encoder": 2.61, "decoder": 2.88, "mlp": 2.67, "all": 2.98}
PAPER_4_EMBEDDING = (2.56, 2.59, 2.58, 2.61, 2.66)
PAPER_5 = {"ViT": (71.52, 70.90), "T5": (2.72, 2.71)}

# Fixed before any run. Of each pair the first is expected to be the better one.
PAIRS_1 = [
    ("MagnitudeSTE", "RandomPruning"), ("MagnitudePruning", "RandomPruning"),
    ("SET", "StaticSparse"), ("RigL", "StaticSparse"),
]  # fmt: skip
PAIRS_3 = {
    **dict.fromkeys(("2:4", "1:4", "1:8"), ("MagnitudeSTE", "MagnitudePruning")),
    **dict.fromkeys(("4x4", "8x8"), ("MagnitudePruning", "MagnitudeSTE")),
}
PAIRS_4 = [("embedding", "all"), ("encoder", "decoder")]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; the same in two tables is run once."""

    task: str
    algorithm: str
    seed: int
    sparsity: float = 0.8
    distribution: str = "Uniform"
    structure: str = "unstructured"
    part: str = "all"

    def pruner(self, optim, steps, every, dense=()):
        more = {"where": language.PARTS[self.part]} if self.part != "all" else {}
        structure = STRUCTURES[self.structure][1]
        if structure:
            more["structure"] = structure
        if self.algorithm in ("SET", "RigL"):
            more["drop_fraction"] = 0.1
        return common.make_pruner(
            self.algorithm, optim, sparsity=self.sparsity, steps=steps, every=every, dense=dense,
            distribution=self.distribution, seed=self.seed, **more,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
    """How large everything is."""

    seeds: int = 5
    vision_steps: int = 600
    vision_dim: int = 64
    vision_depth: int = 4
    language_steps: int = 600
    language_dim: int = 96
    language_depth: int = 2
    vocabulary: int = 4096
    rounds: int = 400
    clients: int = 40
    frames: int = 100_000
    episodes: int = 50

    @classmethod
    def quick(cls):
        return cls(
            seeds=2, vision_steps=8, vision_dim=32, vision_depth=1, language_steps=8, language_dim=32,
            language_depth=1, vocabulary=1024, rounds=8, clients=20, frames=800, episodes=8,
        )  # fmt: skip


class Tasks:
    """The examples, each as a function of a run and a learning rate: a number, and the share of all weights removed."""

    def __init__(self, budget, mnist):
        self.budget = budget
        self.digits = common.digits(mnist)
        self.images = vision.Arrays(*self.digits)
        self.vocabulary, self.text, self.held_out = language.load(None, budget.vocabulary, 64, 32)

    def __call__(self, run, rate):
        how = {
            "ViT": self.vision, "ResNet": self.vision, "T5": self.language, "Federated": self.federated,
            "DQN": self.reinforcement,
        }  # fmt: skip
        model, result = how[run.task](run, rate)
        return float(result), float(common.sparsity_of(model))

    def vision(self, run, rate):
        steps, data = self.budget.vision_steps, self.images
        pruner = run.pruner(falling(rate, steps), steps, max(1, steps // 40), [vision.FIRST])
        model, state = vision.make(
            run.task.lower(), data.shape, data.classes, dim=self.budget.vision_dim, depth=self.budget.vision_depth,
            patch=data.shape[1] // 4, key=jax.random.key(run.seed),
        )  # fmt: skip
        model, _, history = vision.train(model, state, pruner, data, steps=steps, batch=64, seed=run.seed, curve=1)
        return model, history[-1][1]

    def language(self, run, rate):
        steps = self.budget.language_steps
        pruner = run.pruner(falling(rate, steps), steps, max(1, steps // 40))
        model = language.make(
            self.vocabulary.size, dim=self.budget.language_dim, depth=self.budget.language_depth,
            key=jax.random.key(run.seed),
        )  # fmt: skip
        model, history = language.train(
            model, pruner, self.text, self.held_out, steps=steps, batch=32, seed=run.seed, curve=1
        )  # fmt: skip
        return model, history[-1][1]

    def federated(self, run, rate):
        (x, y), held_out = self.digits
        clients = federated.share_out(x, y, self.budget.clients, 2, np.random.default_rng(run.seed))
        pruner = run.pruner(constant(rate), self.budget.rounds, 10)
        model = federated.make(x.shape[-1], 10, dim=16, key=jax.random.key(run.seed))
        model, history = federated.train(
            model, pruner, clients, held_out, rounds=self.budget.rounds, sampled=10, batch=8, rate=0.05,
            seed=run.seed, curve=1,
        )  # fmt: skip
        return model, history[-1][1]

    def reinforcement(self, run, rate):
        name, envs = "MinAtar/Breakout-v1", 8
        env, updates = reinforcement.make_env(name), self.budget.frames // envs
        pruner = run.pruner(constant(rate), updates, max(1, updates // 100))
        model = reinforcement.QNetwork(
            env.observation_space.shape, int(env.action_space.n), key=jax.random.key(run.seed)
        )  # fmt: skip
        model, _, _ = reinforcement.train(
            name, model, pruner, frames=self.budget.frames, envs=envs, batch=64, replay=50_000, seed=run.seed, curve=1
        )  # fmt: skip
        returns = reinforcement.evaluate(name, model, episodes=self.budget.episodes, envs=envs, seed=run.seed)
        return model, returns.mean()


@functools.cache  # the same object for all runs, so that a program is compiled once
def falling(rate, steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0, rate, max(1, steps // 20), steps))


@functools.cache
def constant(rate):
    return optax.adam(rate)


def table_1(seed, quick):
    """Task → algorithm → run."""
    names = ["dense", "MagnitudePruning", "MagnitudeSTE", "RigL"] if quick else ALGORITHMS
    settings = {
        "T5": {"distribution": "ERK"}, "DQN": {"distribution": "ERK", "sparsity": 0.98}, "ResNet": {}, "ViT": {},
        "Federated": {"distribution": "ERK"},
    }  # fmt: skip
    made = {task: {name: Run(task, name, seed, **how) for name in names} for task, how in settings.items()}
    for task, runs in made.items():
        runs["dense"] = Run(task, "dense", seed)
    return made


def table_3(seed, quick):
    """Algorithm → structure → run."""
    names = ["unstructured", "2:4", "4x4"] if quick else list(STRUCTURES)
    return {
        algorithm: {name: Run("ViT", algorithm, seed, STRUCTURES[name][0], structure=name) for name in names}
        for algorithm in ("MagnitudePruning", "MagnitudeSTE")
    }


def table_4(seed, quick):
    """Part, or sparsity of the embedding → run."""
    parts = ["embedding", "all"] if quick else list(language.PARTS)
    runs = {part: Run("T5", "MagnitudeSTE", seed, part=part) for part in parts}
    runs["dense"] = Run("T5", "dense", seed)
    return runs | {s: Run("T5", "MagnitudeSTE", seed, s, part="embedding") for s in EMBEDDING_SPARSITIES}


def table_5(seed, quick):
    """Task → distribution → run."""
    return {
        task: {name: Run(task, "MagnitudeSTE", seed, distribution=name) for name in ("Uniform", "ERK")}
        for task in ("ViT", "T5")
    }


def runs_in(table):
    return [run for value in table.values() for run in (runs_in(value) if isinstance(value, dict) else [value])]


def all_runs(seeds, quick):
    """Each once. Neighbours are of different tasks: no two threads compile the same program at the same time."""
    found = {}
    for seed in range(seeds):
        runs = [run for table in (table_1, table_3, table_4, table_5) for run in runs_in(table(seed, quick))]
        by_task = {task: [run for run in dict.fromkeys(runs) if run.task == task] for task in RATES}
        for i in range(max(map(len, by_task.values()))):
            found |= dict.fromkeys(runs[i] for runs in by_task.values() if i < len(runs))
    return list(found)


class Store:
    """What has been found, in a file as runs end: task → learning rate and how it was chosen; run → (number, share
    removed, seconds)."""

    def __init__(self, file, settings):
        self.file, self.settings, self.lock = file, settings, threading.Lock()
        self.rates, self.found = {}, {}
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if stored.get("settings") == settings:
            self.rates = {task: tuple(found) for task, found in stored["rates"].items()}
            self.found = {Run(**run): tuple(result) for run, result in stored["runs"]}

    def add(self, what, result):
        """`what`: a task, or a run."""
        with self.lock:
            (self.found if isinstance(what, Run) else self.rates)[what] = result
            runs = [[dataclasses.asdict(run), result] for run, result in self.found.items()]
            text = json.dumps({"settings": self.settings, "rates": self.rates, "runs": runs}, indent=1)
            self.file.write_text(text + "\n", encoding="utf-8")

    def values(self, table, seeds, *names):
        """The numbers of a cell, one for each seed, as they are shown."""

        def cell(seed):
            run = table(seed)
            for name in names:
                run = run[name]
            return SHOWN[run.task] * self.found[run][0]

        return np.array([cell(seed) for seed in range(seeds)])


def tuned(tasks, which, seeds=(1000, 1001)):
    """The learning rate at which the dense run of a task is best, and what each gave."""
    sign = -1 if which in LOWER_IS_BETTER else 1
    found = {rate: float(np.mean([tasks(Run(which, "dense", s), rate)[0] for s in seeds])) for rate in RATES[which]}
    best = max(found, key=lambda rate: sign * found[rate])
    return best, ", ".join(f"{rate:g}: {SHOWN[which] * number:.3g}" for rate, number in found.items())


def shown(values, digits):
    return f"{values.mean():.{digits}f} ± {error(values):.{digits}f}"


def markdown(head, rows):
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]) + "\n"


def pairs_of(store, seeds, quick):
    """Label, and by how much the first is better, for each seed: of the pairs that have run."""
    t1, t3, t4 = (functools.partial(t, quick=quick) for t in (table_1, table_3, table_4))
    better = lambda task, a, b: b - a if task in LOWER_IS_BETTER else a - b
    for task, runs in t1(0).items():
        for a, b in PAIRS_1:
            if {a, b} <= set(runs):
                yield (
                    f"table 1, {task}: `{a}` > `{b}`",
                    better(task, store.values(t1, seeds, task, a), store.values(t1, seeds, task, b)),
                )
    for structure, (a, b) in PAIRS_3.items():
        if structure in t3(0)[a]:
            ours = [store.values(t3, seeds, name, structure) for name in (a, b)]
            yield f"table 3, {structure}: `{a}` > `{b}`", better("ViT", *ours)
    for a, b in PAIRS_4:
        if {a, b} <= set(t4(0)):
            ours = [store.values(t4, seeds, name) for name in (a, b)]
            yield f"table 4: {a} sparse better than {b} sparse", better("T5", *ours)


def page(store, tasks, seeds, args):
    """The tables, as Markdown."""
    from scipy import stats

    t1, t3, t4, t5 = (functools.partial(t, quick=args.quick) for t in (table_1, table_3, table_4, table_5))
    digits = {"T5": 3, "DQN": 1, "ResNet": 1, "ViT": 1, "Federated": 1}
    removed = lambda table, *names: store.found[functools.reduce(lambda t, n: t[n], names, table(0))][1]
    budget = tasks.budget
    data = f"MNIST ({len(tasks.digits[0][1]):,} images)" if args.mnist else "scikit-learn's digits"
    out = ["# The paper's experiments, small\n"]
    if args.quick:
        out.append("**Made with `--quick`: a few steps of tiny networks. The numbers mean nothing.**\n")
    out.append(
        f"Made by `python examples/benchmarks/paper.py{' --quick' if args.quick else ''}"
        f"{' --mnist DIR' if args.mnist else ''}`: mean over {seeds} seeds and its standard error, beside what the "
        "[JaxPruner paper](https://arxiv.org/abs/2304.14082) has at its scale. Images: " + data + ". T5: "
        f"{len(tasks.text.tokens):,} tokens of Python's help, a vocabulary of {tasks.vocabulary.size:,}, in nats for a "
        "token (lower is better); DQN: return in MinAtar's Breakout; all others: accuracy on test images, percent. "
        f"{budget.vision_steps} steps (ViT, ResNet), {budget.language_steps} steps (T5), {budget.rounds} rounds "
        f"(Federated), {budget.frames:,} frames (DQN). {machine()}.\n"
    )
    rates = "; ".join(
        f"{task} {rate:g} ({how})" for task in RATES if task in store.rates for rate, how in [store.rates[task]]
    )
    chosen = "as they are" if args.quick else "the best for the dense run on seeds of their own"
    out.append(f"Learning rates, {chosen}: {rates}.\n")

    out.append(
        "## Table 1: algorithms\n\n80% sparse (DQN 98%); ERK in T5, DQN and Federated, else uniform with the first "
        "convolution dense. The paper: T5-Base on C4, MsPacman, ResNet-50 and ViT-B/16 on ImageNet, EMNIST.\n"
    )
    rows = []
    for i, name in enumerate(ALGORITHMS):
        if name not in t1(0)["ViT"]:
            continue
        row = [name if name == "dense" else f"`{name}`"]
        for task in RATES:
            theirs = PAPER_1[task][i]
            row += [shown(store.values(t1, seeds, task, name), digits[task]), "–" if theirs is None else str(theirs)]
        rows.append(row)
    out.append(markdown(["", *(cell for task in RATES for cell in (task, "paper"))], rows))

    out.append("## Table 3: structures\n\nViT, uniform; blocks as (inputs × outputs), N:M along the inputs.\n")
    rows = []
    for i, name in enumerate(STRUCTURES):
        if name in t3(0)["MagnitudeSTE"]:
            row = [name, f"{100 * removed(t3, 'MagnitudeSTE', name):.1f}"]
            for algorithm in t3(0):
                row += [shown(store.values(t3, seeds, algorithm, name), 1), str(PAPER_3[algorithm][i])]
            rows.append(row)
    heads = [cell for algorithm in t3(0) for cell in (f"`{algorithm}`", "paper")]
    out.append(markdown(["", "% of all weights removed", *heads], rows))
    out.append("![Structures](structures.svg)\n")

    out.append("## Table 4: parts of the encoder-decoder\n\n`MagnitudeSTE`, 80% of a part, then more and more of the "
               "embedding.\n")  # fmt: skip
    paper = PAPER_4 | dict(zip(EMBEDDING_SPARSITIES, PAPER_4_EMBEDDING, strict=True))
    rows = [
        [part if isinstance(part, str) else f"embedding, {part:.0%}", f"{100 * removed(t4, part):.1f}",
         shown(store.values(t4, seeds, part), 3), str(paper[part])]
        for part in paper if part in t4(0)
    ]  # fmt: skip
    out.append(markdown(["", "% of all weights removed", "loss", "paper"], rows))

    out.append("## Table 5: distributions\n\n`MagnitudeSTE`, 80%.\n")
    rows = []
    for task in t5(0):
        uniform, erk = (store.values(t5, seeds, task, name) for name in ("Uniform", "ERK"))
        low, high = stats.t.interval(0.95, seeds - 1, (erk - uniform).mean(), max(error(erk - uniform), 1e-12))
        place, theirs = digits[task], PAPER_5[task]
        rows.append([task, shown(uniform, place), str(theirs[0]), shown(erk, place), str(theirs[1]),
                     f"{(erk - uniform).mean():+.{place}f} ({low:+.{place}f} to {high:+.{place}f})"])  # fmt: skip
    out.append(markdown(["", "uniform", "paper", "ERK", "paper", "difference (95% interval)"], rows))

    pairs = dict(pairs_of(store, seeds, args.quick))
    p = holm(np.array([p_value(d, stats) for d in pairs.values()]))
    out.append(
        "## What agrees\n\nPairs fixed before any run, the first expected to be better; one-sided paired t-tests over "
        f"the seeds, Holm's correction for {len(pairs)} tests.\n"
    )
    rows = [
        [label, f"{d.mean():+.3g}", f"{q:.3f}", "yes" if q < 0.05 else "other way" if d.mean() < 0 else "not shown"]
        for (label, d), q in zip(pairs.items(), p, strict=True)
    ]
    out.append(markdown(["expected", "better by", "p (Holm)", "shown"], rows))
    yes, other = (sum(row[-1] == word for row in rows) for word in ("yes", "other way"))
    out.append(
        f"{yes} of {len(pairs)} are shown, {other} come out the other way, for the rest {seeds} seeds do not tell. "
        "What is different from the paper: networks of a few hundred thousand weights in place of tens or hundreds of "
        "millions, data that fit into a few MB, minutes in place of days; so networks are less overparametrised for "
        "their task, and masks have a few hundred steps to settle.\n"
    )
    return "\n".join(out)


def p_value(difference, stats):
    """Of a one-sided paired t-test; 1 where the runs do not differ at all."""
    if len(difference) < 2 or np.ptp(difference) == 0:
        return 1.0
    return float(stats.t.sf(difference.mean() / error(difference), len(difference) - 1))


def draw_structures(store, seeds, quick, file):
    table = functools.partial(table_3, quick=quick)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for algorithm, color in zip(table(0), common.COLORS, strict=False):
        names = list(table(0)[algorithm])
        cells = [store.values(table, seeds, algorithm, name) for name in names]
        means, errors = [c.mean() for c in cells], [error(c) for c in cells]
        axes.errorbar(range(len(names)), means, errors, fmt="o", color=color, label=algorithm)
    dense = store.values(functools.partial(table_1, quick=quick), seeds, "ViT", "dense").mean()
    axes.axhline(dense, color="black", lw=1, ls=":", label="dense")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("accuracy, % (mean, standard error)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of tiny networks, fewer cells, two seeds")
    parser.add_argument("--seeds", type=int, help="(5)")
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="images of MNIST instead of scikit-learn's digits")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="runs side by side (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(docs/results; with --quick paper-quick)")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 2:
        parser.error(f"--seeds must be at least 2. Got {args.seeds}.")
    out = args.out or (Path("paper-quick") if args.quick else ROOT / "docs" / "results")
    out.mkdir(parents=True, exist_ok=True)

    budget = Budget.quick() if args.quick else Budget()
    if args.seeds:
        budget = dataclasses.replace(budget, seeds=args.seeds)
    tasks = Tasks(budget, args.mnist)
    size = {name: value for name, value in dataclasses.asdict(budget).items() if name != "seeds"}
    store = Store(out / "runs.json", {**size, "mnist": args.mnist is not None, "tuned": not args.quick})

    began = time.perf_counter()
    with Progress() as progress, ThreadPoolExecutor(args.threads) as threads:

        def collect(what, jobs, work):
            """Stores what `work` gives for each job, as they end. One that fails ends all."""
            bar = progress.add_task(what, total=len(jobs))
            waiting = {threads.submit(work, job): job for job in jobs}
            try:
                for done in as_completed(waiting):
                    store.add(waiting[done], done.result())
                    progress.advance(bar)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

        def go(run):
            start = time.perf_counter()
            return *tasks(run, store.rates[run.task][0]), time.perf_counter() - start

        if args.quick:
            store.rates = {task: (rates[1], "not tuned") for task, rates in RATES.items()}
        collect("learning rates", [task for task in RATES if task not in store.rates], lambda task: tuned(tasks, task))
        collect("runs", [run for run in all_runs(budget.seeds, args.quick) if run not in store.found], go)

    text = page(store, tasks, budget.seeds, args)
    (out / "paper.md").write_text(text, encoding="utf-8")
    draw_structures(store, budget.seeds, args.quick, out / "structures.svg")
    print(text)
    print(f"Written to {out} after {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
