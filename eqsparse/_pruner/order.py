"""Orders: where the change of masks stands to the optimiser's step."""

import abc
import dataclasses
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int32, PyTree

from .._check import whole
from .._selection import update_if
from .turn import Turn
from .update import choose

REWIND = "rewind"
"""The role under which parameters are remembered."""


class AbstractOrder(eqx.Module):
    """What a step does, in sequence."""

    @abc.abstractmethod
    def run(self, turn: Turn) -> Turn:
        """The step."""

    def start(self, parameters: PyTree) -> dict[str, Any]:
        """What it remembers from the start, by role."""
        return {}


@final
class Before(AbstractOrder):
    """Masks, then the optimiser on what is left."""

    def run(self, turn: Turn) -> Turn:
        return choose(turn).optimise()


@final
class Instead(AbstractOrder):
    """Where masks are updated, the optimiser does not step."""

    def run(self, turn: Turn) -> Turn:
        return choose(turn).optimise_unless(turn.setting.due)


@final
class After(AbstractOrder):
    """The optimiser, then masks of the weights it has made."""

    def run(self, turn: Turn) -> Turn:
        return choose(turn.optimise())


@final
class Rewinding(AbstractOrder):
    """As `Instead`, and parameters go back to what they were at step `to`, those that are removed to zero."""

    to: Int32[Array, ""]

    def __init__(self, to: ArrayLike = 0):
        """**Arguments:**

        - `to`: The step before which they are remembered.
        """
        self.to = whole(to, "rewind", 0)

    def start(self, parameters: PyTree) -> dict[str, Any]:
        return {REWIND: jax.tree.map(jnp.copy, parameters)}

    def run(self, turn: Turn) -> Turn:
        here = turn.setting.step == self.to
        saved = update_if(here, lambda _: turn.parameters, turn.memory[REWIND])
        turn = dataclasses.replace(turn, memory=turn.memory | {REWIND: saved})
        chosen = choose(turn)
        rewound = chosen.landed(saved)
        back = jax.tree.map(lambda a, b: a - b, rewound.parameters, turn.parameters)
        parameters = update_if(turn.setting.due, lambda _: rewound.parameters, chosen.parameters)
        return dataclasses.replace(chosen, parameters=parameters, updates=back).optimise_unless(turn.setting.due)
