"""On eight virtual devices: the masks of one device, by sums only; laid out as their weights from the start."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import cases
import equinox as eqx
import numpy as np
import pytest

import eqsparse

HERE = pathlib.Path(__file__).parent
NAMES = [f"{name}, {kind}" for name, (_, _, kinds, _) in cases.cases().items() for kind in kinds]


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    """What a process of its own finds (the number of devices can't change in this one), and masks and weights."""
    folder = tmp_path_factory.mktemp("sharded")
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "on_eight.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), dict(np.load(folder / "masks.npz"))


@pytest.fixture(scope="module")
def on_one():
    """Masks and weights by the name of the case, of this process."""
    found = {}

    def trained(name):
        if name not in found:
            pruner, structures, _, way = cases.cases()[name]
            model = cases.model_of(structures, way)
            made = eqx.filter_jit(cases.train)(way, cases.pruner_of(pruner, structures), model, cases.gradients(model))
            start, along, (weights, _) = made
            masks = {f"{path}/{t}": m for path in start for t, m in enumerate([start[path], *along[path]])}
            found[name] = masks | weights
        return found[name]

    return trained


@pytest.mark.parametrize("name", NAMES)
def test_same_masks_and_weights_as_on_one_device(on_eight, on_one, name):
    figures, arrays = on_eight
    assert "error" not in figures["cases"][name], figures["cases"][name]["error"]
    expected = on_one(name.rsplit(", ", 1)[0])
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[f"{name}/{key}"], array)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_score_or_mask_is_gathered(on_eight, name):
    """PREDECESSOR rows 23 and 24."""
    figures = on_eight[0]["cases"][name]
    assert figures == {"moved": {}, "astray": []}


def test_gradients_of_a_mean_over_devices_grow_the_same_weights(on_eight):
    figures, arrays = on_eight
    model, pruner, loss, batch = cases.regression()
    masked, state = pruner.init(model)
    masks = [masked.masks["weight"].bits]
    for _ in range(3):
        masked, state = pruner.step(masked, eqx.filter_jit(eqx.filter_grad(loss))(masked, *batch), state)
        masks.append(masked.masks["weight"].bits)
    assert any((a != b).any() for a, b in itertools.pairwise(masks))
    chosen = cases.pruned(eqsparse.SNIP(distribution=0.75, packed=True), {"x": model})["x"].masks["weight"]
    for kind in cases.KINDS:
        for t, mask in enumerate(masks):
            np.testing.assert_array_equal(arrays[f"by hand {kind}/{t}"], mask)
        np.testing.assert_array_equal(arrays[f"by hand {kind}/chosen"], chosen.bits)
        kept = cases.OUT * cases.IN // 4
        assert figures["by hand"][kind] == {"astray": [], "compiled again": 0, "moved": {}, "kept": kept}


@pytest.mark.parametrize(
    "name, rule, cut, spec",
    [
        ("a byte", "packed=True", "8 along axis 1", ["b", "a"]),
        ("a run", "NM(n=2, m=16)", "16 along axis 1", ["b", "a"]),
        ("a tile", "Block(shape=(16, 4), pool='avg', axes=(0, 1))", "16 along axis 0", [None, ["b", "a"]]),
        ("a tile at the edge", "Block(shape=(4, 4), pool='avg', axes=(0, 1))", "4 along axis 1", ["b", None]),
        ("a run of bytes", "NM(n=2, m=16) with packed=True", "16 along axis 1", ["b", "a"]),
    ],
)
def test_groups_that_shards_cut_are_refused(on_eight, name, rule, cut, spec):
    found = on_eight[0]["refused"][name]
    pruning, beginning = found["messages"]
    assert pruning == beginning
    assert pruning.startswith(f"`{rule}` must have its groups ({cut}) whole on each device")
    assert "Got `head.weight` of shape (" in pruning
    assert found["spec"] == spec
    assert found["astray"] == []


def test_weights_on_other_devices_are_refused(on_eight):
    said = on_eight[0]["other devices"]
    assert said.startswith("`model` must have all its weights on the same devices")
    assert said.endswith("Got `1.weight` on 1 and `0.weight` on 8.")
