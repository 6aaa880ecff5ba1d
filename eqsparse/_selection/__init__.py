"""The one place that picks "exactly k of n"."""

from .density import (
    count as count,
    count_up as count_up,
    density_from_fraction as density_from_fraction,
    density_of as density_of,
    fraction_of as fraction_of,
    FULL as FULL,
    HALF_STEP as HALF_STEP,
    highest_line as highest_line,
    share as share,
    sparsity_of as sparsity_of,
)
from .keys import in_float32 as in_float32, sort_key as sort_key
from .limbs import add as add, maximum as maximum, subtract as subtract, total as total, Wide as Wide, wide as wide
from .mapped import any_mapped as any_mapped, own_key as own_key, step_if as step_if, update_if as update_if
from .passes import count_true as count_true, on_one_device as on_one_device
from .pending import finish_all as finish_all, Pending as Pending
from .ranks import select_in_runs as select_in_runs
from .select import (
    Contest as Contest,
    Heat as Heat,
    select as select,
    select_many as select_many,
    select_many_with_floor as select_many_with_floor,
    with_floor as with_floor,
)
