"""When to update masks, and how far towards the target."""

from .base import AbstractSchedule as AbstractSchedule
from .schedules import (
    Alternating as Alternating,
    NoSchedule as NoSchedule,
    OneShot as OneShot,
    Periodic as Periodic,
    Polynomial as Polynomial,
    Rounds as Rounds,
)
