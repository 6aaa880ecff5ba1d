"""The optimiser's step, and its state: matched to weights by key path, whatever the optimiser."""

import abc
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, ArrayLike, Bool, PyTree, Shaped

from .._mask import on_mask
from .._sites import leaves_by_path, path_of, Sites, write

_Tree = TypeVar("_Tree")


def start(optim: optax.GradientTransformation, parameters: PyTree) -> PyTree:
    """The state that an Optax optimiser begins with."""
    with _as_optax_computes():  # some call schedules of theirs here already
        return _strong(optim.init(parameters))


def optimise(
    optim: optax.GradientTransformation, grads: PyTree, state: PyTree, parameters: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree, PyTree]:
    """One step of an Optax optimiser: updates, new parameters in their own dtypes, and new state."""
    with _as_optax_computes():
        updates, state = optax.with_extra_args_support(optim).update(grads, state, parameters, **extra)
        _of_same_shapes(updates, parameters)
        return updates, optax.apply_updates(parameters, updates), _strong(state)


@contextlib.contextmanager
def _as_optax_computes() -> Iterator[None]:
    """Optax's own arithmetic mixes dtypes and ranks, whatever users allow in theirs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _of_same_shapes(updates: PyTree, parameters: PyTree) -> None:
    """Raises for updates that would be broadcast, as those of transformations that take a batch of gradients."""
    made, want = ({path: leaf.shape for path, leaf in leaves_by_path(tree)} for tree in (updates, parameters))
    if made != want:
        path = next(p for p in {**want, **made} if want.get(p) != made.get(p))
        raise ValueError(
            f"`optim` must make one update for each parameter, of its shape, {want.get(path)} at `{path}`. "
            f"Got {made.get(path)}. Those that take a gradient for each example, as the differentially private ones "
            "do, are run before `step`, which takes what they make as `grads`."
        )


def _strong(state: _Tree) -> _Tree:
    """A state without weak types, which some optimisers start with and lose after a step: it would compile twice."""
    weak = lambda x: getattr(x, "weak_type", False)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if weak(x) else x, state)


def numbers_as_arrays(extra: _Tree) -> _Tree:
    """Python's numbers as arrays: as constants of the compiled step, each `value=float(loss)` would compile anew."""
    number = lambda x: isinstance(x, int | float | complex) and not isinstance(x, bool)
    return jax.tree.map(lambda x: jnp.asarray(x) if number(x) else x, extra)


class AbstractUpkeep(eqx.Module):
    """What becomes of the optimiser's state of a weight when its mask changes."""

    @abc.abstractmethod
    def renewed(
        self,
        leaf: Shaped[Array, "..."],
        fresh: Callable[[], Array],
        before: Bool[Array, "..."] | None,
        now: Bool[Array, "..."] | None,
        due: ArrayLike,
    ) -> Shaped[Array, "..."]:
        """A part of the state that has a parameter's shape, renewed at each step.

        **Arguments:**

        - `leaf`: The part.
        - `fresh`: Makes it as `optim.init` does.
        - `before`, `now`: Where the weights were alive, and are; `None` for a parameter without a mask.
        - `due`: Whether masks were updated.
        """


@final
class FreshWhereGrown(AbstractUpkeep):
    """Zero where a weight is dropped, as `optim.init` gives it where one has grown.

    A count that all weights share goes on, so Adam corrects the bias of a grown weight's moments less than that of
    a weight in its first steps.
    """

    def renewed(self, leaf: Array, fresh: Callable, before: Any, now: Any, due: ArrayLike) -> Array:
        if now is None:
            return leaf
        kept = on_mask(leaf, now & before)
        return jnp.where(now & ~before, fresh(), kept)


@final
class ZeroWhereDropped(AbstractUpkeep):
    """Zero where a weight is dropped; for masks that never grow."""

    def renewed(self, leaf: Array, fresh: Callable, before: Any, now: Any, due: ArrayLike) -> Array:
        return leaf if now is None else on_mask(leaf, now)


@final
class Untouched(AbstractUpkeep):
    """As the optimiser leaves it; for weights that train whatever their mask."""

    def renewed(self, leaf: Array, fresh: Callable, before: Any, now: Any, due: ArrayLike) -> Array:
        return leaf


@final
class FreshAtUpdates(AbstractUpkeep):
    """As `optim.init` gives it, for all parameters, whenever masks are updated; zero where a weight is dropped."""

    def renewed(self, leaf: Array, fresh: Callable, before: Any, now: Any, due: ArrayLike) -> Array:
        leaf = jnp.where(due, fresh(), leaf)
        return leaf if now is None else on_mask(leaf, now)


