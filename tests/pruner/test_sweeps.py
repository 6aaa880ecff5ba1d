"""Settings as arrays: many networks trained in one program, each as it would be alone."""

import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

SPARSITIES = [0.0, 0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]
FRACTIONS = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 0.2]
STARTS, STOPS, EVERIES = [0, 1, 2, 0, 1, 2, 3, 0], [4, 5, 3, 4, 2, 5, 3, 1], [1, 2, 1, 3, 1, 2, 1, 1]
STEPS = 6


def test_eight_networks_in_one_program():
    """Sparsity, drop fraction, schedule and key, of RigL: the widest of them. One trace for the sweep, and one for
    all eight runs beside it."""
    traced, optim = [], optax.adam(0.02)
    x = jax.random.normal(jax.random.key(1), (16, 6))
    net = [eqx.nn.Linear(6, 10, key=jax.random.key(2))]

    @eqx.filter_jit
    def make(sparsity, fraction, start, stop, every, seed):
        schedule = eqsparse.Periodic(start, stop, every)
        pruner = eqsparse.RigL(
            optim, distribution=eqsparse.ERK(sparsity), drop_fraction=fraction, schedule=schedule, key=jax.random.key(seed)
        )  # fmt: skip
        return pruner, *pruner.init(net)

    def step(pruner, model, state):
        traced.append(1)
        loss, grads = eqx.filter_value_and_grad(lambda m: ((jax.vmap(m[0])(x) - 1) ** 2).mean())(model)
        return *pruner.step(model, grads, state), loss

    settings = [SPARSITIES, FRACTIONS, STARTS, STOPS, EVERIES, [*range(7), 0]]
    swept, alone = eqx.filter_jit(eqx.filter_vmap(step)), eqx.filter_jit(step)
    pruners, models, states = eqx.filter_vmap(make)(*map(jnp.asarray, settings))
    each = [make(*map(jnp.asarray, one)) for one in zip(*settings, strict=True)]
    pick = lambda tree, i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, tree)
    moved = np.zeros(8, bool)
    for _ in range(STEPS):
        before = np.asarray(eqsparse.get_masks(models)["0.weight"])
        models, states, losses = swept(pruners, models, states)
        masks = np.asarray(eqsparse.get_masks(models)["0.weight"])
        moved |= (masks != before).any((1, 2))
        for i, (pruner, model, state) in enumerate(each):
            model, state, loss = alone(pruner, model, state)
            each[i] = pruner, model, state
            np.testing.assert_array_equal(masks[i], eqsparse.get_masks(model)["0.weight"])
            np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
            for a, b in zip(jax.tree.leaves(pick((models, states.optim), i)), jax.tree.leaves((model, state.optim)), strict=True):  # fmt: skip
                np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=1e-5)
    assert [int(mask.sum()) for mask in masks] == [60, 45, 30, 24, 15, 12, 6, 0]
    # Full and empty masks have nothing to swap, nor has a drop fraction of 0 (the first) or the last update.
    assert moved.tolist() == [False, True, True, True, True, True, False, False]
    assert len(traced) == 2


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    path = Path(__file__).parents[2] / "examples" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example(example, tmp_path, capsys):
    out = tmp_path / "figure.png"
    settings = ["--sparsities", "0", "0.9", "0.99", "--seeds", "2", "--steps", "150", "--hidden", "32"]
    example.main([*settings, "--out", str(out)])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if "%" in line and "–" in line]
    # 64·32 + 32·32 + 32·10 weights, in all.
    assert [row[:2] for row in rows] == [["0.0%", "3,392"], ["90.0%", "339"], ["99.0%", "34"]]
    dense, sparse, sparsest = (float(row[2].rstrip("%")) for row in rows)
    assert dense > 70 and dense > sparse > sparsest
    assert "training 6 networks" in printed and out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        example.main(["--sparsities", "1.5"])
