"""The tables and the figure of `paper.py`, beside the numbers of the paper."""

import functools

import _common as common
import matplotlib
import numpy as np
from _paper_runs import (
    ALGORITHMS,
    all_runs,
    EMBEDDING_SPARSITIES,
    LOWER_IS_BETTER,
    RATES,
    STRUCTURES,
    table_1,
    table_3,
    table_4,
    table_5,
)
from algorithms import error, holm
from matplotlib.figure import Figure
from scipy import stats

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
DIGITS = {"T5": 3, "DQN": 1, "ResNet": 1, "ViT": 1, "Federated": 1}


def page(store, tasks, seeds, args):
    """The tables, as Markdown."""
    tables = (algorithms, structures, parts_of_t5, distributions, agreement)
    return "\n".join([beginning(store, tasks, seeds, args), *(write(store, seeds, args.quick) for write in tables)])


def beginning(store, tasks, seeds, args):
    budget = tasks.budget
    data = f"MNIST ({len(tasks.digits[0][1]):,} images)" if args.mnist else "scikit-learn's digits"
    note = "**Made with `--quick`: a few steps of tiny networks. The numbers mean nothing.**\n\n" if args.quick else ""
    rates = "; ".join(
        f"{task} {rate:g} ({how})" for task in RATES if task in store.rates for rate, how in [store.rates[task]]
    )
    by_machine = {}
    for task in RATES:
        for machine in store.machines.get(task, []):
            by_machine.setdefault(machine, []).append(task)
    machines = "; ".join(f"{', '.join(tasks_of)} on {machine}" for machine, tasks_of in by_machine.items())
    lacking = dict.fromkeys(run.task for run in all_runs(seeds, args.quick) if run not in store.found)
    missing = f"**Not run yet, or not all: {', '.join(lacking)}. They have – here.**\n\n" if lacking else ""
    chosen = "as they are" if args.quick else "the best for the dense run on seeds of their own"
    return (
        f"# The paper's experiments, small\n\n{note}"
        f"Made by `python examples/benchmarks/paper.py{' --quick' if args.quick else ''}"
        f"{' --mnist DIR' if args.mnist else ''}`: mean over {seeds} seeds and its standard error, beside what the "
        "[JaxPruner paper](https://arxiv.org/abs/2304.14082) has at its scale. Images: " + data + ". T5: "
        f"{len(tasks.text.tokens):,} tokens of Python's help, a vocabulary of {tasks.vocabulary.size:,}, in nats for a "
        "token (lower is better); DQN: return in MinAtar's Breakout; all others: accuracy on test images, percent. "
        f"{budget.vision_steps} steps (ViT, ResNet), {budget.language_steps} steps (T5), {budget.rounds} rounds "
        f"(Federated), {budget.frames:,} frames (DQN).\n\n{missing}Machines: {machines}.\n\n"
        f"Learning rates, {chosen}: {rates}.\n"
    )


def algorithms(store, seeds, quick):
    table, rows = functools.partial(table_1, quick=quick), []
    for i, name in enumerate(ALGORITHMS):
        if name not in table(0)["ViT"]:
            continue
        row = [name if name == "dense" else f"`{name}`"]
        for task in RATES:
            theirs = PAPER_1[task][i]
            row += [shown(store.values(table, seeds, task, name), DIGITS[task]), "–" if theirs is None else str(theirs)]
        rows.append(row)
    return (
        "## Table 1: algorithms\n\n80% sparse (DQN 98%); ERK in T5, DQN and Federated, else uniform with the first "
        "convolution dense. The paper: T5-Base on C4, MsPacman, ResNet-50 and ViT-B/16 on ImageNet, EMNIST.\n\n"
    ) + markdown(["", *(cell for task in RATES for cell in (task, "paper"))], rows)


def structures(store, seeds, quick):
    table, rows = functools.partial(table_3, quick=quick), []
    for i, name in enumerate(STRUCTURES):
        if name in table(0)["MagnitudeSTE"]:
            row = [name, removed(store, table(0)["MagnitudeSTE"][name])]
            for algorithm in table(0):
                row += [shown(store.values(table, seeds, algorithm, name), 1), str(PAPER_3[algorithm][i])]
            rows.append(row)
    heads = [cell for algorithm in table(0) for cell in (f"`{algorithm}`", "paper")]
    return (
        "## Table 3: structures\n\nViT, uniform; blocks as (inputs × outputs), N:M along the inputs.\n\n"
        + markdown(["", "% of all weights removed", *heads], rows)
        + "\n![Structures](structures.svg)\n"
    )


