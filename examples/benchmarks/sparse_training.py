"""Training on the kept weights alone beside the dense step: times as fast, and bytes that a run holds.

python examples/benchmarks/sparse_training.py [--rounds N] [--batch B] [--sparsity S]

Bytes are those of parameters (with the places of kept values) and of the optimiser's state; scratch is the compiler's.
"""

import argparse

import equinox as eqx
import jax
import optax
from harness import interleave, machine, print_table, ratio, spread
from step import make_model

import eqsparse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sparsity", type=float, default=0.9)
    args = parser.parse_args()

    key = jax.random.key(0)
    x = jax.random.normal(key, (args.batch, 784))
    y = jax.random.randint(key, (args.batch,), 0, 10)
    optim = optax.adam(1e-3)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    def dense_step(carry):
        model, state = carry
        grads = eqx.filter_grad(loss)(model)
        updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    def sparse_step(training):
        def step(carry):
            model, state = carry
            return training.step(model, eqx.filter_grad(loss)(model), state, dense=eqx.filter_grad(loss))

        return step

    def contestant(step, carry):
        step = eqx.filter_jit(step, donate="all")
        memory = step.lower(carry).compile().compiled.memory_analysis()
        state = [jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, carry)]

        def run():
            state[0] = step(state[0])
            return jax.tree.leaves(eqx.filter(state[0], eqx.is_array))

        return run, eqsparse.nbytes(carry), memory.temp_size_in_bytes

    def sparse(algorithm, **settings):
        training = eqsparse.SparseTraining(algorithm(optim, distribution=args.sparsity, key=key, **settings))
        return contestant(sparse_step(training), training.init(make_model(key)))

    never, always = eqsparse.OneShot(10**9), eqsparse.Periodic(0, 10**9, 1)
    falling = {"drop_fraction": optax.constant_schedule(0.3)}
    model = make_model(key)
    made = {
        "dense": contestant(dense_step, (model, optim.init(eqx.filter(model, eqx.is_inexact_array)))),
        "static": sparse(eqsparse.StaticSparse),
        "SET, no update": sparse(eqsparse.SET, schedule=never, **falling),
        "SET, update": sparse(eqsparse.SET, schedule=always, **falling),
        "RigL, no update": sparse(eqsparse.RigL, schedule=never, **falling),
        "RigL, update": sparse(eqsparse.RigL, schedule=always, **falling),
    }
    dense, held, _ = made["dense"]
    pairs = {name: interleave({"dense": dense, name: run}, args.rounds, warmup=5) for name, (run, *_) in made.items()}
    print(f"Adam step of an MLP 784-1024-1024-10, batch {args.batch}, sparsity {args.sparsity}. {machine()}")
    rows = [
        [
            name,
            spread(pairs[name]["dense"]),
            spread(pairs[name][name]),
            f"{1 / ratio(pairs[name][name], pairs[name]['dense']):.2f}",
            f"{size / 1e6:.1f} MB",
            f"{size / held:.3f}",
            f"{scratch / 1e6:.1f} MB",
        ]
        for name, (_, size, scratch) in made.items()
    ]
    header = ["step", "dense, median [quartiles]", "this step", "times as fast", "held", "of dense", "scratch"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
