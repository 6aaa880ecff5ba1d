"""What `paper.py` runs: the tasks, the runs of each table, and where their results are kept."""

import dataclasses
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import _common as common
import federated
import jax
import language
import numpy as np
import optax
import reinforcement
import vision
from harness import machine

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
    """What has been found, in a file for each task as runs end: the learning rate and how it was chosen; run →
    (number, share removed, seconds); where it ran. Processes that run other tasks can share the folder."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.lock = folder, settings, threading.Lock()
        self.rates, self.found, self.machines = {}, {}, {}
        for task in RATES:
            file = folder / f"{task}.json"
            stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if stored.get("settings") == settings:
                if stored["rate"]:
                    self.rates[task] = tuple(stored["rate"])
                self.machines[task] = stored["machines"]
                self.found |= {Run(**run): tuple(result) for run, result in stored["runs"]}

    def add(self, what, result):
        """`what`: a task, or a run."""
        is_run = isinstance(what, Run)
        task = what.task if is_run else what
        with self.lock:
            (self.found if is_run else self.rates)[what] = result
            machines = self.machines.setdefault(task, [])
            machines += [here] if (here := machine()) not in machines else []
            stored = {
                "settings": self.settings, "machines": machines, "rate": self.rates.get(task),
                "runs": [[dataclasses.asdict(run), result] for run, result in self.found.items() if run.task == task],
            }  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{task}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

    def values(self, table, seeds, *names):
        """The numbers of a cell, one for each seed, as they are shown; NaN where one has not run."""

        def cell(seed):
            run = table(seed)
            for name in names:
                run = run[name]
            return SHOWN[run.task] * self.found[run][0] if run in self.found else np.nan

        return np.array([cell(seed) for seed in range(seeds)])


def tuned(tasks, which, seeds=(1000, 1001)):
    """The learning rate at which the dense run of a task is best, and what each gave."""
    sign = -1 if which in LOWER_IS_BETTER else 1
    mean = lambda rate: float(np.mean([tasks(Run(which, "dense", s), rate)[0] for s in seeds]))
    with ThreadPoolExecutor() as threads:
        found = dict(zip(RATES[which], threads.map(mean, RATES[which]), strict=True))
    best = max(found, key=lambda rate: sign * found[rate])
    return best, ", ".join(f"{rate:g}: {SHOWN[which] * number:.3g}" for rate, number in found.items())
