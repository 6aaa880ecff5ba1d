"""Counting passes: how many entries satisfy a predicate, in the form that compiles best where it runs."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32


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
    predicates: Sequence[Bool[Array, "..."]], axes: tuple[int, ...], sizes: int | np.ndarray | Array = 1
) -> list[UInt32[Array, "..."]]:
    """The number of true entries of each predicate over `axes`, each entry counted as often as `sizes` says.

    `axes` are the last ones.
    """
    if not isinstance(sizes, int):
        return _sums([jnp.where(p, jnp.asarray(sizes, jnp.uint32), np.uint32(0)) for p in predicates], axes)
    last = predicates[0].shape[-1] if axes else 0
    if probes_at_once() > 1 and _SHORT < last < 2**16 and predicates[0].size > 0:
        # Twice as many lanes of a vector hold counts of 16 bits.
        short = _sums([p.astype(jnp.uint16) for p in predicates], axes[-1:])
        counts = _sums([n.astype(jnp.uint32) for n in short], axes[:-1])
    else:
        counts = _sums([p.astype(jnp.uint32) for p in predicates], axes)
    return [n * np.uint32(sizes) for n in counts]


_SHORT = 64


def folded(array: Shaped[Array, "..."], rank: int) -> Shaped[Array, "..."]:
    """The array with its `rank` last axes as two, so that 16 bits count along the last, and it is no longer than is
    needed to be fast.

    On several devices as it is: a reshape could gather it.
    """
    lead, size = array.shape[: array.ndim - rank], math.prod(array.shape[array.ndim - rank :])
    if probes_at_once() == 1 or size == 0:
        return array
    inner = next((n for n in range(min(size, _LONG), _SHORT, -1) if size % n == 0), 1)
    return array.reshape(*lead, size // inner, inner)


_LONG = 2**13


def _sums(operands: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """The sum of each operand over `axes`, in its own dtype."""
    dtype = operands[0].dtype
    if probes_at_once() == 1 or not axes:
        return [jnp.sum(x, axis=axes, dtype=dtype) for x in operands]
    several = operands if len(operands) > 1 else operands * 2
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    sums = jax.lax.reduce(several, [jnp.zeros((), dtype)] * len(several), add, axes)
    # Of one operand both sums are used: else the compiler drops the second, and the reduction is a lone one again.
    return sums if len(operands) > 1 else [jnp.maximum(*sums)]


def made_anew(carry: Array, *arrays: Array) -> tuple[Array, ...]:
    """All as they are, but so that what a loop makes of the `arrays` is not kept from pass to pass.

    A pass then makes it anew (a few integer operations for each entry) instead of reading it from
    scratch memory of the size of the array.
    """
    return jax.lax.optimization_barrier((carry, *arrays))


def kept_lean(carry: Array, array: Array) -> tuple[Array, ...]:
    """`made_anew` where a pass needs scratch memory besides the keys: on several devices."""
    return made_anew(carry, array) if probes_at_once() == 1 else (carry, array)
