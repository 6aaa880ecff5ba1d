"""The example that runs over several processes: two find the masks of one."""

import importlib.util
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

import eqsparse

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "distributed.py"
QUICK = ("--steps", "4", "--sparsity", "0.75")


def said(process):
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-4000:]
    return dict(re.findall(r"(processes|kept|masks) (\w+)", out))


def test_two_processes_find_the_masks_of_one():
    """PREDECESSOR row 24: masks that differ from host to host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    begin = lambda *more: subprocess.Popen(
        [sys.executable, str(SCRIPT), *QUICK, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    several = [begin("--processes", "2", "--process", str(i), "--coordinator", address) for i in range(2)]
    one, two, silent = [said(process) for process in (begin(), *several)]
    assert silent == {}
    assert one == {**two, "processes": "1"} and two["processes"] == "2"
    shapes = {"hidden": np.zeros((256, 64)), "last": np.zeros((10, 256))}
    targets = eqsparse.ERK(0.75).targets(shapes)
    assert int(one["kept"]) == sum(round(w.size * (1 - targets[path])) for path, w in shapes.items())


def test_a_wrong_command_is_refused_at_once(capsys):
    spec = importlib.util.spec_from_file_location("distributed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for wrong, rule in (
        (["--processes", "2"], "--coordinator must be given"),
        (["--processes", "3", "--coordinator", "a:1"], "--cpus must be a multiple of the number of processes"),
        (["--batch", "9"], "and --batch of --cpus"),
    ):
        with pytest.raises(SystemExit):
            module.arguments(wrong)
        assert rule in capsys.readouterr().err
