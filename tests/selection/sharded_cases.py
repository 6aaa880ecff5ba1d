"""What is selected on one device and on eight, to compare: shared by the test and the script that it starts."""

import functools
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqsparse._distribution import Global
from eqsparse._mask import Mask
from eqsparse._selection import density_of, finish_all
from eqsparse._sites import read
from eqsparse._structure import Block, Channel, Geometry, NM, Unstructured

select = importlib.import_module("eqsparse._selection.select")  # the room has a function of that name

ROWS, COLUMNS = 64, 320  # a shard has 8 rows or 40 columns: runs of 4 and 40, tiles of 4 and bytes of 8 align

# Nearly all the time goes into machine code that runs a few times. What is partitioned how is decided before, and
# what is fused, but for the last option.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
# JAX 0.11 and later know no other way, and refuse options that they do not know.
QUICKLY = UNOPTIMISED | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})


class Case(NamedTuple):
    """A function of score arrays and a density, how each array is laid out, and at which sparsities it is tried."""

    choose: object
    specs: list
    stack: tuple = ()
    sparsities: tuple = (0.0, 0.9, 0.5, 1.0)
    many: int = select._MANY  # from how many groups on keys are searched byte by byte


@functools.cache  # the same function for the same structure, so that one device finds its masks once
def alone(structure):
    def choose(arrays, density):
        return finish_all([structure.enter(arrays[0], density, Geometry(2, 1))])

    return choose


def one(structure, *spec, stack=(), **kwargs):
    return Case(alone(structure), [spec], stack, **kwargs)


def shared(structure, specs, **kwargs):
    """A global budget over several arrays."""

    def choose(arrays, density):
        sites = read({str(i): a for i, a in enumerate(arrays)})
        (budget,) = Global(0.5, **kwargs).budgets(sites)
        scores = {str(i): jnp.abs(a) for i, a in enumerate(arrays)}
        (chosen,) = finish_all([budget.enter(scores, sites, dict.fromkeys(sites, structure), density)])
        return [chosen[path] for path in sites]

    return Case(choose, specs)


def packing(arrays, density):
    mask = Mask(arrays[0] > 0, packed=True)
    return [mask.bits, mask.dense()]


PAIRS = (0.0, 0.25, 0.5)

CASES = {
    "site by rows": one(Unstructured(), "x", None),
    "site by columns": one(Unstructured(), None, "x"),
    "site by both": one(Unstructured(), "a", "b"),
    "site of a stack, by layers": one(Unstructured(), "x", None, None, stack=(8,)),
    "site of a stack, by rows": one(Unstructured(), None, "x", None, stack=(8,)),
    "row by rows": one(Unstructured("row"), "x", None),
    "row by columns": one(Unstructured("row"), None, "x"),
    "2:4 by rows": one(NM(2, 4), "x", None, sparsities=PAIRS),
    "2:4 by columns": one(NM(2, 4), None, "x", sparsities=PAIRS),
    "2:4 by both": one(NM(2, 4), "a", "b", sparsities=PAIRS),
    "2:4 along rows, by rows": one(NM(2, 4, axis=0), "x", None, sparsities=PAIRS),
    "2:4 along rows, by columns": one(NM(2, 4, axis=0), None, "x", sparsities=PAIRS),
    "10:40 by rows": one(NM(10, 40), "x", None, sparsities=(0.0, 0.5)),
    "10:40 by columns": one(NM(10, 40), None, "x", sparsities=(0.0, 0.5)),
    "average tiles by rows": one(Block((4, 4)), "x", None),
    "average tiles by columns": one(Block((4, 8)), None, "x"),
    "average tiles by both": one(Block((4, 4)), "a", "b"),
    "maximum tiles by columns": one(Block((2, 4), "max"), None, "x"),
    "output channels by rows": one(Channel(0), "x", None),
    "output channels by columns": one(Channel(0), None, "x"),
    "input channels by columns": one(Channel(1), None, "x"),
    "input channels by rows": one(Channel(1), "x", None),
    "global": shared(Unstructured(), [("x", None), (None, "x"), (None, None)], floor=0),
    "global, no norm": shared(Unstructured(), [("a", "b"), ("b", None)], normalise=False, floor=0),
    "global, large floor": shared(Unstructured(), [("x", None), (None, "x")], floor=9000),
    "global tiles": shared(Block((4, 4)), [("x", None), (None, "x")], normalise=False, floor=0),
    "byte by byte, by rows": one(Unstructured(), "x", None, many=0),
    "byte by byte, by both": one(Unstructured(), "a", "b", many=0),
    "byte by byte, global": shared(Unstructured(), [("x", None), (None, "x")], floor=0)._replace(many=0),
    "packed by rows": Case(packing, [("x", None)], (), (0.0,)),
    "packed by columns": Case(packing, [(None, "x")], (), (0.0,)),
}


def scores(case):
    """Many ties, infinities, NaNs and both zeros; whole numbers, so that no sum depends on its order."""
    rng = np.random.default_rng(0)
    arrays = []
    for i in range(len(case.specs)):
        array = rng.integers(-4, 5, (*case.stack, ROWS, COLUMNS)).astype(np.float32) * (i + 1)
        flat = array.reshape(-1)
        flat[rng.choice(flat.size, 60, replace=False)] = np.repeat([np.inf, -np.inf, np.nan, -0.0], 15)
        arrays.append(array)
    return arrays


@functools.cache
def density(sparsity):
    return np.asarray(density_of(sparsity))


def run(case, arrays):
    """The masks at each sparsity, and the compiled function."""
    select._MANY = case.many
    # A function of its own: what is traced depends on more than the arguments.
    compiled = jax.jit(lambda *args: case.choose(*args)).lower(arrays, density(0)).compile(QUICKLY)
    return [np.asarray(m) for s in case.sparsities for m in compiled(arrays, density(s))], compiled
