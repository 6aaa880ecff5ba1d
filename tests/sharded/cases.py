"""What is trained on one device and on eight, to compare: shared by the test and the script that it starts."""

import math
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqsparse

KEY = jax.random.key(0)
WINDOW = eqsparse.Periodic(0, 2, 2)
STEPS = 3
OUT, IN = 32, 64  # a shard has at least 4 rows or 8 columns: runs of 4, tiles of 4 and bytes of 8 are whole

STRUCTURES = {
    "site": eqsparse.Unstructured(),
    "row": eqsparse.Unstructured("row"),
    "2:4": eqsparse.NM(2, 4),
    "tile": eqsparse.Block((4, 4)),
    "channel": eqsparse.Channel(),
    "fan-in": eqsparse.FixedFanIn(ablation=0.3),
}
KINDS = ("Explicit", "Auto")
POOLING = {"site", "tile", "channel"}  # what a global budget takes


def pruners(optim, **common):
    """By name; powers of two throughout, so that all arithmetic is exact and sums don't depend on their order."""
    common = {"distribution": 0.5, "packed": True} | common
    moving = common | {"schedule": WINDOW, "key": KEY, "drop_fraction": optax.constant_schedule(0.25)}
    gradual, drawing = common | {"schedule": WINDOW}, common | {"schedule": WINDOW, "key": KEY}
    together = {"distribution": eqsparse.Global(0.5, normalise=False)}
    alone = common | {"distribution": eqsparse.Uniform(common["distribution"])}
    return {
        "magnitude": lambda: eqsparse.MagnitudePruning(optim, **gradual),
        "rigl": lambda: eqsparse.RigL(optim, **moving),
        "top-kast": lambda: eqsparse.TopKAST(optim, **gradual, backward_sparsity=0.25, decay=None),
        "set": lambda: eqsparse.SET(optim, **moving),
        "sr-ste": lambda: eqsparse.SRSTE(optim, **common, decay=0.5),
        "lottery": lambda: eqsparse.LotteryTicket(optim, **common, rounds=2, steps=1),
        "snfs": lambda: eqsparse.SNFS(optim, **moving, momentum=0.5),
        "movement": lambda: eqsparse.MovementPruning(optim, **gradual),
        "ac/dc": lambda: eqsparse.ACDC(optim, **common, schedule=eqsparse.Alternating(0, 3, 1, 1)),
        "global magnitude": lambda: eqsparse.GlobalMagnitudePruning(optim, **gradual | together),
        "random": lambda: eqsparse.RandomPruning(optim, **drawing),
        "saliency": lambda: eqsparse.SaliencyPruning(optim, **gradual),
        "fisher": lambda: eqsparse.GradualPruning(optim, criterion=eqsparse.Fisher(0.5), **gradual),
        "magnitude ste": lambda: eqsparse.MagnitudeSTE(optim, **common),
        "random ste": lambda: eqsparse.RandomSTE(optim, **common, key=KEY),
        "static": lambda: eqsparse.StaticSparse(optim, **common, key=KEY),
        "global rigl": lambda: eqsparse.RigL(optim, **moving | together),
        "global saliency": lambda: eqsparse.GlobalSaliencyPruning(optim, **gradual | together),
        "snip": lambda: eqsparse.SNIP(optim, **alone),
        "grasp": lambda: eqsparse.GraSP(optim, **alone),
        "synflow": lambda: eqsparse.SynFlow(optim, **alone, rounds=2),
        "global snip": lambda: eqsparse.SNIP(optim, **common),
        "global grasp": lambda: eqsparse.GraSP(optim, **common),
        "global synflow": lambda: eqsparse.SynFlow(optim, **common, rounds=2),
        "no pruning": lambda: eqsparse.NoPruning(optim, packed=True),
    }


EVERYTHING = os.environ.get("EQSPARSE_ALL_SHARDED", "")
"""Every pruner with every structure on both kinds of mesh: `all` of them, or of some by name (`rigl,set`). Without, one
of each transition, order and view, and structures and meshes in turn (`tests/selection` has each structure in each
layout)."""

IN_TURN = {
    "magnitude": ("site",),
    "rigl": ("row",),
    "top-kast": ("2:4",),
    "set": ("tile",),
    "sr-ste": ("channel",),
    "lottery": ("fan-in",),
    "grasp": ("row",),
    "global magnitude": ("site", "tile"),
    "global synflow": ("channel",),
}


MEMBERS = 4
MAPPED = KINDS if jax.__version_info__ >= (0, 10) else KINDS[1:]  # a `where` of JAX 0.8 refuses explicit axes there
OTHERWISE = {
    "rigl, as_optax": ("rigl", ("2:4",), KINDS[:1], "as_optax"),
    "magnitude, stacked": ("magnitude", ("2:4",), KINDS[:1], "stacked"),
    "set, members": ("set", ("2:4",), MAPPED, "members"),
    "rigl, members": ("rigl", ("row",), MAPPED[:1], "members"),
}


