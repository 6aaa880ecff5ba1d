"""Patterns on paths: globs, regular expressions, callables, lists of them."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
from jaxtyping import Array

from .._check import known

Pattern: TypeAlias = str | re.Pattern[str] | Callable[[str, Array], bool]
Where: TypeAlias = Pattern | Iterable[Pattern] | None


def matches(pattern: Pattern, path: str, array: Array) -> bool:
    """Whether the pattern picks the weight `array` at `path`.

    A glob must match the whole path (`*` crosses dots), a regular expression any part of it.
    """
    if isinstance(pattern, str):
        return path == pattern or fnmatch.fnmatchcase(path, pattern)
    if isinstance(pattern, re.Pattern):
        return pattern.search(path) is not None
    return bool(pattern(path, array))


def as_patterns(where: Where) -> tuple[Pattern, ...] | None:
    """The patterns of a `where`, as a tuple that can be compared and hashed; `None` picks all."""
    if where is None:
        return None
    one: Any = where  # told apart below, with a message of our own
    several = isinstance(one, Iterable) and not isinstance(one, str | bytes)
    patterns: tuple[Any, ...] = tuple(one) if several else (one,)
    if not patterns:
        raise ValueError("`where` must hold one pattern at least; `None` picks all. Got an empty list.")
    for pattern in patterns:
        if not _is_pattern(pattern):
            raise ValueError(
                "`where` must be a glob, a compiled regular expression, a callable `(path, array) -> bool`, "
                f"or a list of these. Got {pattern!r}."
            )
    return patterns


def check_by_pattern(mapping: Any, argument: str, values: str) -> None:
    """Raises `ValueError` for what is no dict with patterns as its keys, nor `None`."""
    if not isinstance(mapping, Mapping | None):
        raise ValueError(f"`{argument}` must be a dict of pattern → {values}. Got {mapping!r}.")
    for pattern in mapping or ():
        if not _is_pattern(pattern):
            raise ValueError(
                f"`{argument}` must be a dict with globs, compiled regular expressions or callables "
                f"`(path, array) -> bool` as its keys. Got the key {pattern!r}."
            )


def _is_pattern(pattern: Any) -> bool:
    return isinstance(pattern, str | re.Pattern) or callable(pattern)


def pick(where: Where, arrays: Mapping[str, Array], argument: str = "where") -> set[str]:
    """The paths that any of the patterns picks; each pattern must pick one at least."""
    patterns = as_patterns(where)
    if patterns is None:
        return set(arrays)
    picked: set[str] = set()
    for pattern in patterns:
        found = {path for path, array in arrays.items() if matches(pattern, path, array)}
        if not found:
            raise no_match(pattern, arrays, argument)
        picked |= found
    return picked


def no_match(pattern: Pattern, paths: Iterable[str], argument: str) -> ValueError:
    paths = list(paths)
    shown = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    nearest = difflib.get_close_matches(str(shown), paths, n=3, cutoff=0) if isinstance(shown, str) else paths[:3]
    return ValueError(
        f"`{argument}` must match one weight at least. Got {shown!r}, which matches none of {len(paths)}. "
        f"Nearest: {nearest}."
    )


class PatternMap(eqx.Module):
    """Values by pattern; the first pattern that matches a path gives its value."""

    patterns: tuple[Pattern, ...] = eqx.field(static=True)
    values: tuple[Any, ...]

    def __init__(self, mapping: Mapping[Pattern, Any] | None, convert: Callable[[Any], Any] = lambda v: v):
        self.patterns = tuple(mapping or ())
        self.values = tuple(convert(v) for v in (mapping or {}).values())

    def lookup(self, arrays: Mapping[str, Array], argument: str) -> dict[str, Any]:
        """Path → value for the paths that match. Raises if a pattern matches none."""
        found: dict[str, Any] = {}
        for pattern, value in zip(self.patterns, self.values, strict=True):
            hits = [path for path, array in arrays.items() if matches(pattern, path, array)]
            if not hits:
                raise no_match(pattern, arrays, argument)
            found |= {path: value for path in hits if path not in found}
        return found

    def __repr__(self) -> str:
        shown = {getattr(p, "pattern", p): v for p, v in zip(self.patterns, self.values, strict=True)}
        return repr({p: float(f"{v:.7g}") if getattr(v, "ndim", 1) == 0 and known(v) else v for p, v in shown.items()})
