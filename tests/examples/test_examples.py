"""The examples, as a user runs them but tiny: their tables by hand, and what they do with data."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import eqsparse

FOLDER = Path(__file__).parents[2] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def table(printed):
    """The table's rows: label → cells."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 2}


def check(main, argv, tmp_path, capsys):
    """Runs an example; its table, after what all of them show."""
    figure = tmp_path / "figure.png"
    main([*argv, "--out", str(figure)])
    printed = capsys.readouterr().out
    assert figure.read_bytes().startswith(PNG)
    assert "Exported against pruned" in printed
    return table(printed)


def test_vision(example, tmp_path, capsys):
    """Images of a folder that are of two colours, 40 x 34 pixels."""
    from PIL import Image

    for part, count in (("train", 6), ("val", 2)):
        for name, colour in (("dark", (20, 10, 0)), ("light", (255, 230, 210))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 34), colour).save(tmp_path / part / name / f"{i}.png")
    argv = f"--imagenet {tmp_path} --image-size 8 --dim 16 --depth 1 --steps 4 --batch 4 --models resnet".split()
    rows = check(example("vision").main, [*argv, "--distribution", "Uniform", "--sparsity", "0.75"], tmp_path, capsys)
    # Two convolutions and the head are pruned; the stem and three norms of 8 are not.
    weights, other = 2 * 9 * 8 * 8 + 2 * 8, 27 * 8 + 2 * 3 * 8 + 2
    assert rows["resnet, dense"][1] == f"{weights + other:,} (100%)"
    kept = weights // 4 + other
    assert rows["resnet, MagnitudeSTE"][1] == f"{kept:,} ({kept / (weights + other):.0%})"


def test_vision_transformer(example):
    """Two of its weights sparse after four steps; each layer of the stack has its share."""
    vision, common, optax = example("vision"), example("_common"), example("optax")
    data = vision.Arrays(*common.digits())
    model, state = vision.make("vit", data.shape, data.classes, dim=16, depth=2, patch=4, key=jax.random.key(0))
    pruner = common.make_pruner(
        "MagnitudePruning", optax.sgd(0.1), sparsity=0.75, steps=4, every=1, distribution="Uniform",
        where=["blocks.up.weight", "head.weight"],
    )  # fmt: skip
    model, state, history = vision.train(model, state, pruner, data, steps=4, batch=4, seed=0, curve=1)
    masks = {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}
    assert masks["blocks.up.weight"].sum((1, 2)).tolist() == [256, 256] and masks["head.weight"].sum() == 40
    size = sum(x.size for x in jax.tree.leaves(vision.eqx.filter(model, vision.eqx.is_inexact_array)))
    ((steps, accuracy, sparsity),) = history
    assert steps == 4 and 0 <= accuracy <= 1
    np.testing.assert_allclose(sparsity, (2 * 768 + 120) / size)


def test_vision_reads_squares(example, tmp_path):
    """A picture of 8 x 4 pixels, its left half black: squares at both ends, and one mirrored."""
    from PIL import Image

    vision = example("vision")
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "only" / "0.png")
    folder = vision.Folder(tmp_path, 4)
    read = lambda *how: folder._read(tmp_path / "val" / "only" / "0.png", *how)
    np.testing.assert_array_equal(read((0, 0)), np.full((3, 4, 4), -1))
    np.testing.assert_array_equal(read((1, 0)), np.ones((3, 4, 4)))
    middle = np.broadcast_to([-1, -1, 1, 1], (3, 4, 4))
    np.testing.assert_array_equal(read(), middle)
    np.testing.assert_array_equal(read((0.5, 0.5), True), -middle)
    (images, labels), *more = folder.test(3)
    np.testing.assert_array_equal(images, middle[None])
    assert (labels.tolist(), more) == ([0], [])


def test_language(example, tmp_path, capsys):
    argv = "--vocabulary 300 --window 16 --dim 16 --depth 1 --steps 4 --batch 4 --parts embedding".split()
    rows = check(example("language").main, argv, tmp_path, capsys)
    embedding, encoder, decoder = 300 * 16, 4 * 256 + 2 * 16 * 64, 8 * 256 + 2 * 16 * 64
    other = 2 * (3 * 16 + 16 + 65)  # norms, and distances of one head
    total = embedding + encoder + decoder + other
    kept = total - round(0.8 * embedding)
    assert rows["dense"][-2] == f"{total:,} (100%)"
    assert rows["MagnitudeSTE, embedding"][-2] == f"{kept:,} ({kept / total:.0%})"


def test_vocabulary(example):
    """`ab` is met three times, then `abc` twice: the two merges that there is room for."""
    vocabulary = example("language").Vocabulary("abc\nabd\nabc", 2 + 1 + 5 + 2, sentinels=1)
    assert list(vocabulary.ids) == ["\n", "a", "b", "c", "d", "ab", "abc"]
    assert vocabulary.size == 10
    ids = vocabulary.ids
    assert vocabulary.encode("abca?").tolist() == [ids["abc"], ids["a"], 1]


def test_span_corruption(example):
    """Put back where the sentinels are, spans give the window again; each time others."""
    language = example("language")
    data, rng = language.SpanCorruption(np.arange(100, 300), 64), np.random.default_rng(0)
    assert (data.noise, data.spans) == (10, 3)
    for inputs, targets in zip(*data.sample(rng, 20), strict=True):
        assert (len(inputs), len(targets), targets[-1]) == (64 - 10 + 3, 10 + 3 + 1, language.END)
        spans = dict(zip((2, 3, 4), np.split(targets[:-1], np.flatnonzero(targets < 5)[1:-1]), strict=True))
        whole = np.concatenate([spans[i][1:] if i in spans else [i] for i in inputs.tolist()])
        np.testing.assert_array_equal(whole, np.arange(whole[0], whole[0] + 64))


