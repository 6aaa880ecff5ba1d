"""Train one network on the images of many clients, who keep them: federated averaging, pruned on the server.

python examples/federated.py                                     # scikit-learn's digits, shared out by class
python examples/federated.py --mnist DIR --clients 100 --rounds 1000 --algorithm RigL

In each round a few clients get the model, train it by SGD on their own images and send back what changed. The mean of
that is the gradient of the server's step, which is the pruner's: clients always get a sparse model. They train masked
layers, so what they send back for a removed weight says what it would gain, which is what RigL grows by.
"""

from pathlib import Path

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqsparse


class Convolution(eqx.Module):
    """3x3, as a linear layer on the pixels around each one.

    Clients have weights of their own each: under `vmap` that is one product of stacked matrices, where XLA's
    convolutions are slow on CPUs.
    """

    linear: eqx.nn.Linear
    stride: int = eqx.field(static=True)

    def __init__(self, n_in, n_out, stride, *, key):
        self.linear = eqx.nn.Linear(9 * n_in, n_out, key=key)
        self.stride = stride

    def __call__(self, x):
        _, height, width = x.shape
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
        around = [x[:, i : i + height : self.stride, j : j + width : self.stride] for i in range(3) for j in range(3)]
        around = jnp.concatenate(around)
        return jax.vmap(jax.vmap(self.linear, 1, 1), 1, 1)(around)


