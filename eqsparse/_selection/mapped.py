"""What `vmap` must not change: conditionals stay conditional, and members of an ensemble draw their own."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Inexact

from .._mask import members_as

_Result = TypeVar("_Result")


@custom_vmap
def any_mapped(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate, or under `vmap` whether it holds for any of the mapped entries (not mapped itself)."""
    return predicate


@any_mapped.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Bool[Array, "..."]) -> tuple[Array, bool]:
    return any_mapped(jnp.any(predicate, axis=0) if in_batched[0] else predicate), False


def update_if(
    predicate: Bool[Array, ""] | bool,
    update: Callable[[_Result], _Result],
    old: _Result,
    after: Sequence[Inexact[Array, "..."]] = (),
) -> _Result:
    """`update(old)` where the predicate holds, else `old`.

    Plain `lax.cond` under `vmap` runs both branches for ever. Here the branch is taken when any mapped
    entry wants it, and those that don't keep what they had.

    What is `old` is changed in its own buffers, unless it is still to be read elsewhere: then it is copied, at each
    step. So it begins when the arrays are there that it is to come `after`, those that are made by reading `old`.
    """

    if isinstance(predicate, bool):
        return update(old) if predicate else old

    # One number decides, also under `vmap`.
    begins = any_mapped(predicate & ~_nan_and_infinite(after))
    return _once_if(begins, lambda old: _where_mapped(predicate, update(old), old), old)


def step_if(predicate: Bool[Array, ""] | bool, step: Callable[[_Result], _Result], old: _Result) -> _Result:
    """`step(old)` where the predicate holds, else `old`, as by `update_if`.

    For what is done nearly always: where all mapped entries want it, nothing is chosen between what they had and what
    they get, for which the old arrays would have to be kept.
    """
    if isinstance(predicate, bool):
        return step(old) if predicate else old
    only_some = _differs_mapped(predicate)
    old = _once_if(any_mapped(predicate) & ~only_some, step, old)
    return _once_if(only_some, lambda old: _where_mapped(predicate, step(old), old), old)


@custom_vmap
def _differs_mapped(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the predicate holds for some mapped entries and not for others."""
    return jnp.zeros_like(predicate)


@_differs_mapped.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Bool[Array, "..."]) -> tuple[Array, bool]:
    if not in_batched[0]:
        return _differs_mapped(predicate), False
    return any_mapped(jnp.any(predicate, axis=0)) & any_mapped(jnp.any(~predicate, axis=0)), False


def _once_if(begins: Bool[Array, ""], update: Callable[[_Result], _Result], old: _Result) -> _Result:
    """From a loop that may go round twice the compiler moves work out to where it is done at every step."""
    body = lambda carry: (jnp.zeros_like(carry[0]), update(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], body, (begins, old))[1]


def _nan_and_infinite(arrays: Sequence[Inexact[Array, "..."]]) -> Bool[Array, ""]:
    """No number is both, but no compiler knows that before the arrays are there (it ignores an optimisation barrier
    when it plans memory)."""
    never = jnp.zeros((), bool)
    for array in arrays:
        first = jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim).reshape(())
        never = never | (jnp.isnan(first) & jnp.isinf(first))
    return never


@custom_vmap
def _where_mapped(predicate: Bool[Array, ""], new: _Result, old: _Result) -> _Result:
    """`new`, or under a `vmap` that maps the predicate: `old` for the entries where it does not hold."""
    return new


@_where_mapped.def_vmap
def _(axis_size: int, in_batched: list[Any], predicate: Array, new: Any, old: Any) -> tuple[Any, Any]:
    predicate_mapped, *leaves_mapped = in_batched

    def entries(now: Array, was: Array, *are_mapped: bool) -> tuple[Array, Array, bool]:
        """Both with an axis of members where one of them has it or is to get it."""
        mapped = (predicate_mapped, *are_mapped)
        if not any(mapped):
            return now, was, False
        like = next(x for x, is_mapped in zip((predicate, now, was), mapped, strict=True) if is_mapped)
        spread = lambda x: members_as(jnp.broadcast_to(x, (axis_size, *x.shape)), like)
        now, was = (x if is_mapped else spread(x) for x, is_mapped in zip((now, was), are_mapped, strict=True))
        return (jax.vmap(jnp.where)(predicate, now, was) if predicate_mapped else now), was, True

    leaves, tree = jax.tree.flatten(new)
    others = (jax.tree.leaves(x) for x in (old, *leaves_mapped))
    found = [entries(*leaf) for leaf in zip(leaves, *others, strict=True)]
    new, old, mapped = (tree.unflatten([leaf[i] for leaf in found]) for i in range(3))
    return (new if predicate_mapped else _where_mapped(predicate, new, old)), mapped


@custom_vmap
def own_key(key: Array, witness: Array) -> Array:
    """The key, or under a `vmap` that maps the witness and not the key: one for each mapped entry.

    An ensemble made by `eqx.filter_vmap(pruner.init)` thus draws a mask for each member from one key.
    """
    return key


@own_key.def_vmap
def _(axis_size: int, in_batched: list[bool], key: Array, witness: Array) -> tuple[Array, bool]:
    key_mapped, witness_mapped = in_batched
    if key_mapped:
        return key, True
    if not witness_mapped:
        return own_key(key, witness), False
    # No entry can be taken out of a witness whose members lie on several devices; their keys lie as they do.
    keys = jax.random.split(own_key(key, jnp.any(witness != witness)), axis_size)
    return members_as(keys, witness), True
