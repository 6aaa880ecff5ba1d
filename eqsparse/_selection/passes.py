"""Counting passes: how many entries satisfy a predicate, in the form that compiles best where it runs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32


def on_one_device() -> bool:
    """Whether arrays can't be sharded here."""
    return jax.device_count() == 1


def probes_at_once() -> int:
    """How many predicates one pass should count.

    XLA's CPU backend rewrites a lone reduction into a tree of windows that no longer fuses with the
    comparison (n × 4 bytes written and read again in each pass); a variadic reduction stays one
    loop, ten times faster at 10⁷ entries. The partitioner can't split variadic reductions though: it
    gathers their operands. So they serve where there is one device only.
    """
    return 3 if on_one_device() else 1


def count_true(
    predicates: Sequence[Bool[Array, "..."]], axes: tuple[int, ...], sizes: int | np.ndarray = 1
) -> list[UInt32[Array, "..."]]:
    """The number of true entries of each predicate over `axes`, each entry counted as often as `sizes` says."""
    if isinstance(sizes, np.ndarray):
        operands = [jnp.where(p, jnp.asarray(sizes, jnp.uint32), jnp.uint32(0)) for p in predicates]
        factor = jnp.uint32(1)
    else:
        operands = [p.astype(jnp.uint32) for p in predicates]
        factor = jnp.uint32(sizes)
    if probes_at_once() == 1:
        sums = [jnp.sum(x, axis=axes, dtype=jnp.uint32) for x in operands]
    else:
        several = operands if len(operands) > 1 else operands * 2
        add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
        sums = jax.lax.reduce(several, [jnp.uint32(0)] * len(several), add, axes)[: len(operands)]
    return [s * factor for s in sums]


def made_anew(carry: Array, *arrays: Array) -> tuple[Array, ...]:
    """All as they are, but so that what a loop makes of the `arrays` is not kept from pass to pass.

    A pass then makes it anew (a few integer operations for each entry) instead of reading it from
    scratch memory of the size of the array.
    """
    return jax.lax.optimization_barrier((carry, *arrays))


def kept_lean(carry: Array, array: Array) -> tuple[Array, ...]:
    """`made_anew` where a pass needs scratch memory besides the keys: on several devices."""
    return made_anew(carry, array) if probes_at_once() == 1 else (carry, array)
