"""Records against counts that NumPy makes of the same masks."""

import csv
import io
import itertools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse
from eqsparse import get_masks, History, MaskedLinear, set_masks
from eqsparse._report import history as module

KEY = jax.random.key(0)
SIZES = {"0.weight": 6 * 10, "1.weight": 4 * 6}


def two_layers(packed):
    return [MaskedLinear(10, 6, key=KEY, packed=packed), MaskedLinear(6, 4, key=KEY, packed=packed)]


def some_masks(seed):
    draw = np.random.default_rng(seed).random
    return {"0.weight": draw((6, 10)) < 0.3, "1.weight": draw((4, 6)) < 0.6}


@pytest.mark.parametrize("packed", [False, True])
def test_counts(packed, monkeypatch):
    monkeypatch.setattr(module, "_PENDING", 2)  # so that some are fetched on the way
    history, model = History(every=2), two_layers(packed)
    steps = [some_masks(seed) for seed in range(14)]
    for i, masks in enumerate(steps):
        history.add(set_masks(model, masks), loss=jnp.float32(i), rate=0.5)
    seen = steps[::2]
    assert len(history) == 7 and len(history._pending) < 4
    assert [row["step"] for row in history.rows] == list(range(0, 14, 2))
    assert [row["loss"] for row in history.rows] == list(range(0, 14, 2)) and history.last()["rate"] == 0.5
    for paths, rows in [(SIZES, history.rows), *(([path], history.layers[path]) for path in SIZES)]:
        flat = [np.concatenate([masks[path].reshape(-1) for path in paths]) for masks in seen]
        for i, row in enumerate(rows):
            now, before = flat[i], flat[max(i - 1, 0)]
            assert row["sparsity"] == (~now).sum() / now.size
            assert row["churn"] == (now & ~before).sum() / now.sum()
            assert row["explored"] == np.any(flat[: i + 1], axis=0).mean()


def test_in_a_loop_that_donates_with_any_pruner():
    """Of `RigL`, whose masks move at steps 0, 2 and 4; buffers of the history outlive those of the model."""
    schedule = eqsparse.Periodic(0, 4, 2)
    pruner = eqsparse.RigL(optax.sgd(0.1), distribution=0.5, schedule=schedule, key=KEY)
    model, state = pruner.init(eqx.nn.MLP(8, 2, 16, 1, key=KEY))
    x = jax.random.normal(KEY, (16, 8))

    @eqx.filter_jit(donate="all")
    def step(model, state):
        loss, grads = eqx.filter_value_and_grad(lambda model: (jax.vmap(model)(x) ** 2).mean())(model)
        return *pruner.step(model, grads, state), loss

    history, masks = History(), []
    history.add(model, state, loss=jnp.nan)
    masks.append({path: np.asarray(mask) for path, mask in get_masks(model).items()})
    for _ in range(6):
        model, state, loss = step(model, state)
        history.add(model, state, loss=loss)
        masks.append({path: np.asarray(mask) for path, mask in get_masks(model).items()})
    assert [row["step"] for row in history.rows] == list(range(7))
    new = [sum(int((now[p] & ~old[p]).sum()) for p in now) for old, now in itertools.pairwise(masks)]
    assert [round(row["churn"] * 80) for row in history.rows] == [0, *new] and new[0] > 0 == new[1]
    assert [row["sparsity"] for row in history.rows] == [0.5] * 7


def test_masks_of_as_optax():
    params = {"dense": {"kernel": jnp.arange(32.0).reshape(4, 8), "bias": jnp.zeros(8)}}
    pruner = eqsparse.MagnitudePruning(optax.sgd(0.0), distribution=0.75, schedule=eqsparse.OneShot(0))
    tx = pruner.as_optax()
    state = tx.init(params)
    history = History()
    history.add(params, state)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    history.add(params, (state,))
    assert [(row["step"], row["sparsity"]) for row in history.rows] == [(0, 0), (1, 0.75)]
    assert list(history.layers) == ["dense.kernel"]


def filled():
    history, model = History(), two_layers(False)
    for seed in range(3):
        history.add(set_masks(model, some_masks(seed)), loss=float(seed))
    return history