def test_federated(example, tmp_path, capsys):
    argv = "--clients 20 --sampled 4 --rounds 3 --every 1 --dim 4".split()
    rows = check(example("federated").main, argv, tmp_path, capsys)
    weights = 9 * 4 + 9 * 4 * 8 + 16 * (8 * 16) + 16 * 10
    other = 4 + 8 + 16 + 10
    kept = round(0.2 * weights) + other
    assert rows["dense"][1] == f"{weights + other:,} (100%)"
    # Each layer's share is rounded.
    assert abs(int(rows["MagnitudeSTE"][1].split()[0].replace(",", "")) - kept) <= 2


def test_a_round_is_the_mean_of_clients(example, monkeypatch):
    """One client, one batch, no pruning: the server's gradient is the client's, times the client's rate."""
    federated, optax = example("federated"), example("optax")
    model = federated.make(8, 10, dim=2, key=jax.random.key(0))
    x, y = np.ones((2, 1, 4, 1, 8, 8), np.float32), np.zeros((2, 1, 4), np.int32)
    x[1] *= 0.5
    pruner = eqsparse.NoPruning(optax.sgd(1.0))
    start, state = pruner.init(model)
    after, _ = federated.one_round(start, pruner, state, x, y, 0.1)
    one = [federated.eqx.filter_grad(federated.loss)(model, (x[i, 0], y[i, 0])) for i in range(2)]
    expected = model.hidden.weight - 0.1 * (one[0].hidden.weight + one[1].hidden.weight) / 2
    np.testing.assert_allclose(after.hidden.weight, expected, atol=1e-6)


def test_clients_have_few_classes(example):
    labels = np.arange(10).repeat(12)
    images = np.arange(120)
    x, y = example("federated").share_out(images, labels, 10, 2, np.random.default_rng(0))
    assert x.shape == y.shape == (10, 12)
    np.testing.assert_array_equal(np.sort(x, axis=None), images)
    np.testing.assert_array_equal(y, labels[x])
    assert max(len(set(row)) for row in y.tolist()) <= 2


def test_reinforcement(example, tmp_path, capsys):
    pytest.importorskip("gymnasium")
    argv = "--env CartPole-v1 --frames 160 --runs 1 --episodes 2 --batch 8 --replay 100".split()
    rows = check(example("reinforcement").main, argv, tmp_path, capsys)
    weights, other = 4 * 128 + 128 * 2, 130
    assert rows["dense"][-2] == f"{weights + other:,} (100%)"
    # 98% of 768 weights are 752.64; each layer's share is rounded.
    assert abs(int(rows["MagnitudePruning"][-2].split()[0].replace(",", "")) - (other + 15.36)) <= 1


def test_interval(example):
    pytest.importorskip("gymnasium")
    interval = example("reinforcement").interval
    assert interval(np.full((2, 5), 3.0), np.random.default_rng(0)) == (3, 3, 3)
    mean, low, high = interval(np.random.default_rng(1).normal(10, 2, (1, 100)), np.random.default_rng(0))
    assert 0.25 < (high - low) / 2 / (1.96 * 2 / 10) < 1.75 and low < mean < high


def test_post_training(example, tmp_path, capsys, monkeypatch):
    """One level of the four; the model that it exports predicts as the pruned one, or the example ends with an error."""
    post_training = example("post_training")
    monkeypatch.setattr(post_training, "LEVELS", {"2:4": post_training.LEVELS["2:4"]})
    monkeypatch.setattr(post_training, "EXPORTED", "2:4")
    monkeypatch.delitem(post_training.PRUNERS, "Fisher")
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 7) for i in range(3000)), encoding="utf-8")
    with jax.numpy_dtype_promotion("standard"):  # Adam's own count
        post_training.main(["--quick", "--text", str(text), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert f" {losses['dense'][0]:.3f} " in printed
    for name in (*post_training.PRUNERS, "5 steps on"):
        assert re.search(rf"^ *{name} +{losses['pruned'][name]['2:4'][0]:.3f} *$", printed, re.MULTILINE)
    assert (tmp_path / "post_training.png").read_bytes().startswith(PNG)
    assert "SparseGPT at 2:4, exported: " in printed and "exported, 2:4: " in printed


def test_every_algorithm_by_name(example):
    common = example("_common")
    for name in common.ALGORITHMS:
        pruner = common.make_pruner(name, None, sparsity=0.9, steps=40, every=2, dense=["layers.0.weight"])
        assert type(pruner).__name__ == name
    assert {"MagnitudePruning", "RigL", "SNIP", "SparseGPT", "LotteryTicket"} <= set(common.ALGORITHMS)


@pytest.mark.parametrize(
    "name, argv, message",
    [
        ("vision", ["--sparsity", "1.2"], "--sparsity must be in [0, 1]"),
        ("vision", ["--imagenet", "nowhere"], "no folders train and val"),
        ("language", ["--window", "4"], "--window must be at least 8"),
        ("federated", ["--sampled", "99"], "--sampled must be --clients=40 at most"),
        ("federated", ["--out", "nowhere/figure.png"], "there is no folder"),
    ],
)
def test_wrong_arguments(example, name, argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        example(name).main(argv)
    assert message in capsys.readouterr().err
