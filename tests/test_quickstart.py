"""The quickstart, as a user runs it but smaller: its table by hand, its figure, its errors."""

import gzip
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import eqsparse

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def quickstart(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mnist(tmp_path):
    """A folder with ten images in the format of MNIST, image i being all of grey 25 * i, with label i."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    write_idx(folder, "t10k", np.arange(10))
    return folder


def write_idx(folder, name, labels):
    labels = np.asarray(labels, np.uint8)
    images = np.broadcast_to(25 * labels[:, None, None], (len(labels), 28, 28)).astype(np.uint8)
    sizes = lambda *numbers: b"".join(n.to_bytes(4, "big") for n in numbers)
    files = {
        "images-idx3": sizes(2051, *images.shape) + images.tobytes(),
        "labels-idx1": sizes(2049, len(labels)) + bytes(labels),
    }
    for kind, content in files.items():
        (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))


def rows(printed):
    """The table's rows: label → cells."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == 4}


def test_table_and_figure(quickstart, tmp_path, capsys):
    figure = tmp_path / "figure.png"
    quickstart.main(["--hidden", "64", "--steps", "160", "--out", str(figure)])
    printed = capsys.readouterr().out

    table = rows(printed)
    dense, pruned, exported = (float(cell.rstrip("%")) for cell in table["accuracy"])
    assert dense > 60 and pruned > 40  # far from the 10% of guessing
    assert pruned == exported
    # Layers of 64·64, 64·64 and 64·10 weights keep 409.6, 409.6 and 64 of them, rounded.
    assert table["weights kept"] == ["8,832 (100%)", "884 (10%)", "884 (10%)"]
    # Four bytes for each weight and each of 138 biases; one for each mask entry; six for each stored weight, and
    # four for each row's pointer, one more than rows.
    assert (4 * (8832 + 138), 4 * (8832 + 138) + 8832) == (35880, 44712)
    assert 6 * 884 + 4 * (65 + 65 + 11) + 4 * 138 == 6420
    assert table["bytes"] == ["35,880 (100%)", "44,712 (125%)", "6,420 (18%)"]
    for label in ("ms, batch of 128", "ms, batch of 1"):
        for cell in table[label]:
            median, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)–([\d.]+)\)", cell).groups())
            assert 0 <= low <= median <= high
    assert "the same label for 360 of 360 test images" in printed
    assert figure.read_bytes().startswith(PNG)


def test_sparsity_on_the_way(quickstart):
    """The figure's curves: full until a quarter of the steps, at the target from three quarters on."""
    train_set, held_out = quickstart.load(None)
    model = eqsparse.sparsify(quickstart.eqx.nn.MLP(64, 10, 20, 1, key=jax.random.key(0)))
    pruner = eqsparse.MagnitudePruning(
        quickstart.optax.sgd(0.1), distribution=0.9, schedule=eqsparse.Polynomial(10, 30, 1)
    )
    ticks = []
    _, (steps, accuracies, sparsities) = quickstart.train(
        model, pruner, train_set, held_out, 40, 0, lambda: ticks.append(None)
    )
    assert len(ticks) == 40
    np.testing.assert_array_equal(steps, np.arange(1, 41))
    assert np.all((accuracies >= 0) & (accuracies <= 1))
    # The masks after step i are those of the update at step i - 1; 1,280 and 200 weights keep 128 and 20.
    expected = np.where(steps <= 11, 0, 0.9 * (1 - (1 - np.clip((steps - 1 - 10) / 20, 0, 1)) ** 3))
    np.testing.assert_allclose(sparsities, expected, atol=1 / 1480)
    assert sparsities[-1] == sparsities[30] == 1 - 148 / 1480


def test_digits_are_held_out(quickstart):
    (x, y), (held_x, held_y) = quickstart.load(None)
    assert (x.shape, y.shape, held_x.shape, held_y.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    assert x.dtype == np.float32 and (x.min(), x.max()) == (0, 1)
    assert set(held_y) == set(range(10))


def test_mnist_of_one_part_is_split(quickstart, mnist):
    (x, y), (held_x, held_y) = quickstart.load(mnist)
    np.testing.assert_array_equal(y, np.arange(8))
    np.testing.assert_array_equal(held_y, [8, 9])
    np.testing.assert_allclose(x, np.repeat(np.arange(8)[:, None] * 25 / 255, 784, axis=1), rtol=1e-6)
    assert held_x.shape == (2, 784)


def test_mnist_of_both_parts_is_not_split(quickstart, mnist, tmp_path, capsys):
    write_idx(mnist, "train", [3, 1, 4, 1, 5])
    (_, y), (_, held_y) = quickstart.load(mnist)
    np.testing.assert_array_equal(y, [3, 1, 4, 1, 5])
    np.testing.assert_array_equal(held_y, np.arange(10))

    figure = tmp_path / "figure.png"
    quickstart.main(["--mnist", str(mnist), "--steps", "2", "--hidden", "3", "--sparsity", "0.5", "--out", str(figure)])
    # 784·3, 3·3 and 3·10 weights keep 1176, 4.5 rounded up, and 15.
    assert rows(capsys.readouterr().out)["weights kept"] == ["2,391 (100%)", "1,196 (50%)", "1,196 (50%)"]
    assert figure.read_bytes().startswith(PNG)


def test_a_wrong_export_fails(quickstart, tmp_path, monkeypatch):
    export = eqsparse.to_bcoo

    def wrong(model):
        values = lambda model: model.layers[0].layer.weight.values
        return quickstart.eqx.tree_at(values, export(model), replace_fn=lambda v: -v)

    monkeypatch.setattr(eqsparse, "to_bcoo", wrong)
    with pytest.raises(SystemExit, match="does not predict the same"):
        quickstart.main(["--steps", "4", "--hidden", "8", "--out", str(tmp_path / "figure.png")])


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--sparsity", "1.2"], "--sparsity must be in [0, 1]"),
        (["--steps", "0"], "--steps and --hidden at least 1"),
        (["--mnist", "nowhere"], "there is no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz in nowhere"),
        (["--out", "nowhere/figure.png"], "there is no folder"),
    ],
)
def test_wrong_arguments(quickstart, argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        quickstart.main(argv)
    assert message in capsys.readouterr().err