def parts_of_t5(store, seeds, quick):
    table = functools.partial(table_4, quick=quick)
    paper = PAPER_4 | dict(zip(EMBEDDING_SPARSITIES, PAPER_4_EMBEDDING, strict=True))
    rows = []
    for part in paper:
        if part in table(0):
            label = part if isinstance(part, str) else f"embedding, {part:.0%}"
            loss = shown(store.values(table, seeds, part), 3)
            rows.append([label, removed(store, table(0)[part]), loss, str(paper[part])])
    first, last = (store.values(table, seeds, EMBEDDING_SPARSITIES[i]).mean() for i in (0, -1))
    said = (
        f"\nFrom {EMBEDDING_SPARSITIES[0]:.0%} to {EMBEDDING_SPARSITIES[-1]:.0%} of the embedding the loss rises by "
        f"{last - first:.2f} here, by {PAPER_4_EMBEDDING[-1] - PAPER_4_EMBEDDING[0]:.2f} in the paper, whose embedding "
        "has 768 numbers for each token.\n"
    )
    return (
        (
            "## Table 4: parts of the encoder-decoder\n\n`MagnitudeSTE`, 80% of a part, then more and more of the "
            "embedding.\n\n"
        )
        + markdown(["", "% of all weights removed", "loss", "paper"], rows)
        + ("" if quick or np.isnan(last) else said)
    )


def distributions(store, seeds, quick):
    table, rows = functools.partial(table_5, quick=quick), []
    for task in table(0):
        uniform, erk = (store.values(table, seeds, task, name) for name in ("Uniform", "ERK"))
        if np.isnan(uniform + erk).any():
            continue
        low, high = stats.t.interval(0.95, seeds - 1, (erk - uniform).mean(), max(error(erk - uniform), 1e-12))
        place, theirs = DIGITS[task], PAPER_5[task]
        difference = f"{(erk - uniform).mean():+.{place}f} ({low:+.{place}f} to {high:+.{place}f})"
        rows.append([task, shown(uniform, place), str(theirs[0]), shown(erk, place), str(theirs[1]), difference])
    head = ["", "uniform", "paper", "ERK", "paper", "difference (95% interval)"]
    return "## Table 5: distributions\n\n`MagnitudeSTE`, 80%.\n\n" + markdown(head, rows)


def agreement(store, seeds, quick):
    pairs = {label: d for label, d in pairs_of(store, seeds, quick) if not np.isnan(d).any()}
    if not pairs:
        return ""
    p = holm(np.array([p_value(d) for d in pairs.values()]))
    rows = [
        [
            label,
            f"{mean:+.3g}",
            f"{q:.3f}" if q >= 0.001 else "< 0.001",
            "yes" if q < 0.05 else "other way" if mean < 0 else "not shown",
        ]
        for (label, d), q in zip(pairs.items(), p, strict=True)
        for mean in [round(d.mean(), 9) + 0.0]  # equal means differ by rounding, or are -0
    ]
    named = lambda word: [row[0].replace("table 1, ", "") for row in rows if row[-1] == word]
    yes, other = named("yes"), named("other way")
    return (
        "## What agrees\n\nPairs fixed before any run, the first expected to be better; one-sided paired t-tests over "
        f"the seeds, Holm's correction for {len(pairs)} tests.\n\n"
        + markdown(["expected", "better by", "p (Holm)", "shown"], rows)
        + f"\n{len(yes)} of {len(pairs)} are shown ({'; '.join(yes) or 'none'}), {len(other)} come out the other way "
        f"({'; '.join(other) or 'none'}), for the rest {seeds} seeds do not tell. "
        "What is different from the paper: networks of a few hundred thousand weights in place of tens or hundreds of "
        "millions, data that fit into a few MB, minutes in place of days; so networks are less overparametrised for "
        "their task, and masks have a few hundred steps to settle.\n"
    )


def removed(store, run):
    """The share of all weights that a run has removed, in percent."""
    return f"{100 * store.found[run][1]:.1f}" if run in store.found else "–"


def shown(values, digits):
    return "–" if np.isnan(values).any() else f"{values.mean():.{digits}f}\u00a0±\u00a0{error(values):.{digits}f}"


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


def p_value(difference):
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
    with matplotlib.rc_context({"svg.hashsalt": "paper"}):  # the same runs make the same file
        figure.savefig(file, metadata={"Date": None})
