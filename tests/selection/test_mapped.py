"""Conditionals that stay conditional under `vmap`, and keys that differ between the members of an ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse._selection import any_mapped, own_key, update_if


def double(tree):
    return {name: 2 * value for name, value in tree.items()}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_updates_where_the_predicate_holds(transform):
    update = transform(lambda due, old: update_if(due, double, old))
    old = {"a": jnp.arange(3.0), "b": jnp.ones((), jnp.int32)}
    for due, factor in ((True, 2), (False, 1)):
        new = update(jnp.asarray(due), old)
        np.testing.assert_array_equal(np.asarray(new["a"]), factor * np.arange(3.0))
        assert new["b"] == factor and new["b"].dtype == jnp.int32


def test_each_mapped_entry_decides_for_itself():
    due = jnp.asarray([[True, False, True], [False, False, True]])
    old = {"a": jnp.arange(6.0).reshape(2, 3)}
    update = jax.jit(jax.vmap(jax.vmap(lambda d, o: update_if(d, double, o))))
    np.testing.assert_array_equal(np.asarray(update(due, old)["a"]), np.where(due, 2, 1) * np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("due, runs", [([False, False], 0), ([True, False], 1), ([True, True], 1)])
def test_nothing_runs_under_vmap_unless_some_entry_wants_it(due, runs):
    """PREDECESSOR row 21: under `vmap` the work must not be done at every step."""
    seen = []

    def update(x):
        jax.debug.callback(lambda: seen.append(1))
        return x + 1

    found = jax.jit(jax.vmap(lambda d, x: update_if(d, update, x)))(jnp.asarray(due), jnp.zeros(2))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.asarray(found), np.asarray(due, np.float32))
    assert (len(seen) > 0) == (runs > 0)


def test_any_mapped():
    due = jnp.asarray([[False, False], [False, True]])
    assert bool(any_mapped(jnp.asarray(True))) and not bool(any_mapped(jnp.asarray(False)))
    inner = jax.vmap(lambda row: jax.vmap(any_mapped, out_axes=None)(row))(due)
    assert np.asarray(inner).any()  # reduced over all mapped axes
    np.testing.assert_array_equal(np.asarray(jax.vmap(any_mapped)(due[0])), [False, False])
    np.testing.assert_array_equal(np.asarray(jax.vmap(any_mapped)(due[1])), [True, True])


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_a_key_stays_as_it_is_outside_vmap():
    key = jax.random.key(3)
    for transform in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(data(transform(own_key)(key, jnp.ones(2))), data(key))


def test_members_of_an_ensemble_get_keys_of_their_own():
    """PREDECESSOR row 21: all members of a mapped ensemble get the same mask there."""
    key = jax.random.key(3)
    several = jax.vmap(lambda w: own_key(key, w))(jnp.ones((4, 2)))
    assert several.shape == (4,) and len(np.unique(data(several), axis=0)) == 4
    nested = jax.vmap(jax.vmap(lambda w: own_key(key, w)))(jnp.ones((4, 3, 2)))
    assert nested.shape == (4, 3) and len(np.unique(data(nested).reshape(12, -1), axis=0)) == 12


def test_keys_that_are_mapped_already_are_not_changed():
    keys = jax.random.split(jax.random.key(3), 4)
    np.testing.assert_array_equal(data(jax.vmap(own_key)(keys, jnp.ones((4, 2)))), data(keys))
    one = jax.vmap(lambda k: own_key(k, jnp.ones(2)))(keys)
    np.testing.assert_array_equal(data(one), data(keys))
