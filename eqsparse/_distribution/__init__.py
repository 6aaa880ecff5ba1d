"""How the target is shared between sites."""

from .base import AbstractDistribution as AbstractDistribution
from .budget import (
    AbstractBudget as AbstractBudget,
    geometry_of as geometry_of,
    SharedBudget as SharedBudget,
    SiteBudget as SiteBudget,
)
from .by_site import ERK as ERK, PerPath as PerPath, Uniform as Uniform
from .shared import Global as Global, LAMP as LAMP
