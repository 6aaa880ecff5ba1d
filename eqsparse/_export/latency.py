"""How fast layouts are here: measured once for each shape, and remembered.

What is timed is the very layouts to choose from at their task, compiled, taking turns, and the quickest turn of each
counts: on a busy machine, a median picks whichever was disturbed less. The figures stay in memory and in the user's
cache folder, by device, JAX version, our own kernels, shapes, batch and about how many weights are kept: the same
model gets the same layouts again, and so does one that is trained anew.
"""

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._kernels import fingerprint, pallas_fingerprint, Window
from ._layout import AbstractLayout

_ROUNDS = 9
_FEWEST_SECONDS = 2e-3  # a round repeats what takes less

_known: dict[str, dict[str, float]] = {}


class Products(NamedTuple):
    """With vectors, so many at a time."""

    batch: int

    def run(self, layout: AbstractLayout, x: Array) -> Array:
        return layout.operand() @ x

    def shape_of_one(self, layout: AbstractLayout) -> tuple[int, ...]:
        return (layout.shape[1],)


class Convolutions(NamedTuple):
    """With images, so many at a time."""

    batch: int
    window: Window

    def run(self, layout: AbstractLayout, x: Array) -> Array:
        return layout.convolve(x, self.window)

    def shape_of_one(self, layout: AbstractLayout) -> tuple[int, ...]:
        return (layout.shape[1] // math.prod(self.window.kernel), *self.window.in_sizes)


def seconds_of(layouts: Mapping[str, AbstractLayout], task: Products | Convolutions) -> dict[str, float]:
    """Seconds of the task under `vmap`, by name of the layout."""
    key = _key(layouts, task)
    if key not in _known:
        _known[key] = _read(key, set(layouts)) or _measure(layouts, task)
        _write(key, _known[key])
    return _known[key]


def cache_folder() -> Path:
    """Where figures are kept: `$XDG_CACHE_HOME/eqsparse`, or `~/.cache/eqsparse`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqsparse"


def _measure(layouts: Mapping[str, AbstractLayout], task: Products | Convolutions) -> dict[str, float]:
    first = next(iter(layouts.values()))
    shape = (task.batch, *task.shape_of_one(first))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), first.dtype)
    run = lambda layout, x: jax.vmap(lambda x: task.run(layout, x))(x)
    compiled = {name: jax.jit(run).lower(layout, x).compile() for name, layout in layouts.items()}
    times: dict[str, list[float]] = {name: [] for name in layouts}
    repeats = dict.fromkeys(layouts, 1)
    for i in range(_ROUNDS + 2):
        for name, layout in layouts.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(compiled[name](layout, x))
            each = (time.perf_counter() - start) / repeats[name]
            if i == 1:  # the first call is slower
                repeats[name] = max(1, int(_FEWEST_SECONDS / each))
            elif i > 1:
                times[name].append(each)
    return {name: min(found) for name, found in times.items()}  # what other work adds only lengthens


def _key(layouts: Mapping[str, AbstractLayout], task: Products | Convolutions) -> str:
    device = jax.devices()[0]
    shapes = {name: [str(x.dtype), *x.shape, *map(_rounded, x.values.shape)] for name, x in layouts.items()}
    kernels = {"cpu": fingerprint, "gpu": pallas_fingerprint}.get(device.platform, str)()
    what = ["quickest", device.platform, device.device_kind, _processor(), jax.__version__, kernels, str(task), shapes]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _rounded(size: int) -> str:
    """To two digits: other masks of nearly as many weights take as long."""
    return f"{size:.2g}"


def _processor() -> str:
    """The CPU's model, where the system tells: JAX calls them all `cpu`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return f"{os.cpu_count()} {next((line for line in lines if line.startswith('model name')), '')}"


def _read(key: str, names: set[str]) -> dict[str, float] | None:
    """What was measured before; nothing where there is no file or it is no good."""
    try:
        found = json.loads((cache_folder() / f"latency-{key}.json").read_text(encoding="utf-8"))
        seconds = {str(name): float(value) for name, value in found.items()}
        return seconds if set(seconds) == names and all(0 < s < math.inf for s in seconds.values()) else None
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError):  # the last where there is no home
        return None


def _write(key: str, seconds: dict[str, float]) -> None:
    """A file of its own, renamed into its place; without a folder to write to, figures last as long as the process."""
    try:
        folder = cache_folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)  # whatever the umask: kernels lie below it, which are run
        handle, name = tempfile.mkstemp(dir=folder, prefix=".latency-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(seconds, file)
        os.replace(name, folder / f"latency-{key}.json")
    except (OSError, RuntimeError):
        return
