"""Lowering for GPUs where there are none."""

import contextlib

import jax
from jax.sharding import AbstractMesh, AxisType


def abstract_gpus(*axes):
    """A mesh of them, with `(name, size)` of each axis."""
    names, sizes = tuple(name for name, _ in axes), tuple(size for _, size in axes)
    types = (AxisType.Auto,) * len(axes)
    if jax.__version_info__ < (0, 11):
        return AbstractMesh(sizes, names, axis_types=types)
    # Later versions ask what to compile for.
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    return AbstractMesh(sizes, names, axis_types=types, abstract_device=device)


def abstract_gpu():
    """One of them, for what is lowered within."""
    new = jax.__version_info__ >= (0, 11)
    return jax.sharding.use_abstract_mesh(abstract_gpus()) if new else contextlib.nullcontext()
