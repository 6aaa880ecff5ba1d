"""Runs that are cut go on bit for bit, in another process; checkpoints of other runs are refused; saves may be killed.

(Every pruner at every step, in the same process: `test_algorithms.py`.)
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import resumed_script as script

import eqsparse

KEY = jax.random.key(0)


def test_in_another_process(tmp_path):
    """Losses, weights, masks, the optimiser's state and what pruners remember, from files of three libraries."""
    kinds = ["eqsparse", "equinox"]
    try:
        import orbax.checkpoint as ocp

        kinds.append("orbax")
    except ImportError:
        pass
    uncut = {}
    for i, (name, pruner) in enumerate(script.PRUNERS.items()):

        def save(step, *tree):
            kind = "orbax" if step == 4 and "orbax" in kinds else kinds[(step + i) % 2]
            path = tmp_path / f"{name}-{step}-{kind}"
            if kind == "eqsparse":
                eqsparse.save(path, (pruner, *tree))
            elif kind == "equinox":
                with open(path, "wb") as file:
                    file.write(json.dumps(pruner.to_config()).encode() + b"\n")
                    eqx.tree_serialise_leaves(file, tree)
            else:
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(path, jax.tree.leaves(eqx.filter(tree, eqx.is_array)))

        uncut[name] = script.train(name, *pruner.init(script.make_model()), [], save)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(eqsparse.__file__).parents[1]), *sys.path])}
    subprocess.run([sys.executable, script.__file__, str(tmp_path)], check=True, env=environment)
    for name, want in uncut.items():
        files = list(tmp_path.glob(f"{name}-*.npz"))
        assert len(files) == script.STEPS
        for file in files:
            got = list(np.load(file).values())
            assert [x.dtype for x in got] == [x.dtype for x in want]
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
    masks = want[script.STEPS :]  # the last one's leaves: something has been pruned, and trained
    assert not np.array_equal(masks[0], jax.tree.leaves(eqx.filter(script.make_model(), eqx.is_array))[0])


def rigl(**changed):
    settings = {"distribution": 0.9, "schedule": eqsparse.Periodic(0, 10, 2), "key": KEY}
    return eqsparse.RigL(optax.adam(1e-3), **settings | changed)


OTHERS = {
    "pruner": (
        lambda: eqsparse.SET(optax.adam(1e-3), distribution=0.9, schedule=eqsparse.Periodic(0, 10, 2), key=KEY),
        "Got eqsparse.SET at `0`, where the file holds eqsparse.RigL.",
        "Got 'RigL' at `algorithm`, where the pruner has 'SET'.",
    ),
    "sparsity": (
        lambda: rigl(distribution=0.8),
        "Got 0.8 at `0.distribution.sparsity`, where the file holds 0.9.",
        "Got 0.9 at `distribution.sparsity`, where the pruner has 0.8.",
    ),
    "distribution": (
        lambda: rigl(distribution=eqsparse.ERK(0.9)),
        "Got eqsparse.ERK at `0.distribution`, where the file holds eqsparse.Uniform.",
        "Got 'Uniform' at `distribution.name`, where the pruner has 'ERK'.",
    ),
    "structure": (
        lambda: rigl(structure=eqsparse.Block((2, 2))),
        "Got eqsparse.Block at `0.structure`, where the file holds eqsparse.Unstructured.",
        "Got 'Unstructured' at `structure.name`, where the pruner has 'Block'.",
    ),
    "schedule": (
        lambda: rigl(schedule=eqsparse.Periodic(0, 12, 2)),
        "Got 12 at `0.schedule.stop`, where the file holds 10.",
        "Got 10 at `schedule.stop`, where the pruner has 12.",
    ),
    "drop fraction": (
        lambda: rigl(drop_fraction=0.1),
        "Got 0.1 at `0.transition.drop_fraction`, where the file holds 0.3.",
        "Got 0.3 at `drop_fraction`, where the pruner has 0.1.",
    ),
    "where": (
        lambda: rigl(where="*.weight"),
        "Got ('*.weight',) at `0.where`, where the file holds None.",
        "Got None at `where`, where the pruner has ['*.weight'].",
    ),
    "key": (
        lambda: rigl(key=jax.random.key(1)),
        "Got [0 1] at `0.key`, where the file holds [0 0].",
        "Got [0, 0] at `key`, where the pruner has [0, 1].",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_runs_are_refused(name, tmp_path):
    make, message, of_config = OTHERS[name]
    model = [jnp.zeros((4, 4))]
    eqsparse.save(tmp_path / "run.eqs", (rigl(), model))
    loaded, _ = eqsparse.load(tmp_path / "run.eqs", (rigl(), model))
    assert loaded.to_config() == rigl().to_config()
    with pytest.raises(ValueError) as refused:
        eqsparse.load(tmp_path / "run.eqs", (make(), model))
    assert str(refused.value) == f"`load(like=...)` must fit the file. {message}"
    config = json.loads(json.dumps(rigl().to_config()))
    rigl().check_config(config)
    with pytest.raises(ValueError) as refused:
        make().check_config(config)
    assert str(refused.value).startswith("`check_config(config)` must be that of this ")
    assert str(refused.value).endswith(of_config)


def test_the_state_alone_tells_pruners_apart(tmp_path):
    model, state = rigl().init([eqx.nn.Linear(4, 4, key=KEY)])
    eqsparse.save(tmp_path / "run.eqs", (model, state))
    like = eqx.filter_eval_shape(OTHERS["pruner"][0]().init, [eqx.nn.Linear(4, 4, key=KEY)])
    with pytest.raises(ValueError, match="Got 'SET' at `1.maker`, where the file holds 'RigL'"):
        eqsparse.load(tmp_path / "run.eqs", like)


def test_a_pruner_of_shapes_takes_what_is_in_the_file(tmp_path):
    eqsparse.save(tmp_path / "run.eqs", rigl())
    loaded = eqsparse.load(tmp_path / "run.eqs", eqx.filter_eval_shape(lambda: rigl(distribution=0.1)))
    assert loaded.to_config() == rigl().to_config()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_at_any_time(tmp_path):
    """Whatever is at the path is one of the trees that were saved, whole. NumPy alone: JAX does not outlive a fork."""
    path = tmp_path / "run.eqs"
    tree = lambda i: {"first": np.full(50_000, i), "second": np.full((7, 1000), i, np.int8)}
    eqsparse.save(path, tree(0))
    rng, seen, unfinished = np.random.default_rng(0), set(), 0
    for kills in range(1, 201):
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            i = int(eqsparse.load(path, tree(0))["first"][0])
            while True:
                i = (i + 1) % 100
                eqsparse.save(path, tree(i))
                os.write(writing, b"1")
        os.read(reading, 1)  # once it has saved, at any time of the next save
        start = time.perf_counter()
        os.read(reading, 1)
        time.sleep(rng.random() * (time.perf_counter() - start))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading), os.close(writing)
        there = eqsparse.load(path, tree(0))
        i = int(there["first"][0])
        assert eqx.tree_equal(there, tree(i))
        seen.add(i)
        for leftover in tmp_path.glob(".*.tmp"):
            unfinished += 1
            leftover.unlink()
        if kills >= 50 and unfinished > 10:
            break
    assert len(seen) > 10 and unfinished > 10  # they went on, and were cut on the way
