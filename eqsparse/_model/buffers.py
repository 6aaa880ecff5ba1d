"""Every leaf in a buffer of its own, so that a step can donate them all."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

_Tree = TypeVar("_Tree")


def own_buffers(tree: _Tree) -> _Tree:
    """The tree with a copy of each array that stands in it a second time (tied weights, or an optimiser's
    state that holds the parameters themselves)."""
    seen: set[int] = set()

    def own(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
            return leaf
        if id(leaf) in seen:
            return jnp.array(leaf, copy=True)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)
