"""Train a sparse MLP on images of digits over several devices, of one process or of many: the script is the same.

python examples/distributed.py                  # one process, two virtual devices

python examples/distributed.py --processes 2 --process 0 --coordinator 127.0.0.1:1234 &
python examples/distributed.py --processes 2 --process 1 --coordinator 127.0.0.1:1234      # two, of one device each
"""

import argparse
import hashlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import eqsparse


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--processes", type=int, default=1, metavar="N", help="how many processes there are (%(default)s)")
    option("--process", type=int, default=0, metavar="I", help="which of them this is, from 0 (%(default)s)")
    option("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached, with several processes")
    option("--cpus", type=int, default=2, help="virtual devices of all processes together, on CPUs (%(default)s)")
    option("--sparsity", type=float, default=0.9, help="fraction of the weights to remove (%(default)s)")
    option("--steps", type=int, default=200, help="training steps (%(default)s)")
    option("--batch", type=int, default=128, help="images in a batch, of all processes together (%(default)s)")
    args = parser.parse_args(argv)
    if args.processes < 1 or args.cpus % args.processes or args.batch % args.cpus:
        parser.error("--cpus must be a multiple of the number of processes, and --batch of --cpus")
    if args.processes > 1 and args.coordinator is None:
        parser.error("--coordinator must be given with several processes")
    return args


def connect(args):
    """Before JAX does anything else. On GPUs and TPUs of a cluster `jax.distributed.initialize()` finds the rest."""
    jax.config.update("jax_num_cpu_devices", args.cpus // args.processes)
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.processes, args.process)


def batches(args, images, labels, mesh):
    """Global batches, of which each process reads its own rows only."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    share = args.batch // jax.process_count()
    rng = np.random.default_rng(0)  # the same order in all processes
    for _ in range(args.steps):
        mine = rng.choice(len(images), args.batch, replace=False)[share * jax.process_index() :][:share]
        yield tuple(jax.make_array_from_process_local_data(rows, part[mine]) for part in (images, labels))


def sharded(model, mesh):
    """Each device holds its share of the rows of the weights (and of masks, gradients and the optimiser's state)."""

    def layout(x):
        divides = x.ndim == 2 and x.shape[0] % mesh.size == 0
        return NamedSharding(mesh, PartitionSpec("data") if divides else PartitionSpec())

    arrays, rest = eqx.partition(model, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, jax.tree.map(layout, arrays)), rest)


def loss(model, images, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels))


def train(args):
    """The trained model, its loss on the last batch, and the fraction of held-out images it gets right."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    digits = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
    held = len(images) // 5
    model = sharded(eqx.nn.MLP(64, 10, 256, 1, key=jax.random.key(0)), mesh)
    pruner = eqsparse.RigL(
        optax.adam(1e-3),
        distribution=eqsparse.ERK(args.sparsity),
        schedule=eqsparse.Periodic(0, args.steps * 3 // 4, max(args.steps // 8, 2)),
        key=jax.random.key(1),
        packed=True,
    )
    model, state = pruner.init(model)

    @eqx.filter_jit(donate="all")
    def step(model, state, images, labels):
        value, grads = eqx.filter_value_and_grad(loss)(model, images, labels)  # of the whole batch: averaged
        return *pruner.step(model, grads, state), value

    for batch in batches(args, images[held:], labels[held:], mesh):
        model, state, value = step(model, state, *batch)
    right = lambda model, x: jnp.argmax(jax.vmap(model)(x), axis=1)
    found = multihost_utils.process_allgather(eqx.filter_jit(right)(model, images[:held]), tiled=True)
    return model, float(value), float(np.mean(found == labels[:held]))


def digest(model):
    """Of all masks, and how many weights they keep. Only here, to print it, is anything gathered."""
    masks = multihost_utils.process_allgather(eqsparse.get_masks(model), tiled=True)
    whole = b"".join(np.packbits(np.asarray(masks[path])).tobytes() for path in sorted(masks))
    return hashlib.sha256(whole).hexdigest()[:16], sum(int(np.sum(mask)) for mask in masks.values())


def main(argv):
    args = arguments(argv)
    connect(args)
    model, value, accuracy = train(args)
    masks, kept = digest(model)
    if jax.process_index() == 0:
        print(f"devices {jax.device_count()}, processes {jax.process_count()}")
        print(f"loss {value:.4f}, held-out accuracy {accuracy:.3f}")
        print(f"kept {kept}, masks {masks}")


if __name__ == "__main__":
    main(sys.argv[1:])
