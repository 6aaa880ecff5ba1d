"""Every Python block of the README and of the pages in `docs/` runs; links lead somewhere."""

import functools
import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@functools.cache
def run(page):
    """The names defined by the blocks of a page, run in order as one script."""
    names = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        lines_before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the page's own line
        exec(compile(lines_before + block[1], str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page):
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    links = [link for link in links if "://" not in link and link != "tour.md"]  # which is made of the notebook
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tour(monkeypatch):
    """The notebook's cells run, and each but the first is shown with what it drew or printed."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    names, cells = {}, json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in code:
        source = "".join(cell["source"])
        exec(compile(source, "tour.ipynb", "exec"), names)
        assert cell["outputs"] or cell is code[0], source
        assert not any(output["output_type"] in ("error", "stderr") for output in cell["outputs"])
    kept = eqsparse.get_masks(names["pruned"])["layers.0.weight"]
    assert int(kept[:, :4].sum()) > 0.8 * int(kept.sum())  # gradual pruning finds the four inputs that matter
    last = names["history"].last()  # of drop and grow
    assert round(last["sparsity"], 2) == 0.9 and last["explored"] > 0.12


def test_reference_names_all():
    """Each public name has its place in the reference, and one only."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    named = sorted(re.findall(r"^::: eqsparse\.(\w+)$", "\n".join(pages), re.MULTILINE))
    assert named == sorted(name for name in vars(eqsparse) if not name.startswith("_"))


def test_pages_are_in_the_navigation():
    lines = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")) + "\n"
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"]
    assert [page for page in pages if f": {page}\n" not in text] == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_loop_trains_prunes_and_exports(page):
    names = run(ROOT / page)
    sizes = {"layers.0.weight": 64 * 8, "layers.1.weight": 64 * 64, "layers.2.weight": 64}
    kept = {path: int(mask.sum()) for path, mask in eqsparse.get_masks(names["model"]).items()}
    assert kept == {path: round(size / 10) for path, size in sizes.items()}
    assert [layer.weight.nse for layer in names["sparse_model"].layers] == list(kept.values())
    x, y = names["x"], names["y"]
    for model in (names["model"], names["sparse_model"]):
        error = jnp.stack([model(one) for one in x]) - y
        assert float((error**2).mean()) < 0.5 * float((y**2).mean())


def test_your_own_criterion():
    names = run(ROOT / "docs" / "your-own-criterion.md")
    np.testing.assert_array_equal(names["pruned"], [[0, 0, 0, 0], [0, 0, 6, 7]])
    w, g = jnp.array([[1.0, -2.0, 3.0]]), jnp.array([[-5.0, 4.0, 0.0]])
    np.testing.assert_array_equal(names["Between"](0.0).score(w, grads=g), [[1, 2, 3]])
    np.testing.assert_array_equal(names["Between"](1.0).score(w, grads=g), [[5, 8, 0]])


def test_your_own_pruner():
    names = run(ROOT / "docs" / "your-own-pruner.md")
    kept = {path: int(mask.sum()) for path, mask in eqsparse.get_masks(names["model"]).items()}
    assert kept == {"layers.0.weight": 102, "layers.1.weight": 819, "layers.2.weight": 13}
    sticky = names["StickyPruning"](distribution=0.5, schedule=eqsparse.Periodic(0, 9, 1))
    model, state = sticky.init([eqsparse.MaskedLinear(4, 1, mask=jnp.array([[True, True, False, False]]), key=KEY)])
    weights = eqx.tree_at(lambda m: m[0].layer.weight, model, jnp.array([[1.0, 1.0, 1.1, 1.3]]))
    grads = jax.tree.map(jnp.ones_like, eqx.filter(weights, eqx.is_inexact_array))
    model, _ = sticky.step(weights, grads, state)
    np.testing.assert_array_equal(eqsparse.get_masks(model)["0.weight"], [[True, False, False, True]])


def test_saving():
    names = run(ROOT / "docs" / "saving.md")
    assert [layer.weight.nse for layer in names["sparse_model"].layers] == [51, 410, 6]
    assert names["header"]["arrays"][1]["shape"] == [51]
    pruned = names["pruner"].prune(names["make_model"]())  # what came back from safetensors
    for form in (eqsparse.materialise, eqsparse.get_masks):
        assert eqx.tree_equal(form(names["model"]), form(pruned))
    assert int(names["state"].step) == 0 and names["pruner"].to_config()["distribution"]["sparsity"] == 0.9


def test_stacks_and_sweeps():
    names = run(ROOT / "docs" / "stacks-and-sweeps.md")
    assert eqsparse.get_masks(names["deep"])["layers.weight"].shape == (4, 8, 8)
    masks = np.asarray(names["models"].masks["weight"].dense())
    assert masks.sum((1, 2)).tolist() == [8, 8, 8] and not np.array_equal(masks[0], masks[1])
    assert names["counts"].tolist() == [24, 16, 8] and np.isfinite(names["losses"]).all()
    model, state = names["carry"]
    assert int(state.step) == 24 and int(model.masks["weight"].nnz()) == 8
    assert model.weight.dtype == jnp.float32 and float(names["values"][-1]) < 0.1


def test_deploy():
    names = run(ROOT / "docs" / "deploy.md")
    np.testing.assert_allclose(names["logits"], jax.vmap(names["sparse_model"])(jnp.ones((5, 64))), atol=1e-5)


def test_trained_model():
    names = run(ROOT / "docs" / "trained-model.md")
    error, x = names["error"], names["inputs"]
    kept = lambda model: [int(mask.sum()) for mask in eqsparse.get_masks(model).values()]
    assert kept(names["pruned"]) == kept(names["wanda"]) == [round(0.3 * n) for n in (128 * 128, 8 * 128)]
    assert error(names["better"]) < error(names["wanda"]) < error(names["by_magnitude"])
    assert sum(kept(names["by_loss"])) == round(0.3 * (128 * 128 + 8 * 128))
    np.testing.assert_allclose(names["found"]["weight"].count, names["keep"].sum())
    saved = jax.vmap(names["sparse_model"])(x)
    assert saved.shape == (512, 8) and error(names["sparse_model"]) < error(names["wanda"])
    small, dense = (names["folder"] / "small.eqs").stat().st_size, eqsparse.nbytes(names["model"])
    assert small < 0.45 * dense


def test_your_own_structure():
    names = run(ROOT / "docs" / "your-own-structure.md")
    np.testing.assert_array_equal(names["mask"], jnp.array([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]], bool))
    np.testing.assert_array_equal(names["pruned"], jnp.where(names["mask"], names["scores"], 0.0))


