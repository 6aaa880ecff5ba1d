"""Models and training states in one file, and back."""

from .replace import checked_path as checked_path, replacing as replacing
from .save import load as load, save as save
