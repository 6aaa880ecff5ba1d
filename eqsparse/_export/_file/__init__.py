"""Models and training states in one file, and back."""

from .files import load as load, save as save
from .replace import checked_path as checked_path, replacing as replacing
