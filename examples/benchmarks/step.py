"""What a sparse training step costs beside the dense one: time by paired ratios, memory by the compiler's account.

python examples/benchmarks/step.py

"The least a masked step does" is a loop written by hand: forward on the masks, the gradient pulled back to them, Adam,
weights zeroed. What a pruner takes more is its own cost.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from harness import interleave, machine, print_table, ratio, spread

import eqsparse


def make_model(key):
    keys = jax.random.split(key, 3)
    sizes = [(784, 1024), (1024, 1024), (1024, 10)]
    layers = [eqx.nn.Linear(i, o, key=k) for (i, o), k in zip(sizes, keys, strict=True)]
    relu = eqx.nn.Lambda(jax.nn.relu)
    return eqx.nn.Sequential([layers[0], relu, layers[1], relu, layers[2]])


def zeroed(tree, model):
    """A tree like the model, its weights zero where the model's masks are `False`."""
    weights = lambda tree: [tree.layers[i].layer.weight for i in (0, 2, 4)]
    masks = [model.layers[i].masks["weight"].dense() for i in (0, 2, 4)]
    return eqx.tree_at(weights, tree, [jnp.where(m, w, 0) for m, w in zip(masks, weights(tree), strict=True)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()

    key = jax.random.key(0)
    x = jax.random.normal(key, (args.batch, 784))
    y = jax.random.randint(key, (args.batch,), 0, 10)
    optim = optax.adam(1e-3)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    @eqx.filter_jit(donate="all")
    def dense_step(carry):
        model, state = carry
        grads = eqx.filter_grad(loss)(model)
        updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    @eqx.filter_jit(donate="all")
    def least_step(carry):
        model, state = carry
        grads = zeroed(eqx.filter_grad(loss)(model), model)
        updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return zeroed(eqx.apply_updates(model, updates), model), state

    def sparse_step(pruner):
        @eqx.filter_jit(donate="all")
        def step(carry):
            model, state = carry
            return pruner.step(model, eqx.filter_grad(loss)(model), state)

        return step

    def contestant(step, carry):
        arrays, _ = eqx.partition(carry, eqx.is_array)
        memory = step.lower(carry).compile().compiled.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        state = [jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, carry)]

        def run():
            state[0] = step(state[0])
            return jax.tree.leaves(eqx.filter(state[0], eqx.is_array))

        del arrays
        return run, peak

    def plain(step, model):
        return contestant(step, (model, optim.init(eqx.filter(model, eqx.is_inexact_array))))

    def sparse(pruner, *, prune=False):
        model = make_model(key)
        return contestant(sparse_step(pruner), pruner.init(pruner.prune(model) if prune else model))

    never, always = eqsparse.OneShot(10**9), eqsparse.Periodic(0, 10**9, 1)
    gradual = {"distribution": 0.9, "schedule": never}
    moving = {"distribution": 0.9, "key": key, "drop_fraction": optax.constant_schedule(0.3)}
    made = {
        "dense": plain(dense_step, make_model(key)),
        "the least a masked step does": plain(
            least_step, eqsparse.MagnitudePruning(distribution=0.9).prune(make_model(key))
        ),
        "gradual, no update": sparse(eqsparse.MagnitudePruning(optim, **gradual), prune=True),
        "gradual, no update, packed": sparse(eqsparse.MagnitudePruning(optim, **gradual, packed=True), prune=True),
        "gradual, update": sparse(eqsparse.MagnitudePruning(optim, distribution=0.9, schedule=always), prune=True),
        "RigL, no update": sparse(eqsparse.RigL(optim, **moving, schedule=never)),
        "RigL, update": sparse(eqsparse.RigL(optim, **moving, schedule=always)),
        "SET, no update": sparse(eqsparse.SET(optim, **moving, schedule=never)),
        "Top-KAST, no update": sparse(eqsparse.TopKAST(optim, distribution=0.9, backward_sparsity=0.5, schedule=never)),
        "STE": sparse(eqsparse.MagnitudeSTE(optim, distribution=0.9)),
    }
    # Each beside the dense step alone: with all of them in turn, every step would find the caches full of the others'.
    dense = made["dense"][0]
    pairs = {name: interleave({"dense": dense, name: run}, args.rounds, warmup=10) for name, (run, _) in made.items()}
    print(f"Adam step of an MLP 784-1024-1024-10, batch {args.batch}, 90% sparse. {machine()}")
    rows = [
        [
            name,
            spread(pairs[name]["dense"]),
            spread(pairs[name][name]),
            f"{ratio(pairs[name][name], pairs[name]['dense']):.3f}",
            f"{peak / 1e6:.1f} MB",
            f"{peak / made['dense'][1]:.3f}",
        ]
        for name, (_, peak) in made.items()
    ]
    print_table(["step", "dense, median [quartiles]", "this step", "of dense", "arguments + scratch", "of dense"], rows)


if __name__ == "__main__":
    main()