def test_other_libraries():
    names = run(ROOT / "docs" / "other-libraries.md")
    assert int((names["params"]["hidden"]["kernel"] != 0).sum()) == 51
    assert bool((names["params"]["out"]["kernel"] != 0).all())


def test_activations():
    names = run(ROOT / "docs" / "activations.md")
    assert int((names["hidden"] != 0).sum(axis=1).max()) == 16 and names["model"][1].sparsity == 0.75


def test_watching():
    """The adapters hand each record on once."""
    names, seen = run(ROOT / "docs" / "watch.md"), []
    history = names["history"]
    assert len(history) == 20 and history.last()["explored"] > 0.2

    class Writer:
        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def log(self, row, step):
            seen.extend((name, value, step) for name, value in row.items())

    for adapter in (names["to_tensorboard"], names["to_wandb"]):
        seen.clear()
        assert adapter(history, Writer(), start=adapter(history, Writer(), 18)) == 20
        wanted = [(name, value, int(row["step"])) for row in history.rows[18:] for name, value in row.items()]
        assert seen == wanted


def test_algorithms_page_names_all():
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    general = {"GradualPruning", "StraightThrough", "DynamicSparse"}
    pruners = [n for n, c in vars(eqsparse).items() if isinstance(c, type) and issubclass(c, eqsparse.AbstractPruner)]
    assert [n for n in pruners if not n.startswith("Abstract") and f"`{n}`" not in text and n not in general] == []


def test_commands_are_marked():
    """`.ci/run` reads the two commands from the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^<!-- (\w+) -->\n```sh\n([^\n]+)\n```$", text, re.MULTILINE))
    assert sorted(commands) == ["quickstart", "tests"]
    assert text.count("```sh") == 2
    assert "python examples/quickstart.py" in commands["quickstart"]
    assert "python -m pytest" in commands["tests"]
