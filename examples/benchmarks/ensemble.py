"""What a sparse step of an ensemble costs beside its dense step where no update is due, by paired ratios.

python examples/benchmarks/ensemble.py

Both ways to prune an ensemble: a pruner for each member by `eqx.filter_vmap`, or one pruner on the stacked weights.
"""

import argparse

import equinox as eqx
import jax
import optax
from harness import interleave, machine, print_table, ratio, spread

import eqsparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", default="", help="part of the names of the steps to time")
    args = parser.parse_args()

    key, optim = jax.random.key(0), optax.adam(1e-3)
    x = jax.random.normal(key, (args.batch, 784))
    y = jax.random.randint(key, (args.batch,), 0, 10)
    make = eqx.filter_vmap(lambda key: eqx.nn.MLP(784, 10, 512, depth=2, key=key))
    nets = lambda: make(jax.random.split(key, args.members))

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    gradient = eqx.filter_vmap(eqx.filter_grad(loss))

    def dense(model, state):
        updates, state = optim.update(gradient(model), state)
        return eqx.apply_updates(model, updates), state

    def by_member(pruner):
        step = eqx.filter_vmap(lambda model, state: pruner.step(model, eqx.filter_grad(loss)(model), state))
        return step, eqx.filter_vmap(pruner.init)(nets())

    def stacked(pruner):
        return lambda model, state: pruner.step(model, gradient(model), state), pruner.init(nets())

    def contestant(step, carry):
        step = eqx.filter_jit(step, donate="all")
        held = [jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, carry)]

        def run():
            held[0] = step(*held[0])
            return jax.tree.leaves(eqx.filter(held[0], eqx.is_array))

        return run

    never, often = eqsparse.OneShot(10**9), eqsparse.Periodic(0, 10**9, 1)
    gradual = lambda when, **how: eqsparse.MagnitudePruning(optim, distribution=0.9, schedule=when, **how)
    rigl = lambda when: eqsparse.RigL(
        optim, distribution=0.9, schedule=when, key=key, drop_fraction=optax.constant_schedule(0.3)
    )
    made = {
        "gradual, by member, no update": lambda: by_member(gradual(never)),
        "gradual, by member, no update, packed": lambda: by_member(gradual(never, packed=True)),
        "gradual, stacked, no update": lambda: stacked(gradual(never)),
        "RigL, by member, no update": lambda: by_member(rigl(never)),
        "RigL, stacked, no update": lambda: stacked(rigl(never)),
        "gradual, by member, update": lambda: by_member(gradual(often)),
        "gradual, stacked, update": lambda: stacked(gradual(often)),
    }
    model = nets()
    base = contestant(dense, (model, optim.init(eqx.filter(model, eqx.is_inexact_array))))
    rows = []
    for name in filter(lambda name: args.only in name, made):  # each beside the dense step alone, as in step.py
        step, carry = made[name]()
        times = interleave({"dense": base, name: contestant(step, carry)}, args.rounds, warmup=5)
        rows.append([name, spread(times["dense"]), spread(times[name]), f"{ratio(times[name], times['dense']):.3f}"])
    print(f"Adam step of {args.members} MLPs 784-512-512-10, batch {args.batch}, 90% sparse. {machine()}")
    print_table(["step", "dense, median [quartiles]", "this step", "of dense"], rows)


if __name__ == "__main__":
    main()
