"""Layers pruned in the order in which data reaches them, each on the inputs that it then has."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from .._check import instance
from .._sites import pick, read, Where
from .calibrate import calibrate, Forward, iterated
from .pruners import AbstractPostTraining

_Model = TypeVar("_Model")


def prune_sequentially(
    pruner: AbstractPostTraining,
    model: _Model,
    batches: Iterable[Any],
    groups: Sequence[Where],
    *,
    forward: Forward | None = None,
) -> _Model:
    """Prunes a model group by group: each is calibrated on the model in which the groups before are pruned already.

    So that later layers make up for what earlier ones have lost, as in the papers of SparseGPT and Wanda. Statistics of
    one group are held at a time, and layers after the group are not run.

    ```python
    blocks = [f"blocks.{i}.*" for i in range(12)]
    model = eqsparse.prune_sequentially(eqsparse.SparseGPT(distribution=0.5, where="blocks.*"), model, batches, blocks)
    ```

    **Arguments:**

    - `pruner`: `SparseGPT`, `Wanda`, or another that prunes after training.
    - `model`: An Equinox model.
    - `batches`: A list, or what else can be gone through once for each group.
    - `groups`: For each its weights, as `where` of `eqsparse.calibrate`, in the order in which data reaches them. A
        stack of layers in a `scan` is one weight, so in one group.
    - `forward`: As that of `eqsparse.calibrate`.

    **Returns:** A model with masked layers, weights zeroed. [`eqsparse.OWL`][] needs `statistics` of its own here.

    **Raises:** `ValueError` if a weight is to be pruned that is in no group, or in several, or shares a budget with
    those of another.
    """
    instance(pruner, AbstractPostTraining, "prune_sequentially(pruner=...)", "a pruner that goes by statistics")
    batches = iterated(batches, "prune_sequentially(batches=...)")
    if isinstance(groups, str) or callable(groups):
        raise ValueError(
            f"`prune_sequentially(groups=...)` must be a list of groups. Got {groups!r}: of one group a list."
        )
    if iter(batches) is batches and len(groups) > 1:
        raise ValueError(
            "`prune_sequentially(batches=...)` must be a list, or what else can be gone through several times. "
            f"Got {type(batches).__name__}."
        )
    model = pruner._checked(model)
    sites = read(model)
    made = pruner.plan_for(sites)(pruner.distribution)
    weights = {path: site.weight for path, site in sites.items()}
    picked = [pick(group, weights, "prune_sequentially(groups=...)") & set(made.sites) for group in groups]
    for path in made.sites:
        times = sum(path in paths for paths in picked)
        if times != 1:
            raise ValueError(
                f"`prune_sequentially(groups=...)` must hold each weight that is pruned once. Got `{path}` in {times}."
            )
    for budget in made.budgets:
        if not any(set(budget.paths) <= paths for paths in picked):
            raise ValueError(
                "`prune_sequentially(pruner=...)` must have a distribution by which groups have budgets of their own. "
                f"Got {pruner.distribution!r}."
            )
    for paths in picked:
        if paths:
            where = lambda path, array, paths=paths: path in paths
            statistics = calibrate(model, batches, statistics=pruner.statistic, forward=forward, where=where)
            model = pruner.prune_only(model, statistics, made.only(paths))
    return model
