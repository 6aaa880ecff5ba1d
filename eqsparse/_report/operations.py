"""How many operations each weight takes part in when a model is called, from shapes alone."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as core
from jaxtyping import PyTree

from .._sites import Sites, write

Forward = Callable[[Any, Any], PyTree]


class Operations(NamedTuple):
    """Multiplications and additions: of the products of each site's weight with data, and of all other products."""

    by_path: dict[str, int]
    other: int


def operations_of(model: PyTree, x: PyTree, forward: Forward, sites: Sites) -> Operations:
    """Those of one call, in which nothing is computed: it is traced, and its products of matrices are looked at.

    A product is a site's if one of its factors was made from that site's weight and no data (masked, normalised,
    transposed, sliced from a stack), and the other from data.
    """
    is_traced = lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    rest, static = eqx.partition((model, x), is_traced)

    def call(weights: dict[str, Any], rest: PyTree) -> list[Any]:
        model, x = eqx.combine(rest, static)
        return jax.tree.leaves(eqx.filter(forward(write(model, weights), x), eqx.is_array))

    weights = {path: site.weight for path, site in sites.items()}
    traced = jax.make_jaxpr(call)(weights, rest)
    paths = sorted(weights)  # in which order a dict's values are flattened
    of_model, of_x = (len(jax.tree.leaves(part)) for part in rest)
    tags = [*(frozenset([path]) for path in paths), *[_NOTHING] * of_model, *[_DATA] * of_x]
    counts, _ = _walk(traced.jaxpr, [_DATA] * len(traced.consts), tags)
    return Operations({path: counts.get(path, 0) for path in sites}, counts.get(_OTHER, 0))


Tag = frozenset[str] | None  # the sites that an array is made of, if of weights alone; `None` for data
Counts = dict[str | None, int]

_DATA: Tag = None
_NOTHING: Tag = frozenset()
_OTHER = None  # the key of what is no site's


def _walk(jaxpr: Any, constants: Sequence[Tag], arguments: Sequence[Tag]) -> tuple[Counts, list[Tag]]:
    """The operations of a program, and what its results are made of."""
    tags = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    tag_of = lambda atom: _NOTHING if isinstance(atom, core.Literal) else tags[atom]
    total: Counts = {}
    for equation in jaxpr.eqns:
        counts, results = _of_equation(equation, [tag_of(atom) for atom in equation.invars])
        total = _sum(total, counts)
        tags.update(zip(equation.outvars, results, strict=True))
    return total, [tag_of(atom) for atom in jaxpr.outvars]


def _of_equation(equation: Any, tags: list[Tag]) -> tuple[Counts, list[Tag]]:
    name, params, outputs = equation.primitive.name, equation.params, len(equation.outvars)
    if name in _PRODUCTS:
        return {_owner(*tags[:2]): 2 * _PRODUCTS[name](equation)}, [_join(tags)] * outputs
    if name == "scan":
        body = params["jaxpr"]
        counts, results = _loop(lambda tags: _closed(body, tags), tags, _carried_by_scan(params, len(tags)))
        return _times(counts, params["length"]), results
    if name == "while":
        # How often it runs is not known, so it counts once.
        tags = tags[params["cond_nconsts"] :]
        body, carried = params["body_jaxpr"], slice(params["body_nconsts"], len(tags))
        return _loop(lambda tags: _closed(body, tags), tags, carried)
    if name == "cond":
        branches = [_closed(branch, tags[1:]) for branch in params["branches"]]
        costliest = max((counts for counts, _ in branches), key=lambda counts: sum(counts.values()))
        return costliest, [_join([*each, tags[0]]) for each in zip(*(r for _, r in branches), strict=True)]
    inner = [value for value in params.values() if isinstance(value, core.ClosedJaxpr | core.Jaxpr)]
    if len(inner) == 1 and _takes(inner[0]) == len(tags):
        counts, results = _closed(inner[0], tags)
        if len(results) == outputs:
            return (_times(counts, params["mesh"].size) if name == "shard_map" else counts), results
    return {}, [_join(tags)] * outputs


def _carried_by_scan(params: dict[str, Any], count: int) -> slice:
    """Which arguments are carried: those after the constants. JAX 0.12 tells it otherwise than those before."""
    if "ft_in" in params:
        constants, carried, _ = (list(part) for part in params["ft_in"].update(range(count)).unpack())
        return slice(len(constants), len(constants) + len(carried))
    return slice(params["num_consts"], params["num_consts"] + params["num_carry"])


def _loop(body: Callable[[list[Tag]], tuple[Counts, list[Tag]]], tags: list[Tag], carried: slice):
    """One pass of a loop, in which what is carried is what it is after any number of passes."""
    while True:
        counts, results = body(tags)
        carry = [_join(both) for both in zip(tags[carried], results, strict=False)]
        if carry == tags[carried]:
            return counts, results
        tags = [*tags[: carried.start], *carry, *tags[carried.stop :]]


def _closed(program: Any, tags: list[Tag]) -> tuple[Counts, list[Tag]]:
    if isinstance(program, core.ClosedJaxpr):
        return _walk(program.jaxpr, [_DATA] * len(program.consts), tags)
    return _walk(program, [], tags)


def _takes(program: Any) -> int:
    return len((program.jaxpr if isinstance(program, core.ClosedJaxpr) else program).invars)


def _owner(left: Tag, right: Tag) -> str | None:
    made_of = left if right is _DATA else right if left is _DATA else None
    return next(iter(made_of)) if made_of is not None and len(made_of) == 1 else _OTHER


def _join(tags: Sequence[Tag]) -> Tag:
    known = [tag for tag in tags if tag is not None]
    return frozenset(itertools.chain(*known)) if len(known) == len(tags) else _DATA


def _of_dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    """As is usual, products with padding count; those with the gaps of a transposed convolution do not."""
    spec, params = equation.params["dimension_numbers"], equation.params
    inputs, kernel, outputs = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    places = [
        outputs[out_axis] if dilation == 1 else inputs[in_axis]
        for out_axis, in_axis, dilation in zip(
            spec.out_spec[2:], spec.lhs_spec[2:], params["lhs_dilation"], strict=True
        )
    ]
    maps = outputs[spec.out_spec[0]] * outputs[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
    return maps * math.prod(places) * math.prod(kernel[axis] for axis in spec.rhs_spec[2:])


_PRODUCTS: dict[str, Callable[[Any], int]] = {"dot_general": _of_dot, "conv_general_dilated": _of_convolution}


def _sum(one: Counts, other: Counts) -> Counts:
    return {path: one.get(path, 0) + other.get(path, 0) for path in one | other}


def _times(counts: Counts, n: int) -> Counts:
    return {path: n * count for path, count in counts.items()}
