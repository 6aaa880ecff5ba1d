"""The example of a language model, in its parts: the text, the losses, recovery, what is said of orders."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

SCRIPT = Path(__file__).parents[1] / "examples" / "post_training.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("post_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text(example, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abc\n" * 400, encoding="utf-8")
    return example.Text(file, rows=2)


def test_the_last_tenth_is_held_out(example, text, tmp_path):
    assert text.alphabet == ["\n", "a", "b", "c"] and len(text.train) == 1440 and text.held_out.shape == (2, 65)
    assert text.read(text.held_out.ravel()) == ("abc\n" * 33)[:130]
    rows = text.batch(np.random.default_rng(0), 5)
    assert rows.shape == (5, 65)
    np.testing.assert_array_equal((rows[:, 1:] - rows[:, :-1]) % 4, 1)  # one after the other
    file = tmp_path / "short.txt"
    file.write_text("too short", encoding="utf-8")
    with pytest.raises(SystemExit, match="there must be 650 characters at least. Got 9."):
        example.Text(file, rows=2)


def test_losses_by_hand_and_recovery(example, text):
    """Both losses in NumPy; a pruned model trained on comes nearer to the teacher and keeps its masks."""
    model = example.LanguageModel(4, 8, 1, jax.random.key(0))
    pruned = eqsparse.MagnitudePruning(distribution=0.7, where="blocks.*").prune(model)
    rows = text.held_out
    of = lambda m: np.asarray(jax.vmap(m)(rows[:, :-1]), np.float64)
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_softmax(of(pruned)), rows[:, 1:, None], axis=-1).mean()
    student, teacher = log_softmax(of(pruned) / 2), log_softmax(of(model) / 2)
    apart = (np.exp(teacher) * (teacher - student)).sum(-1).mean()
    losses = jax.jit(lambda rows: (example.text_loss(pruned, rows), example.distill_loss(pruned, model, rows)))(rows)
    np.testing.assert_allclose(losses, (nats, 0.5 * nats + 0.5 * 4 * apart), rtol=1e-5)

    recovered = example.recover(pruned, model, eqsparse.NoPruning(optax.adam(1e-2)), text, 5, 0, lambda: None)
    assert float(example.distill_loss(recovered, model, rows)) < losses[1]
    for path, mask in eqsparse.get_masks(pruned).items():
        np.testing.assert_array_equal(mask, eqsparse.get_masks(recovered)[path])
    found = example.written(model, jnp.asarray(rows[0, :64]), 7, jax.random.key(1))
    assert found.shape == (7,) and set(np.asarray(found).tolist()) <= {0, 1, 2, 3}


def test_table_orders_and_figure(example, tmp_path):
    results = example.Results(["magnitude", "magnitude, rows", "Wanda", "RIA", "SparseGPT"])
    results.dense = [1.0, 2.0]
    for i, levels in enumerate(results.pruned.values()):
        for losses in levels.values():
            losses += [5.0 - i, 5.0 + i]
    lines = list(results.orders())
    better = ["SparseGPT < RIA", "SparseGPT < Wanda", "RIA < magnitude", "Wanda < magnitude"]
    better += ["RIA < magnitude, rows", "Wanda < magnitude, rows"]
    assert lines[0] == "50%: " + ", ".join(f"{pair} 1/2" for pair in better)
    assert [line[:3] for line in lines] == ["50%", "60%", "70%", "2:4"]
    assert results.table("").row_count == 6
    results.figure().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "argv, message", [(["--width", "6"], "a multiple of 4"), (["--text", "nowhere"], "there is no file nowhere")]
)
def test_wrong_arguments(example, argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        example.main(argv)
    assert message in capsys.readouterr().err
