"""Settings as arrays: many networks trained in one program, each as it would be alone."""

import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from members import alike, differ, epoch, KEY, masks_of, networks, pick, random_like

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


RUNS = {"structure": eqsparse.NM(2, 4)}
WINDOW = eqsparse.Periodic(1, 4, 2)

# Name → a pruner of its settings, and the settings.
SETTINGS = {
    "fisher": (
        lambda o, sparsity, decay, at: eqsparse.GradualPruning(
            o, criterion=eqsparse.Fisher(decay), distribution=sparsity, schedule=eqsparse.OneShot(at), **RUNS
        ),
        ([0.5, 0.5, 0.25], [0.5, 0.9, 0.9], [3, 4, 4]),
    ),
    "movement": (
        lambda o, sparsity, start, stop, power: eqsparse.MovementPruning(
            o, distribution=sparsity, schedule=eqsparse.Polynomial(start, stop, 1, power), **RUNS
        ),
        ([0.5, 0.25, 0.5], [0, 1, 3], [4, 2, 3], [3.0, 1.0, 1.0]),
    ),
    "random ste": (
        lambda o, sparsity, seed: eqsparse.RandomSTE(o, distribution=sparsity, key=jax.random.key(seed), **RUNS),
        ([0.5, 0.25, 0.5], [0, 1, 2]),
    ),
    "static": (
        lambda o, sparsity, seed: eqsparse.StaticSparse(o, distribution=sparsity, key=jax.random.key(seed), **RUNS),
        ([0.5, 0.25, 0.5], [0, 1, 2]),
    ),
    "sr-ste": (
        lambda o, sparsity, decay: eqsparse.SRSTE(o, distribution=sparsity, decay=decay, **RUNS),
        ([0.5, 0.25, 0.5], [0.0, 0.1, 4.0]),
    ),
    "snfs": (
        lambda o, sparsity, fraction, momentum: eqsparse.SNFS(
            o, distribution=sparsity, schedule=WINDOW, key=KEY, drop_fraction=fraction, momentum=momentum, **RUNS
        ),
        ([0.5, 0.25, 0.5], [1.0, 0.5, 0.5], [0.0, 0.5, 0.9]),
    ),
    "top-kast": (
        lambda o, sparsity, backward, decay: eqsparse.TopKAST(
            o, distribution=sparsity, backward_sparsity=backward, decay=decay, schedule=WINDOW, **RUNS
        ),
        ([0.5, 0.25, 0.5], [0.25, 0.0, 0.5], [0.1, 0.1, 0.0]),
    ),
    "ac/dc": (
        lambda o, sparsity, *when: eqsparse.ACDC(o, distribution=sparsity, schedule=eqsparse.Alternating(*when), **RUNS),
        ([0.5, 0.25, 0.5], [0, 1, 0], [4, 4, 5], [1, 1, 2], [2, 1, 1]),
    ),
    "lottery": (
        lambda o, sparsity, rounds, steps, rewind: eqsparse.LotteryTicket(
            o, distribution=sparsity, rounds=rounds, steps=steps, rewind=rewind, **RUNS
        ),
        ([0.5, 0.25, 0.5], [2, 1, 1], [2, 3, 4], [0, 1, 3]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_of_each(name):
    """Three networks from one, in one program; and each alone, in one program for all."""
    make, settings = SETTINGS[name]
    optim = optax.sgd(0.05, momentum=0.9)
    train = lambda settings, net, grads: epoch(make(optim, *settings), net, grads)
    net = pick(networks([(8, 6)]), 0)
    grads = random_like(net, 0, STEPS)
    _, swept = eqx.filter_jit(eqx.filter_vmap(train, in_axes=(0, None, None)))(
        tuple(map(jnp.asarray, settings)), net, grads
    )
    alone = eqx.filter_jit(train)
    for i, one in enumerate(zip(*settings, strict=True)):
        _, run = alone(tuple(map(jnp.asarray, one)), net, grads)
        np.testing.assert_array_equal(masks_of(swept[0])["0.weight"][i], masks_of(run[0])["0.weight"])
        alike(pick(swept, i), run)
    masks, weights = masks_of(swept[0])["0.weight"], np.asarray(swept[0][0].layer.weight)
    assert differ(np.where(masks, weights, 0))
    assert [int(each[-1].sum()) for each in masks] == [{0.5: 24, 0.25: 36}[sparsity] for sparsity in settings[0]]


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
