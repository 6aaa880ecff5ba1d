"""What `distribution=`, `structure=` and `optim=` take."""

from collections.abc import Mapping
from typing import Any

import optax
from jaxtyping import ArrayLike

from .._check import instance
from .._distribution import AbstractDistribution, Uniform
from .._sites import check_by_pattern, PatternMap
from .._structure import AbstractStructure


def as_optim(value: Any, argument: str) -> optax.GradientTransformation | None:
    """An Optax optimiser; also what has `init` and `update` without being one, as `optax.MultiSteps` does."""
    if value is None or isinstance(value, optax.GradientTransformation):
        return value
    if callable(getattr(value, "init", None)) and callable(getattr(value, "update", None)):
        return optax.GradientTransformationExtraArgs(value.init, value.update)
    raise ValueError(f"`{argument}` must be an Optax optimiser or `None`. Got {value!r}.")


def as_distribution(value: AbstractDistribution | ArrayLike) -> AbstractDistribution:
    """A distribution, for which a number stands for `Uniform`."""
    if isinstance(value, AbstractDistribution):
        return value
    if hasattr(value, "dtype") or isinstance(value, int | float):
        return Uniform(value)
    raise ValueError(f"`distribution` must be a distribution, or a sparsity for `Uniform`. Got {value!r}.")


def as_structures(value: Any) -> AbstractStructure | PatternMap:
    """A structure, or a map from patterns to structures."""
    every = value.values() if isinstance(value, Mapping) else [value]
    for structure in every:
        instance(structure, AbstractStructure, "structure", "a structure, or a dict of pattern → structure")
    if not isinstance(value, Mapping):
        return value
    check_by_pattern(value, "structure", "structure")
    return PatternMap(value)
