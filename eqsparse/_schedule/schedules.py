"""The schedules of the JaxPruner paper."""

from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32

from .._check import known, number, whole
from .base import AbstractSchedule


@final
class NoSchedule(AbstractSchedule):
    """Never: masks stay as `init` makes them."""

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        return jnp.zeros_like(jnp.asarray(step), dtype=bool)

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        return jnp.asarray(target)


@final
class OneShot(AbstractSchedule):
    """Once: from nothing to the target at one step."""

    step: Int32[Array, ""]

    def __init__(self, step: ArrayLike):
        """**Arguments:**

        - `step`: The step (counted from 0) of the one update.
        """
        self.step = whole(step, "OneShot(step=...)", 0)

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        return jnp.asarray(step, jnp.int32) == self.step

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        return _from(self.step, target, step)


@final
class Periodic(AbstractSchedule):
    """At the target from `start` on, with an update every so many steps, and one at `stop`."""

    start: Int32[Array, ""]
    stop: Int32[Array, ""]
    every: Int32[Array, ""]

    def __init__(self, start: ArrayLike, stop: ArrayLike, every: ArrayLike):
        """**Arguments:**

        - `start`, `stop`: First and last step with an update, both included.
        - `every`: Steps from one update to the next.
        """
        self.start, self.stop, self.every = _window("Periodic", start, stop, every)

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        return _on_grid(self.start, self.stop, self.every, step)

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        return _from(self.start, target, step)


@final
class Polynomial(AbstractSchedule):
    """From 0 at `start` to the target at `stop`, fast at first: `target * (1 - (1 - p)**power)`.

    `p` is the share of the way from `start` to `stop`. `stop` is always an update, whatever `every` is.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878), equation (1) with initial sparsity 0
    """

    start: Int32[Array, ""]
    stop: Int32[Array, ""]
    every: Int32[Array, ""]
    power: Float32[Array, ""]

    def __init__(self, start: ArrayLike, stop: ArrayLike, every: ArrayLike, power: ArrayLike = 3):
        """**Arguments:**

        - `start`, `stop`: First and last step with an update, both included.
        - `every`: Steps from one update to the next.
        - `power`: 3 is the paper's cubic, 1 is linear.
        """
        self.start, self.stop, self.every = _window("Polynomial", start, stop, every)
        self.power = number(power, "Polynomial(power=...)", jnp.float32)
        if known(self.power) and not np.all(np.asarray(self.power) > 0):
            raise ValueError(f"`Polynomial(power=...)` must be positive. Got {power}.")

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        return _on_grid(self.start, self.stop, self.every, step)

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.int32)
        target = jnp.asarray(target, jnp.float32)
        length = jnp.maximum(self.stop - self.start, 1).astype(jnp.float32)
        share = jnp.clip((step - self.start).astype(jnp.float32) / length, 0, 1)
        return jnp.where(step >= self.stop, target, target * (1 - (1 - share) ** self.power))


def _from(start: Int32[Array, ""], target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
    target = jnp.asarray(target, jnp.float32)
    return jnp.where(jnp.asarray(step, jnp.int32) >= start, target, jnp.zeros_like(target))


def _on_grid(start: Array, stop: Array, every: Array, step: ArrayLike) -> Bool[Array, ""]:
    step = jnp.asarray(step, jnp.int32)
    return (step >= start) & (step <= stop) & (((step - start) % every == 0) | (step == stop))


def _window(name: str, start: ArrayLike, stop: ArrayLike, every: ArrayLike) -> tuple[Array, Array, Array]:
    first = whole(start, f"{name}(start=...)", 0)
    last = whole(stop, f"{name}(stop=...)", 0)
    if known(first) and known(last) and np.any(np.asarray(last) < np.asarray(first)):
        raise ValueError(f"`{name}(stop=...)` must not be before start={start}. Got {stop}.")
    return first, last, whole(every, f"{name}(every=...)", 1)
