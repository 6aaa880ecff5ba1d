"""Sharded weights: what `init` refuses, and where the state that it makes lies."""

import math
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from .._distribution import geometry_of
from .._mask import BYTE, check_whole, Mask
from .._sites import Sites
from .plan import Plan

_Tree = TypeVar("_Tree")


def check_shards(made: Plan, sites: Sites, masks: Mapping[str, Mask]) -> None:
    """Raises `ValueError` if what a mask keeps together is cut by the shards of its weight, where these are known."""
    _check_devices(sites)
    for path, mask in masks.items():
        structure = made.structures.get(path)
        runs = {} if structure is None else structure.runs(geometry_of(sites[path]))
        rules = [repr(structure)] if runs else []
        if mask.packed:
            runs = runs | {axis: math.lcm(run, runs.get(axis, 1)) for axis, run in BYTE.items()}
            rules.append("packed=True")
        check_whole(" with ".join(rules), path, sites[path].weight, runs)


def _check_devices(sites: Sites) -> None:
    """A computation needs its arrays on the same devices."""
    known = {
        p: s.weight for p, s in sites.items() if isinstance(s.weight, jax.Array) and not isinstance(s.weight, Tracer)
    }
    on = {path: len(weight.sharding.device_set) for path, weight in known.items()}
    if len(set(on.values())) > 1:
        few, many = min(on, key=on.__getitem__), max(on, key=on.__getitem__)
        raise ValueError(
            f"`model` must have all its weights on the same devices (`eqx.filter_shard`). Got `{few}` on {on[few]} and "
            f"`{many}` on {on[many]}."
        )


def on_mesh_of(sites: Sites, state: _Tree) -> _Tree:
    """A state whose counters and keys are on all devices of the weights' mesh, where they are after a step: else the
    second step would compile anew."""
    weights = [site.weight for site in sites.values() if isinstance(site.weight, jax.Array)]
    known = [w.sharding for w in weights if not isinstance(w, Tracer)]
    mesh = next((s.mesh for s in known if isinstance(s, NamedSharding) and len(s.device_set) > 1), None)
    if mesh is None:
        return state

    everywhere = NamedSharding(mesh, PartitionSpec())

    def moved(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or len(leaf.sharding.device_set) > 1:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(moved(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)  # each process has its own, the same in all
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(moved, state)