class Parameter(NamedTuple):
    """A parameter in the tree that the optimiser sees.

    - `site`: the path of its site, `None` if it is none.
    - `shape`: its shape.
    - `depth`: how many names its path in that tree has.
    """

    site: str | None
    shape: tuple[int, ...]
    depth: int


Parameters = Mapping[str, Parameter]


def renew_state(
    upkeep: AbstractUpkeep,
    state: PyTree,
    fresh: Callable[[], PyTree],
    parameters: Parameters,
    before: Mapping[str, Bool[Array, "..."] | None],
    now: Mapping[str, Bool[Array, "..."] | None],
    due: ArrayLike,
) -> PyTree:
    """The optimiser's state after masks have changed.

    A leaf belongs to the parameter whose key path its own ends with, if their shapes are equal (but for an axis in
    front, as the history of L-BFGS has); so it works for moments in any chain, wrapper or partition, and leaves
    counters and factored statistics alone.
    """
    made: dict[int, Array] = {}

    def fresh_at(place: int) -> Array:
        if not made:
            made.update(enumerate(_leaves(fresh())[1]))
        return made[place]

    def renewed(place: int, owner: Parameter | None, leaf: Any) -> Any:
        shape = getattr(leaf, "shape", None)
        history = owner is not None and owner.site is not None and shape is not None and shape[1:] == owner.shape
        if owner is None or not (history or shape == owner.shape):
            return leaf
        was, is_now = (None, None) if owner.site is None else (before.get(owner.site), now.get(owner.site))
        if history:
            was, is_now = (None if mask is None else jnp.broadcast_to(mask, leaf.shape) for mask in (was, is_now))
        return upkeep.renewed(leaf, lambda: fresh_at(place), was, is_now, due)

    names, leaves, treedef = _leaves(state)
    owned = zip(_owners(names, parameters), leaves, strict=True)
    return treedef.unflatten([renewed(place, owner, leaf) for place, (owner, leaf) in enumerate(owned)])


def state_by_site(state: PyTree, field: str, parameters: Parameters) -> dict[str, Array]:
    """The part of an optimiser's state that is called so, by path of the site: the first there is."""
    found: dict[str, Array] = {}
    names, leaves, _ = _leaves(state)
    for way, owner, leaf in zip(names, _owners(names, parameters), leaves, strict=True):
        if owner is None or owner.site is None or getattr(leaf, "shape", None) != owner.shape:
            continue
        if way[: len(way) - owner.depth][-1:] == [field]:
            found.setdefault(owner.site, leaf)
    return found


def parameters_by_path(parameters: PyTree, sites: Sites) -> Parameters:
    """Each parameter by its path in its tree (that of its site is another in a masked model)."""
    tagged = write(parameters, {path: _Tag(path, site.weight.shape) for path, site in sites.items()})
    is_tag = lambda x: isinstance(x, _Tag)
    found, _ = jtu.tree_flatten_with_path(tagged, is_leaf=is_tag)
    site_of = lambda leaf: leaf.path if is_tag(leaf) else None
    return {path_of(keys): Parameter(site_of(leaf), tuple(leaf.shape), len(keys)) for keys, leaf in found}


class _Tag:
    """A mark in the place of an array."""

    def __init__(self, path: str, shape: tuple[int, ...]):
        self.path, self.shape = path, shape


def _leaves(state: PyTree) -> tuple[list[list[str]], list[Any], Any]:
    """The names on the way to each leaf, the leaves, and the structure.

    Also the empty places of parameters that a wrapper leaves out: they tell where its copies of the tree begin.
    """
    found, treedef = jtu.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, tuple) and not x)
    return [[path_of([key]) for key in keys] for keys, _ in found], [leaf for _, leaf in found], treedef


def _owners(leaves: list[list[str]], parameters: Parameters) -> list[Parameter | None]:
    """The parameter that each leaf of a state belongs to, given by the names on its way.

    Where several ends of its way are paths of parameters (a model may have a field called `mu`, as Adam's state
    has), that one counts before which most parameters are found: there a copy of their tree begins.
    """
    starts = [[at for at in range(len(names) + 1) if ".".join(names[at:]) in parameters] for names in leaves]
    found = Counter(tuple(names[:at]) for names, ats in zip(leaves, starts, strict=True) for at in ats)
    owners: list[Parameter | None] = []
    for names, ats in zip(leaves, starts, strict=True):
        best = max(ats, key=lambda at, names=names: found[tuple(names[:at])], default=None)
        owners.append(None if best is None else parameters[".".join(names[best:])])
    return owners
