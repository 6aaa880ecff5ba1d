"""On eight virtual devices: the masks of one device, by all-reduces only, in little scratch memory."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sharded_cases

HERE = pathlib.Path(__file__).parent
KINDS = ["Explicit", "Auto"]


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    """Figures and masks by kind of mesh, from a process of its own (the number of devices can't change in this one)."""
    folder = tmp_path_factory.mktemp("sharded")
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "sharded_script.py"), str(folder), *KINDS],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    masks = {}
    for kind in KINDS:
        with np.load(folder / f"{kind}.npz") as file:
            masks[kind] = dict(file)
    return {kind: (figures[kind], masks[kind]) for kind in KINDS}


@functools.cache
def _on_one(choose, arrays, stack, sparsities):
    case = sharded_cases.Case(choose, [()] * arrays, stack, sparsities)
    return sharded_cases.run(case, sharded_cases.scores(case))[0]


def on_one(name):
    """The masks of one device: the same for all layouts on eight."""
    case = sharded_cases.CASES[name]
    return _on_one(case.choose, len(case.specs), case.stack, case.sparsities)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sharded_cases.CASES)
def test_same_masks_as_on_one_device(on_eight, kind, name):
    figures, masks = on_eight[kind]
    assert "error" not in figures["cases"][name], figures["cases"][name]["error"]
    expected = on_one(name)
    assert any(mask.any() for mask in expected)
    for i, mask in enumerate(expected):
        np.testing.assert_array_equal(masks[f"{name}/{i}"], mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sharded_cases.CASES)
def test_all_reduces_only(on_eight, kind, name):
    """PREDECESSOR row 23: two all-gathers of the whole score array for each mask; an error on explicit meshes."""
    found = on_eight[kind][0]["cases"][name]
    assert "error" not in found, found["error"]
    moved = {n: c for n, c in found["collectives"].items() if n != "all-reduce" and c}
    assert moved == {}
    if name.startswith("packed"):
        assert found["collectives"]["all-reduce"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_scratch_of_an_unstructured_selection_is_within_two_shards(on_eight, kind):
    """Two arrays of a shard's size, and a hundredth for vectors along one axis."""
    shards = on_eight[kind][0]["scratch"]
    assert len(shards) == 4 and max(shards.values()) <= 2.01, shards