def cases():
    """Pruner, structures, on which kinds of mesh, and in which way it is run, by the name of the case."""
    asked = pruners(None) if EVERYTHING == "all" else EVERYTHING.split(",")
    found = {}
    for i, name in enumerate(asked if EVERYTHING else IN_TURN):
        fitting = [s for s in STRUCTURES if not name.startswith("global") or s in POOLING]
        every = [tuple(fitting[at : at + 2]) for at in range(0, len(fitting), 2)]
        kinds = KINDS if EVERYTHING else [KINDS[i % 2]]
        each = every if EVERYTHING else [IN_TURN[name]]
        found |= {f"{name}: {', '.join(s)}": (name, s, kinds, "step") for s in each}
    return found | OTHERWISE


def model_of(structures, way):
    """A layer for each, or as many as there are members; weights are whole numbers with many ties."""
    rng = np.random.default_rng(0)
    members = (MEMBERS,) if way in ("members", "stacked") else ()
    layers = {}
    for name in structures:
        layer = eqx.nn.Linear(IN, OUT, use_bias=False, key=KEY)
        weight = jnp.asarray(rng.integers(-8, 9, (*members, OUT, IN)), jnp.float32)
        layers[name] = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    return layers


def gradients(model):
    """For each step, as if the batch had been averaged: whole numbers."""
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.integers(-8, 9, (STEPS, *x.shape)), x.dtype)
    return jax.tree.map(draw, eqx.filter(model, eqx.is_inexact_array))


def pruner_of(name, structures):
    by_path = {f"{s}.weight": STRUCTURES[s] for s in structures}
    common = {} if name == "no pruning" else {"structure": by_path}
    # A state of arrays of a weight's shape and a counter.
    return pruners(optax.sgd(optax.constant_schedule(0.25), momentum=0.5), **common)[name]()


def pruned(pruner, model):
    """As `prune` leaves it, by those that choose before training. Scores are whole numbers."""
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.integers(-1, 2, (4, size)), jnp.float32) for size in (IN, OUT))
    if isinstance(pruner, eqsparse.SynFlow):  # each layer's weights count as much as all others let through
        through = lambda model, x: math.prod(jnp.sum(jax.vmap(layer)(x[:1])) for layer in model.values())
        return pruner.prune(model, data=x, forward=through)
    loss = lambda model, data: sum(jnp.sum((jax.vmap(layer)(data[0]) - data[1]) ** 2) for layer in model.values())
    return pruner.prune(model, loss=loss, data=(x, y))


def train(way, pruner, model, grads):
    """Masks at `init` and after each step, and weights and state in the end: one program."""
    run = by_step if way != "as_optax" else by_updates
    if way == "members":
        run = eqx.filter_vmap(run, in_axes=(None, 0, 1), out_axes=(0, 1, 0))
    return run(pruner, model, grads)


def by_step(pruner, model, grads):
    if isinstance(pruner, eqsparse.SNIP | eqsparse.GraSP | eqsparse.SynFlow):
        model = pruned(pruner, model)
    model, state = pruner.init(model)
    masks = lambda model: {path: layer.masks["weight"].bits for path, layer in model.items()}
    start, static = eqx.partition((model, state), eqx.is_array)

    def step(carry, grads):
        model, state = eqx.combine(carry, static)
        weights = jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
        after = pruner.step(model, jax.tree.unflatten(weights, jax.tree.leaves(grads)), state)
        return eqx.filter(after, eqx.is_array), masks(after[0])

    (end, state), along = jax.lax.scan(step, start, grads)
    return masks(model), along, ({path: layer.weight for path, layer in end.items()}, state)


def by_updates(pruner, model, grads):
    tx, params = pruner.as_optax(), eqx.filter(model, eqx.is_inexact_array)
    masks = lambda state: {path: state.masks[f"{path}.weight"].bits for path in model}
    start = params, tx.init(params)

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), masks(state)

    (params, state), along = jax.lax.scan(step, start, grads)
    return masks(start[1]), along, ({path: layer.weight for path, layer in params.items()}, state)


def regression():
    """A model, a pruner, a loss and a batch whose mean gradient is exact in any order of summing."""
    rng = np.random.default_rng(2)
    layer = eqx.nn.Linear(IN, OUT, use_bias=False, key=KEY)
    draw = lambda most, *shape: jnp.asarray(rng.integers(-most, most + 1, shape), jnp.float32)
    layer = eqx.tree_at(lambda layer: layer.weight, layer, draw(2, OUT, IN))
    pruner = eqsparse.RigL(optax.sgd(2.0**-4), distribution=0.75, schedule=WINDOW, key=KEY)

    def loss(model, x, y):
        error = jax.vmap(model)(x) - y
        return jnp.mean(jnp.sum(error**2, axis=1))

    return layer, pruner, loss, (draw(1, 32, IN), draw(2, 32, OUT))
