"""Strict dtypes and ranks in all tests; warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("XLA_FLAGS", "")

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("eqsparse", "beartype.beartype"):
    import eqsparse


@pytest.fixture
def getkey():
    """A function that gives another key at each call."""
    state = [jax.random.key(0)]

    def next_key():
        state[0], key = jax.random.split(state[0])
        return key

    return next_key


@pytest.fixture
def mlp(getkey):
    return eqx.nn.MLP(8, 4, 32, 2, key=getkey())


@pytest.fixture
def batch(getkey):
    return jax.random.normal(getkey(), (16, 8)), jnp.arange(16) % 4


def array_leaves(tree):
    return [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]


assert eqsparse
