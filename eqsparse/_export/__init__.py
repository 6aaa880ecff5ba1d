"""Sparse layers for inference, the way to them, and files."""

from ._file import load as load, save as save
from .bcoo import to_bcoo as to_bcoo
from .deployment import deploy as deploy
from .linear import BCOOLinear as BCOOLinear
