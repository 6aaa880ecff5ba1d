"""Runs on 8 virtual devices (started by `test_sharded_selection.py`): masks to files, figures to standard output."""

import json
import re
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import sharded_cases  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from eqsparse._selection import Contest, select, Wide  # noqa: E402

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")


def mesh_for(names, kind):
    both = {"a", "b"} & set(names)
    shape, axes = ((4, 2), ("a", "b")) if both else ((8,), ("x",))
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def place(arrays, specs, mesh):
    return [jax.device_put(a, NamedSharding(mesh, PartitionSpec(*s))) for a, s in zip(arrays, specs, strict=True)]


def collectives(compiled):
    text = compiled.as_text()
    return {name: len(re.findall(rf"{name}(?:-start)?\(", text)) for name in COLLECTIVES}


def compare(kind):
    figures, masks = {}, {}
    for name, case in sharded_cases.CASES.items():
        mesh = mesh_for([n for spec in case.specs for n in spec], getattr(AxisType, kind))
        with jax.set_mesh(mesh):
            arrays = place(sharded_cases.scores(case), case.specs, mesh)
            try:
                found, compiled = sharded_cases.run(case, arrays)
            except Exception as error:
                figures[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
                continue
        figures[name] = {"collectives": collectives(compiled)}
        masks |= {f"{name}/{i}": mask for i, mask in enumerate(found)}
    return figures, masks


def scratch(kind):
    """Scratch of one unstructured selection on given scores, in shards."""
    mesh = mesh_for(["x"], getattr(AxisType, kind))
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        for spec in (("x", None), (None, "x")):
            with jax.set_mesh(mesh):
                (scores,) = place([jnp.ones((2048, 2048), dtype)], [spec], mesh)
                choose = lambda s, k: select(Contest(s, 2), Wide(jnp.uint32(0), k))
                compiled = jax.jit(choose).lower(scores, jnp.uint32(10)).compile(sharded_cases.UNOPTIMISED)
            temporary = compiled.memory_analysis().temp_size_in_bytes
            found[f"{jnp.dtype(dtype).name} {spec}"] = temporary / (scores.nbytes / 8)
    return found


if __name__ == "__main__":
    folder, *kinds = sys.argv[1:]
    assert jax.device_count() == 8
    found = {}
    for kind in kinds:
        figures, masks = compare(kind)
        np.savez(f"{folder}/{kind}.npz", **masks)
        found[kind] = {"cases": figures, "scratch": scratch(kind)}
    print(json.dumps(found))