class CNN(eqx.Module):
    convs: list[Convolution]
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, side, classes, *, dim, key):
        keys = jax.random.split(key, 4)
        self.convs = [
            Convolution(1, dim, 1, key=keys[0]),
            Convolution(dim, 2 * dim, 2, key=keys[1]),
        ]
        self.hidden = eqx.nn.Linear(2 * dim * ((side + 1) // 2) ** 2, 4 * dim, key=keys[2])
        self.head = eqx.nn.Linear(4 * dim, classes, key=keys[3])

    def __call__(self, image):
        x = image
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(jax.nn.relu(self.hidden(x.ravel())))


def make(side, classes, *, dim, key):
    return CNN(side, classes, dim=dim, key=key)


def share_out(images, labels, clients, classes_each, rng):
    """Images and labels of each client, the same number for all and of a few classes each."""
    by_class = np.argsort(labels, kind="stable")
    size = len(labels) // (clients * classes_each)
    shards = by_class[: size * clients * classes_each].reshape(-1, size)
    mine = rng.permutation(len(shards)).reshape(clients, classes_each)
    rows = shards[mine].reshape(clients, -1)
    return images[rows], labels[rows]


def forward(model, batch):
    return jax.vmap(model)(batch[0])


def loss(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(forward(model, batch), batch[1]).mean()


@eqx.filter_jit
def one_round(model, pruner, state, x, y, rate):
    """`x` and `y` begin with axes for clients, their steps, and the examples of each."""
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)

    def client(x, y):
        def sgd(parameters, batch):
            grads = jax.grad(lambda p: loss(eqx.combine(p, rest), batch))(parameters)
            return jax.tree.map(lambda p, g: p - rate * g, parameters, grads), None

        trained, _ = jax.lax.scan(sgd, parameters, (x, y))
        return jax.tree.map(jnp.subtract, parameters, trained)

    changes = jax.vmap(client)(x, y)
    gradient = jax.tree.map(lambda change: change.mean(axis=0), changes)
    return pruner.step(model, gradient, state)


predict = eqx.filter_jit(forward)


def accuracy(model, x, y):
    return float(np.mean(np.argmax(predict(model, (x, y)), axis=1) == y))


def train(model, pruner, clients, held_out, *, rounds, sampled, batch, rate, seed, tick=lambda: None, curve=30):
    """The trained model; (round, accuracy, sparsity) along the way. `clients`: images and labels of all of them."""
    rng = np.random.default_rng(seed)
    images, labels = clients
    steps = images.shape[1] // batch

    def sample():
        """An epoch of each of some clients, in batches."""
        who = rng.choice(len(images), sampled, replace=False)
        order = rng.permuted(np.tile(np.arange(images.shape[1]), (sampled, 1)), axis=1)[:, : steps * batch]
        order = order.reshape(sampled, steps, batch)
        return tuple(array[who[:, None, None], order] for array in (images, labels))

    first = tuple(part.reshape(-1, *part.shape[3:]) for part in sample())
    model, state = common.begin(pruner, model, loss, first, forward)
    history = []
    for i in range(rounds):
        model, state = one_round(model, pruner, state, *sample(), rate)
        if (i + 1) % max(1, rounds // curve) == 0 or i + 1 == rounds:
            history.append((i + 1, accuracy(model, *held_out), common.sparsity_of(model)))
        tick()
    return model, history


def arguments(argv):
    parser = common.options(__doc__, algorithm="MagnitudeSTE", sparsity=0.8, distribution="ERK", name="federated.png")
    option = parser.add_argument
    option("--mnist", type=Path, metavar="DIR", help="read MNIST from DIR instead of scikit-learn's digits")
    option("--clients", type=int, default=40, help="all there are (%(default)s)")
    option("--sampled", type=int, default=10, help="of them in each round (%(default)s)")
    option("--classes", type=int, default=2, help="that each client has images of, at most (%(default)s)")
    option("--rounds", type=int, default=400, help="of each run (%(default)s)")
    option("--every", type=int, default=10, help="rounds from one update of the masks to the next (%(default)s)")
    option("--batch", type=int, default=8, help="of a client; it goes through its images once (%(default)s)")
    option("--rate", type=float, default=3e-3, help="of the server's Adam (%(default)s)")
    option("--client-rate", type=float, default=0.05, help="of the clients' SGD (%(default)s)")
    option("--dim", type=int, default=16, help="channels of the first convolution (%(default)s)")
    args = common.parsed(parser, argv, ("clients", "sampled", "classes", "rounds", "every", "batch", "dim"))
    if args.sampled > args.clients:
        parser.error(f"--sampled must be --clients={args.clients} at most. Got {args.sampled}.")
    return args


def main(argv=None):
    args = arguments(argv)
    (x, y), held_out = common.digits(args.mnist)
    classes = int(y.max()) + 1
    if len(y) < args.clients * args.classes:
        raise SystemExit(
            f"--clients times --classes must be {len(y)} at most, the number of images. "
            f"Got {args.clients} and {args.classes}."
        )
    clients = share_out(x, y, args.clients, args.classes, np.random.default_rng(args.seed))
    each = clients[1].shape[1]
    if each < args.batch:
        raise SystemExit(f"--batch must be {each} at most, what a client has. Got {args.batch}.")
    optim = optax.adam(args.rate)
    console = common.console()

    models, curves, rows = {}, {}, []
    runs = ["dense", args.algorithm]
    with common.progress(console, dict.fromkeys(runs, args.rounds)) as tick:
        for run in runs:
            pruner = common.make_pruner(
                run, optim, sparsity=args.sparsity, steps=args.rounds, every=args.every,
                distribution=args.distribution, seed=args.seed,
            )  # fmt: skip
            if run in common.AFTER_TRAINING:
                batches = [(images, labels) for images, labels in zip(*clients, strict=True)][: args.sampled]
                model = common.after_training(pruner, eqsparse.materialise(models["dense"]), batches, forward)
                curves[run] = [(args.rounds, accuracy(model, *held_out), common.sparsity_of(model))]
                tick(run, args.rounds)
            else:
                model = make(x.shape[-1], classes, dim=args.dim, key=jax.random.key(args.seed))
                model, curves[run] = train(
                    model, pruner, clients, held_out, rounds=args.rounds, sampled=args.sampled, batch=args.batch,
                    rate=args.client_rate, seed=args.seed, tick=lambda run=run: tick(run),
                )  # fmt: skip
            models[run] = model
            rows.append((run, f"{curves[run][-1][1]:.1%}", *common.size_cells(model, models["dense"])))

    console.print(common.results_table(
        f"{args.clients} clients with {each} images each, {len(held_out[1]):,} test images",
        ["", "accuracy", "weights kept", "bytes exported"], rows,
        f"{args.rounds} rounds of {args.sampled} clients, sparsity {args.sparsity:.0%}, {args.distribution}, "
        f"seed {args.seed}",
    ))  # fmt: skip
    percent = {run: [(i, 100 * a, s) for i, a, s in rows] for run, rows in curves.items()}
    common.lines(percent, "accuracy, %", "round", args.out)
    console.print(f"Figure: {args.out}", soft_wrap=True)
    console.print(common.same_predictions(predict, models[runs[-1]], held_out), soft_wrap=True)


if __name__ == "__main__":
    main()
