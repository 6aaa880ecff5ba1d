"""Sparse layers for inference, and the way to them."""

from .bcoo import to_bcoo as to_bcoo
from .linear import BCOOLinear as BCOOLinear
