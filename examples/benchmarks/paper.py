"""The paper's tables 1, 3, 4 and 5, small: the tasks of the examples over several seeds.

python examples/benchmarks/paper.py            # hours: all runs, tables and figures into docs/results/
python examples/benchmarks/paper.py --quick    # minutes: a few steps of tiny networks, to see that it runs

Settings are those of the JaxPruner paper where its scale allows. The learning rate of each task is the one that is best
for the dense run on seeds that no other run has; nothing else is tuned. Runs are kept in OUT/runs/ as they end, and
what is there already with the same settings is not run again. `--tasks` runs a part, several at the same time if
wanted; tables have – for what has not run.
"""

import os
import sys

if "--quick" in sys.argv:  # compiling is most of it, and takes half of that with little optimisation
    flags = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import argparse
import dataclasses
import time
from concurrent.futures import as_completed, ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where the examples are

from _paper_page import draw_structures, page
from _paper_runs import all_runs, Budget, RATES, Store, Tasks, tuned
from rich.progress import Progress

ROOT = Path(__file__).parents[2]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of tiny networks, fewer cells, two seeds")
    parser.add_argument("--seeds", type=int, help="(5)")
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="images of MNIST instead of scikit-learn's digits")
    parser.add_argument("--tasks", nargs="+", choices=RATES, metavar="TASK", help=f"some of {', '.join(RATES)} (all)")
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
    store = Store(out / "runs", {**size, "mnist": args.mnist is not None, "tuned": not args.quick})

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
        here = args.tasks or list(RATES)
        untuned = [task for task in here if task not in store.rates]
        collect("learning rates", untuned, lambda task: tuned(tasks, task))
        wanted = all_runs(budget.seeds, args.quick)
        collect("runs", [run for run in wanted if run.task in here and run not in store.found], go)

    text = page(store, tasks, budget.seeds, args)
    (out / "paper.md").write_text(text, encoding="utf-8")
    draw_structures(store, budget.seeds, args.quick, out / "structures.svg")
    print(text)
    if missing := len(set(wanted) - set(store.found)):
        print(f"{missing} runs of other tasks are not in {store.folder} yet.")
    print(f"Written to {out} after {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
