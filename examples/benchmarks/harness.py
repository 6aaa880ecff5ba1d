"""Timing side by side: the contestants take turns in one run, so that a busy machine disturbs all alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, np.ndarray]:
    """Seconds of each run in each round. A run returns the arrays to wait for."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + warmup):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def spread(seconds: np.ndarray) -> str:
    """Median and quartiles in milliseconds."""
    low, mid, high = np.percentile(seconds * 1e3, [25, 50, 75])
    return f"{mid:.2f} ms [{low:.2f}, {high:.2f}]"


def ratio(seconds: np.ndarray, base: np.ndarray) -> float:
    """Median of the ratios, round by round."""
    return float(np.median(seconds / base))


def machine() -> str:
    """The machine in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    device = jax.devices()[0]
    devices = f"{len(jax.devices())} {device.platform if device.platform == 'cpu' else device.device_kind} device"
    return f"{name}, {os.cpu_count()} cores, {devices}, jax {jax.__version__}, {platform.platform()}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths], *rows]:
        print("  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
