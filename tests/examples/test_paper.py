"""The paper's tables from runs that are made up: what stands where, and what the tests say."""

import argparse
import dataclasses
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(FOLDER / "benchmarks")
    pytest.importorskip("gymnasium")
    runs, page = (importlib.import_module(name) for name in ("_paper_runs", "_paper_page"))
    return SimpleNamespace(**vars(runs) | vars(page))


@pytest.fixture
def store(paper, tmp_path):
    """The dense run has 0.9, straight-through 0.8, others 0.5, each and a little more by seed; as losses these order the
    other way round."""
    store = paper.Store(tmp_path / "runs", {"steps": 1})
    for run in paper.all_runs(3, quick=False):
        number = {"dense": 0.9, "MagnitudeSTE": 0.8}.get(run.algorithm, 0.5)
        noise = 0.001 * (len(run.algorithm) * (run.seed + 1) ** 2 % 5)
        store.found[run] = (number + noise, 0.0 if run.algorithm == "dense" else run.sparsity, 1.0)
    return store


def test_each_run_once(paper):
    runs = paper.all_runs(2, quick=False)
    assert len(runs) == len(set(runs))
    for table in (paper.table_1, paper.table_3, paper.table_4, paper.table_5):
        assert set(paper.runs_in(table(1, False))) <= set(runs)
    per_seed = 5 * 9 + 12 + 1 + (4 + 1) + 4  # table 1; other structures; ViT by ERK; T5: uniform; embeddings
    assert len(runs) == 2 * per_seed
    assert len(paper.all_runs(1, quick=True)) < per_seed / 2


def test_tables(paper, store):
    store.machines["ViT"] = ["a machine"]
    budget = dataclasses.replace(paper.Budget(), seeds=3)
    tasks = SimpleNamespace(
        budget=budget, digits=((np.zeros(4), np.zeros(4)), None), text=SimpleNamespace(tokens=np.zeros(7)),
        vocabulary=SimpleNamespace(size=5),
    )  # fmt: skip
    text = paper.page(store, tasks, 3, argparse.Namespace(quick=False, mnist=None))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    dense = [100 * store.found[paper.Run("ViT", "dense", seed)][0] for seed in range(3)]
    shown = f"{np.mean(dense):.1f}\u00a0±\u00a0{np.std(dense, ddof=1) / 3**0.5:.1f}"
    assert f"| {shown} | 73.94 |" in text
    # Accuracies: straight-through above random. Losses: below, so worse.
    assert lines["table 1, ViT: `MagnitudeSTE` > `RandomPruning`"].endswith("yes |")
    assert lines["table 1, T5: `MagnitudeSTE` > `RandomPruning`"].endswith("other way |")
    assert "+30" in lines["table 1, ViT: `MagnitudeSTE` > `RandomPruning`"]
    assert "Machines: ViT on a machine" in text
    assert lines["8x8"].endswith("| 43.94 |") and "| 80.0 |" in lines["8x8"]
    assert lines["embedding, 99%"].endswith("| 2.66 |")
    assert "| 2.72 |" in lines["T5"] and "| 2.71 |" in lines["T5"]


def test_runs_are_kept(paper, store):
    run = paper.Run("T5", "dense", 0)
    store.add(run, (1.5, 0.25, 3.0))
    store.add("T5", (0.01, "0.01: 5"))
    again = paper.Store(store.folder, {"steps": 1})
    assert again.rates == {"T5": (0.01, "0.01: 5")} and again.found[run] == (1.5, 0.25, 3.0)
    assert again.found == {run: result for run, result in store.found.items() if run.task == "T5"}
    again.add(other := paper.Run("ViT", "dense", 0), (0.5, 0.0, 1.0))
    both = paper.Store(store.folder, {"steps": 1})
    assert both.found == again.found and other in both.found
    assert [len(both.machines[task]) for task in ("T5", "ViT")] == [1, 1]
    assert paper.Store(store.folder, {"steps": 2}).found == {}


def test_p_value(paper):
    """Differences 1, 2, 3: t is 2√3 with two degrees of freedom, of which the tail is (1 - t / √(t² + 2)) / 2."""
    t = 2 * 3**0.5
    np.testing.assert_allclose(paper.p_value(np.array([1.0, 2, 3])), (1 - t / (t * t + 2) ** 0.5) / 2)
    assert paper.p_value(np.array([-1.0, -2, -3])) > 0.9
    assert paper.p_value(np.array([1.0])) == paper.p_value(np.array([2.0, 2.0])) == 1


def test_structures_are_drawn(paper, store, tmp_path):
    paper.draw_structures(store, 3, False, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert text.count("<svg") == 1 and all(name in text for name in ("<!-- 4x4 -->", "<!-- MagnitudeSTE -->"))


def test_quick(paper, tmp_path, capsys, monkeypatch):
    """One task from the command line to its file; what is there is not run again."""
    main = importlib.import_module("paper").main
    command = ["--quick", "--tasks", "Federated", "--out", str(tmp_path)]
    main(command)
    wanted = [run for run in paper.all_runs(2, quick=True) if run.task == "Federated"]
    stored = json.loads((tmp_path / "runs" / "Federated.json").read_text(encoding="utf-8"))
    assert {paper.Run(**run) for run, _ in stored["runs"]} == set(wanted) and len(wanted) == 8
    assert all(0 <= number <= 1 and seconds > 0 for _, (number, _, seconds) in stored["runs"])
    monkeypatch.setattr(importlib.import_module("federated"), "train", None)
    main(command)
    said = capsys.readouterr().out
    assert "runs of other tasks are not in" in said and "Not run yet, or not all: T5, DQN, ResNet, ViT." in said
    assert re.search(r"\| dense \| – \| .* [\d.]+\u00a0±\u00a0[\d.]+ \| 86.21 \|", said)
