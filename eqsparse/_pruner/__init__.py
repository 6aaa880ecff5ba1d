"""The step, composed of pieces, and the named algorithms."""

from ._transition import (
    AbstractTransition as AbstractTransition,
    DropGrow as DropGrow,
    Fixed as Fixed,
    GAIN as GAIN,
    Kept as Kept,
    Moment as Moment,
    Monotone as Monotone,
    Nested as Nested,
    Select as Select,
    SelectEachStep as SelectEachStep,
    unknown_last as unknown_last,
)
from .as_optax import OptaxState as OptaxState
from .at_init import AbstractPruningAtInit as AbstractPruningAtInit, GraSP as GraSP, SNIP as SNIP, SynFlow as SynFlow
from .base import AbstractPruner as AbstractPruner
from .config import from_config as from_config
from .cycle import ACDC as ACDC, LotteryTicket as LotteryTicket
from .dynamic import (
    DynamicSparse as DynamicSparse,
    RigL as RigL,
    SET as SET,
    SNFS as SNFS,
    StaticSparse as StaticSparse,
)
from .gradual import (
    FisherPruning as FisherPruning,
    GlobalMagnitudePruning as GlobalMagnitudePruning,
    GlobalSaliencyPruning as GlobalSaliencyPruning,
    GradualPruning as GradualPruning,
    MagnitudePruning as MagnitudePruning,
    MovementPruning as MovementPruning,
    NoPruning as NoPruning,
    RandomPruning as RandomPruning,
    SaliencyPruning as SaliencyPruning,
)
from .optimiser import (
    AbstractUpkeep as AbstractUpkeep,
    FreshAtUpdates as FreshAtUpdates,
    FreshWhereGrown as FreshWhereGrown,
    Untouched as Untouched,
    ZeroWhereDropped as ZeroWhereDropped,
)
from .order import (
    AbstractOrder as AbstractOrder,
    After as After,
    Before as Before,
    Instead as Instead,
    Rewinding as Rewinding,
)
from .state import PrunerState as PrunerState
from .straight_through import (
    MagnitudeSTE as MagnitudeSTE,
    RandomSTE as RandomSTE,
    SRSTE as SRSTE,
    StraightThrough as StraightThrough,
)
from .superset import TopKAST as TopKAST
from .view import (
    AbstractView as AbstractView,
    OnMask as OnMask,
    StraightThroughView as StraightThroughView,
    SupersetView as SupersetView,
)
