"""The schedules of the JaxPruner paper, and of those whose algorithms it has."""

from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32

from .._check import known, number, unit, whole
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
        return _at(step) == self.step

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        return _from(self.step, target, step)

    def last(self) -> Int32[Array, ""]:
        return self.step


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

    def last(self) -> Int32[Array, ""]:
        return self.stop


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
        step = _at(step)
        target = unit(target, "target")
        length = jnp.maximum(self.stop - self.start, 1).astype(jnp.float32)
        share = jnp.clip((step - self.start).astype(jnp.float32) / length, 0, 1)
        return jnp.where(step >= self.stop, target, target * (1 - (1 - share) ** self.power))

    def last(self) -> Int32[Array, ""]:
        return self.stop


@final
class Alternating(AbstractSchedule):
    """Sparse and dense phases in turn: sparse from `start` on, dense after `sparse_steps` for `dense_steps`, and so on.

    Updates are where a phase begins: masks at the target, or full ones. From `stop` on it is sparse for good;
    `stop` is always an update.

    ??? cite

        [AC/DC: Alternating Compressed/DeCompressed Training](https://arxiv.org/abs/2106.12379), algorithm 1
    """

    start: Int32[Array, ""]
    stop: Int32[Array, ""]
    dense_steps: Int32[Array, ""]
    sparse_steps: Int32[Array, ""]

    def __init__(self, start: ArrayLike, stop: ArrayLike, dense_steps: ArrayLike, sparse_steps: ArrayLike):
        """**Arguments:**

        - `start`: The step at which the first sparse phase begins; it is dense before.
        - `stop`: The step at which the last sparse phase begins.
        - `dense_steps`, `sparse_steps`: Length of each phase.
        """
        self.start, self.stop, self.dense_steps = _window("Alternating", start, stop, dense_steps, "dense_steps")
        self.sparse_steps = whole(sparse_steps, "Alternating(sparse_steps=...)", 1)

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        step = _at(step)
        place = self._place(step)
        begins = (place == 0) | (place == self.sparse_steps)
        return (step == self.stop) | ((step >= self.start) & (step < self.stop) & begins)

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        step, target = _at(step), unit(target, "target")
        sparse = (step >= self.stop) | ((step >= self.start) & (self._place(step) < self.sparse_steps))
        return jnp.where(sparse, target, jnp.zeros_like(target))

    def last(self) -> Int32[Array, ""]:
        return self.stop

    def _place(self, step: Array) -> Array:
        """How far into a pair of phases."""
        return (step - self.start) % (self.sparse_steps + self.dense_steps)


@final
class Rounds(AbstractSchedule):
    """The same share of what is left is removed at the end of each of several rounds of training.

    At the end of round r of R (step `r * steps`) the density is `(1 - target)**(r / R)`; at the last it is that of
    the target.

    ??? cite

        [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2
    """

    rounds: Int32[Array, ""]
    steps: Int32[Array, ""]

    def __init__(self, rounds: ArrayLike, steps: ArrayLike):
        """**Arguments:**

        - `rounds`: How many times something is removed.
        - `steps`: Steps of training in each round.
        """
        self.rounds = whole(rounds, "Rounds(rounds=...)", 1)
        self.steps = whole(steps, "Rounds(steps=...)", 1)
        if known(self.rounds) and known(self.steps) and int(self.rounds) * int(self.steps) >= 2**31:
            raise ValueError(
                f"`Rounds(steps=...)` times `rounds={int(self.rounds)}` must be below 2**31. Got {int(self.steps)}."
            )

    def is_due(self, step: ArrayLike) -> Bool[Array, ""]:
        step = _at(step)
        return (step > 0) & (step <= self.last()) & (step % self.steps == 0)

    def sparsity(self, target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
        target = unit(target, "target")
        done = _at(step) // self.steps
        share = jnp.clip(done, 0, self.rounds).astype(jnp.float32) / self.rounds.astype(jnp.float32)
        return jnp.where(done >= self.rounds, target, 1 - (1 - target) ** share)

    def last(self) -> Int32[Array, ""]:
        return self.rounds * self.steps


def _at(step: ArrayLike) -> Int32[Array, "..."]:
    return whole(step, "step", -(2**31))


def _from(start: Int32[Array, ""], target: ArrayLike, step: ArrayLike) -> Float[Array, ""]:
    target = unit(target, "target")
    return jnp.where(_at(step) >= start, target, jnp.zeros_like(target))


def _on_grid(start: Array, stop: Array, every: Array, step: ArrayLike) -> Bool[Array, ""]:
    step = _at(step)
    return (step >= start) & (step <= stop) & (((step - start) % every == 0) | (step == stop))


def _window(
    name: str, start: ArrayLike, stop: ArrayLike, every: ArrayLike, length: str = "every"
) -> tuple[Array, Array, Array]:
    first = whole(start, f"{name}(start=...)", 0)
    last = whole(stop, f"{name}(stop=...)", 0)
    if known(first) and known(last) and np.any(np.asarray(last) < np.asarray(first)):
        raise ValueError(f"`{name}(stop=...)` must not be before start={start}. Got {stop}.")
    return first, last, whole(every, f"{name}({length}=...)", 1)