def test_text(tmp_path):
    history = filled()
    plain = history.to_dict()
    assert json.loads(json.dumps(plain)) == plain and list(plain) == ["rows", "layers"]
    text = history.to_csv(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text() == text
    read = list(csv.DictReader(io.StringIO(text)))
    names = ["step", "sparsity", "churn", "explored", "loss", "sparsity 0.weight", "sparsity 1.weight"]
    assert list(read[0]) == names and [float(row["loss"]) for row in read] == [0, 1, 2]
    assert [float(row["sparsity 1.weight"]) for row in read] == [row["sparsity"] for row in plain["layers"]["1.weight"]]
    assert "3 records" in repr(history) and "loss=2" in repr(history)
    assert repr(History()) == "History of 0 records" and History().to_csv().startswith("step,sparsity,churn,explored")
    assert History().rows == [] and History().layers == {}


def test_figure(tmp_path):
    pytest.importorskip("matplotlib.figure")
    history = filled()
    figure = history.plot(tmp_path / "run.png")
    loss, sparsity, churn, explored = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [0, 1, 2] and (tmp_path / "run.png").stat().st_size > 1000
    for axis, name in ((sparsity, "sparsity"), (churn, "churn"), (explored, "explored")):
        lines = [line.get_ydata().tolist() for line in axis.lines]
        wanted = [*history.layers.values(), history.rows]
        assert lines == [[row[name] for row in rows] for rows in wanted]
    with pytest.raises(ValueError, match=r"`History.plot\(target=...\)` must be a path or `None`. Got 3"):
        history.plot(3)


@pytest.mark.own_message
def test_errors():
    history, model = History(), two_layers(False)
    with pytest.raises(ValueError, match=r"`History\(every=...\)` must be a whole number of at least 1. Got 0"):
        History(every=0)
    for method in (history.plot, history.last):
        with pytest.raises(ValueError, match="needs a record at least"):
            method()
    with pytest.raises(ValueError, match=r"`History.add\(model=...\)` must hold masked layers, .* Got Linear"):
        history.add(eqx.nn.Linear(2, 2, key=KEY))
    with pytest.raises(ValueError, match=r"`History.add\(loss=...\)` must be one number, .* Got shape \(3,\)"):
        history.add(model, loss=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`History.add\(churn=...\)` must be one number, under another name"):
        history.add(model, churn=1.0)
    history.add(model, loss=1.0)
    with pytest.raises(ValueError, match="must have the same masks and names at each record"):
        history.add(model)
    with pytest.raises(ValueError, match="must have the same masks and names at each record"):
        history.add(model[:1], loss=1.0)


def test_within_a_compiled_function():
    """An error, and what was recorded before is still there."""
    pruner = eqsparse.MagnitudePruning(optax.sgd(0.1), distribution=0.5)
    model, state = pruner.init(eqx.nn.Linear(4, 4, key=jax.random.key(0)))
    history = eqsparse.History()
    history.add(model, state, loss=1.0)
    for run in (
        lambda model, state, loss: history.add(model, state, loss=loss),
        lambda _, __, loss: history.add(model, state, loss=loss),
    ):
        with pytest.raises(ValueError, match=r"`History.add` must be given arrays, not tracers: call it outside"):
            eqx.filter_jit(run)(model, state, jnp.float32(1))
    history.add(model, state, loss=2.0)
    assert [row["loss"] for row in history.rows] == [1.0, 2.0] and [row["step"] for row in history.rows] == [0, 0]


def test_values_that_are_no_numbers_ensembles_and_donated_values():
    model = [eqsparse.MaskedLinear(4, 3, key=jax.random.key(0))]
    history = eqsparse.History()
    with pytest.raises(ValueError, match=r"`History.add\(loss=...\)` must be one number.* Got None"):
        history.add(model, loss=None)
    with pytest.raises(ValueError, match=r"`History.add\(loss=...\)` must be one number.* Got 'low'"):
        history.add(model, loss="low")
    value = jnp.float32(2.0)
    history.add(model, loss=value)
    value.delete()  # as a donated step does
    assert history.last()["loss"] == 2
    pruner = eqsparse.StaticSparse(distribution=0.5, key=jax.random.key(0))
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))
    with pytest.raises(
        ValueError, match=r"`History.add\(state=...\)` must be of one model.* Got a step of shape \(2,\)"
    ):
        eqsparse.History().add(*eqx.filter_vmap(pruner.init)(make(jax.random.split(jax.random.key(1), 2))))
