"""Any weight may go."""

from typing import final, Literal

import equinox as eqx
from jaxtyping import Array, Bool, Shaped, UInt32

from .base import AbstractPooling, Geometry


@final
class Unstructured(AbstractPooling):
    """Any weight may be removed on its own.

    With `per="row"` each output row (the first axis) keeps the same share, as Wanda does: where the share is
    no whole number, the first rows keep one more, so that the site's total is exact.
    """

    per: Literal["site", "row"] = eqx.field(static=True)

    def __init__(self, per: Literal["site", "row"] = "site"):
        """**Arguments:**

        - `per`: Who competes: the weights of a `"site"`, or those of each `"row"`.
        """
        if per not in ("site", "row"):
            raise ValueError(f'`Unstructured(per=...)` must be "site" or "row". Got {per!r}.')
        self.per = per

    def pooled(self, scores: Shaped[Array, "..."], geometry: Geometry) -> Shaped[Array, "..."]:
        return scores

    def sizes(self, core: tuple[int, ...]) -> int:
        return 1

    def spread(self, chosen: Bool[Array, "..."], shape: tuple[int, ...], geometry: Geometry) -> Bool[Array, "..."]:
        return chosen

    def rivals(self, geometry: Geometry) -> int:
        rank = geometry.core_rank
        return rank if self.per == "site" else max(rank - 1, min(rank, 1))

    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        pass
