"""A training run, and the same from checkpoints of it: `python resumed_script.py FOLDER` goes on from all that are there.

What it ends with, it writes beside each.
"""

import functools
import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqsparse

STEPS = 7
KEY = jax.random.PRNGKey(3)  # of the kind that all libraries can store
SETTINGS = {"distribution": 0.5, "structure": eqsparse.NM(2, 4)}
OPTIM = optax.adam(0.02)
PRUNERS = {
    "SET": eqsparse.SET(OPTIM, **SETTINGS, schedule=eqsparse.Periodic(1, 5, 2), key=KEY),
    "LotteryTicket": eqsparse.LotteryTicket(OPTIM, **SETTINGS, rounds=2, steps=3, rewind=1),
}


def make_model():
    """One mask in bits and one in bytes."""
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [eqsparse.MaskedLinear(4, 12, packed=True, key=keys[0]), eqsparse.MaskedLinear(12, 2, key=keys[1])]
    return eqx.nn.Sequential(layers)


@functools.cache
def trainer(name):
    pruner = PRUNERS[name]
    x = jax.random.normal(jax.random.key(1), (STEPS, 8, 4))

    @eqx.filter_jit
    def step(model, state):
        loss, grads = eqx.filter_value_and_grad(lambda m, x: (jax.vmap(m)(x) ** 2).mean())(model, x[state.step])
        return *pruner.step(model, grads, state), loss

    return step


def train(name, model, state, losses, save=None):
    """To the end; the losses of all steps and every leaf."""
    step, losses = trainer(name), list(losses)
    while int(state.step) < STEPS:
        if save is not None:
            save(int(state.step), model, state, losses)
        model, state, loss = step(model, state)
        losses.append(loss)
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter((losses, model, state), eqx.is_array))]


def abstract(pruner, step):
    """What a checkpoint before a step is read into."""
    model, state = eqx.filter_eval_shape(lambda: pruner.init(make_model()))
    return model, state, [jax.ShapeDtypeStruct((), jnp.float32)] * step


def load_orbax(folder, pruner, step):
    import orbax.checkpoint as ocp

    arrays, rest = eqx.partition(abstract(pruner, step), lambda x: isinstance(x, jax.ShapeDtypeStruct))
    with ocp.StandardCheckpointer() as checkpointer:
        leaves, treedef = jax.tree.flatten(arrays)
        return eqx.combine(treedef.unflatten(checkpointer.restore(folder, leaves)), rest)


def resume(folder):
    for path in sorted(folder.iterdir()):
        name, step, kind = path.name.split("-")
        pruner, step = PRUNERS[name], int(step)
        if kind == "eqsparse":
            _, *there = eqsparse.load(path, (pruner, *abstract(pruner, step)))
        elif kind == "equinox":
            with open(path, "rb") as file:
                pruner.check_config(json.loads(file.readline()))
                there = eqx.tree_deserialise_leaves(file, abstract(pruner, step))
        else:
            there = load_orbax(path, pruner, step)
        np.savez(folder / f"{path.name}.npz", *train(name, *there))


if __name__ == "__main__":
    resume(Path(sys.argv[1]).absolute())
