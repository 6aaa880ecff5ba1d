"""The one place that picks "exactly k of n"."""

from .mapped import any_mapped as any_mapped, own_key as own_key, update_if as update_if
from .density import (
    FULL as FULL,
    count as count,
    count_up as count_up,
    density_from_fraction as density_from_fraction,
    density_of as density_of,
    fraction_of as fraction_of,
    sparsity_of as sparsity_of,
)
from .keys import sort_key as sort_key
from .ranks import select_in_runs as select_in_runs
from .select import (
    Contest as Contest,
    select as select,
    select_many as select_many,
    select_many_with_floor as select_many_with_floor,
)
from .wide import Wide as Wide, add as add, wide as wide, maximum as maximum
