"""From old masks and scores to new masks."""

from .base import AbstractTransition as AbstractTransition, Moment as Moment, WORTH as WORTH
from .drop_grow import DropGrow as DropGrow, GAIN as GAIN, unknown_last as unknown_last
from .fixed import Fixed as Fixed, Kept as Kept
from .monotone import Monotone as Monotone
from .nested import Nested as Nested
from .select import Select as Select, SelectEachStep as SelectEachStep
