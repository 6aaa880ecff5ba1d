"""Strict dtypes and ranks in all tests; warnings are errors (`pyproject.toml`)."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# All but the tests of our own messages (marked `own_message`) also run with every annotation checked.
if os.environ.get("EQSPARSE_BEARTYPE"):
    install_import_hook("eqsparse", "beartype.beartype")


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


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """Compiled functions of one file serve no other, and take gigabytes together."""
    yield
    jax.clear_caches()
