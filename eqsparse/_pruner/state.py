"""What a pruner carries from step to step."""

import equinox as eqx
from jaxtyping import Array, Int32, PRNGKeyArray, PyTree

from .._mask import Mask
from .match import Outline
from .turn import Memory


class PrunerState(eqx.Module):
    """What a pruner carries from step to step, beside the model (which holds the masks).

    - `step`: how many steps were taken.
    - `optim`: the optimiser's state, `None` without one.
    - `key`: what random criteria draw from, `None` for others.
    - `trained`: masks of the weights that train, by path, where these are not those of the model (Top-KAST).
    - `memory`: what criteria and rewinding remember, by role.
    """

    step: Int32[Array, ""]
    optim: PyTree
    key: PRNGKeyArray | None
    trained: dict[str, Mask]
    memory: Memory
    outline: Outline = eqx.field(static=True)
    maker: str = eqx.field(static=True)
