"""Exported layers and models: bytes, and time side by side with dense ones and JAX's own `BCOO @ x` under `vmap`.

    python examples/benchmarks/export.py [--quick] [--parts P ...] [--shapes S ...] [--sparsities S ...]
                                         [--models M ...] [--rounds N] [--seconds S]

Products first: each contestant is a layer that is called under `jax.vmap` and compiled, its arrays arguments; they take
turns, and a figure is the median [quartiles]. `auto` by bytes and by latency are what `eqsparse.export` chooses. Then
two models, pruned by magnitude to 90% and exported. On a slow machine run it in pieces: a part, a shape, a model at a
time.
"""

import argparse
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from harness import interleave, machine, print_table, ratio, spread
from jax.experimental import sparse

import eqsparse

SHAPES = {"1024x1024": (1024, 1024), "3072x768": (3072, 768), "4096x4096": (4096, 4096)}
SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98]
BATCHES = [1, 16, 128]
LAYOUTS = {
    "bitmask": eqsparse.BitmaskLayout,
    "delta": eqsparse.DeltaLayout,
    "fixed_fanin": eqsparse.FixedFanInLayout,
    "bcsr": eqsparse.BCSRLayout,
    "bcoo": eqsparse.BCOOLayout,
}
PARTS = ["bytes", "times", "structured", "convolutions", "models"]
# Channels in and out, size and stride of the kernel, side of the image, batch.
CONVOLUTIONS = [
    (64, 128, 3, 1, 8, 128),
    (128, 256, 3, 1, 8, 128),
    (64, 64, 3, 1, 32, 16),
    (64, 128, 3, 1, 16, 1),
    (256, 64, 1, 1, 14, 16),
    (3, 64, 7, 2, 224, 1),
]
STRUCTURED = {"nm": eqsparse.NM(2, 4), "block": eqsparse.Block((16, 16))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="turns each contestant takes")
    parser.add_argument("--seconds", type=float, default=2.0, help="about the most that the turns of one row may take")
    parser.add_argument("--quick", action="store_true", help="one shape and two sparsities")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, metavar="OUTxIN")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES, metavar="S")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    args = parser.parse_args()
    print(machine(), "\n")
    shapes, sparsities = [SHAPES[name] for name in args.shapes], args.sparsities
    if args.quick:
        shapes, sparsities = [SHAPES["3072x768"]], [0.9, 0.95]
    if "bytes" in args.parts:
        print_bytes(shapes, sparsities)
    for shape in shapes if "times" in args.parts else []:
        print_times(shape, sparsities, args)
    if "structured" in args.parts:
        print_structured(args)
    if "convolutions" in args.parts:
        print_convolutions(sparsities, args)
    if "models" in args.parts:
        print_models(args)


# Products.


def print_bytes(shapes, sparsities):
    print("Bytes over the theoretical minimum (kept values and the entropy of the mask)\n")
    rows = []
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        for shape in shapes:
            for sparsity in sparsities:
                mask = np.random.default_rng(0).random((1, *shape)) >= sparsity
                p = mask.mean()
                least = mask.size * (p * itemsize - (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8)
                sizes = {name: layout.bytes_of(mask, itemsize) for name, layout in LAYOUTS.items()}
                best = min(sizes, key=sizes.get)
                cells = [f"{size / least:.2f}" for size in sizes.values()]
                rows.append([dtype, shown(shape), f"{sparsity:.0%}", *cells, f"{sizes[best] / least:.2f} {best}"])
    print_table(["", "shape", "sparsity", *LAYOUTS, "auto"], rows)


def print_times(shape, sparsities, args):
    print(f"\n{shown(shape)}, float32: milliseconds, and times as fast as dense\n")
    rows = []
    for sparsity in sparsities:
        masked = random_layer(shape, sparsity)
        layers = contestants(masked, LAYOUTS)
        rows += [[f"{sparsity:.0%}", str(batch), *times(masked, layers, batch, args)] for batch in BATCHES]
    print_table(["sparsity", "batch", "dense", "auto (latency)", "auto (bytes)", *LAYOUTS], rows)
    print("\nDense, auto by latency, and what one writes without a library, at 90% and batch 128\n")
    print_table(["dense", "auto (latency)", "vmap of BCOO @ x"], [against_naive(random_layer(shape, 0.9), args)])


def print_structured(args):
    print("\n3072×768, float32, masks of 2:4 and of 16×16 blocks\n")
    rows = []
    for name, structure in STRUCTURED.items():
        for sparsity in (0.5, 0.8, 0.9) if name == "block" else (0.5,):
            scores = jax.random.uniform(jax.random.key(0), (3072, 768))
            mask = structure.mask(scores, sparsity)
            masked = eqsparse.MaskedLinear(768, 3072, mask=mask, key=jax.random.key(0))
            account = eqsparse.report(eqsparse.export([masked])).rows[0]
            layers = contestants(masked, [name])
            for batch in BATCHES:
                cells = times(masked, layers, batch, args)
                size = f"{account['bytes_exported'] / account['bytes_dense']:.3f} {account['layout']}"
                rows.append([f"{name} {sparsity:.0%}", str(batch), size, *cells])
    print_table(["mask", "batch", "bytes / dense", "dense", "auto (latency)", "auto (bytes)", "own layout"], rows)


def print_convolutions(sparsities, args):
    print("\nConvolutions, float32: milliseconds, and times as fast as dense\n")
    rows = []
    for channels, out, kernel, stride, side, batch in CONVOLUTIONS:
        layer = eqx.nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, key=jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (batch, channels, side, side))
        for sparsity in sparsities:
            mask = jax.random.uniform(jax.random.key(2), layer.weight.shape) >= sparsity
            masked = eqsparse.set_masks(eqsparse.sparsify([layer]), {"0.weight": mask})[0]
            layers = contestants(masked, ["bcsr"])
            what = f"{channels}→{out}, {kernel}×{kernel}, {side}×{side}"
            rows.append([what, str(batch), f"{sparsity:.0%}", *times(masked, layers, batch, args, x)])
    print_table(["", "batch", "sparsity", "dense", "auto (latency)", "auto (bytes)", "bcsr"], rows)


def contestants(masked, names):
    """The layer dense, in each layout, and as `auto` by latency (for a batch that `times` knows) and bytes has it."""
    return {
        "dense": masked.materialise(),
        "latency": None,
        "bytes": eqsparse.export([masked])[0],
        **{name: eqsparse.export([masked], {"*": name})[0] for name in names},
    }


def times(masked, layers, batch, args, x=None):
    """One row of cells: dense, both kinds of auto, each layout."""
    layers = layers | {"latency": eqsparse.export([masked], objective="latency", batch=batch)[0]}
    seconds = race(layers, jax.random.normal(jax.random.key(1), (batch, masked.in_features)) if x is None else x, args)
    cells = [spread(seconds["dense"])]
    for name in list(layers)[1:]:
        what = f" {layers[name].weights['weight'].name}" if name in ("latency", "bytes") else ""
        cells.append(f"{np.median(seconds[name]) * 1e3:.2f} {1 / ratio(seconds[name], seconds['dense']):.2f}×{what}")
    return cells


def against_naive(masked, args):
    fastest = eqsparse.export([masked], objective="latency", batch=128)[0]
    bcoo = eqsparse.to_bcoo(masked)
    layers = {"dense": masked.materialise(), "latency": fastest, "naive": Naive(bcoo.weight, bcoo.bias)}
    seconds = race(layers, jax.random.normal(jax.random.key(1), (128, masked.in_features)), args)
    gain = ratio(seconds["naive"], seconds["latency"])
    return [
        spread(seconds["dense"]),
        spread(seconds["latency"]),
        f"{spread(seconds['naive'])}, {gain:.0f}× slower",
    ]


def race(layers, x, args):
    """Seconds of each layer, all with the same results."""
    expected, runs = None, {}
    for name, layer in layers.items():
        runs[name], result = compiled(layer, x)
        expected = result if expected is None else expected
        np.testing.assert_allclose(result, expected, atol=1e-3, err_msg=name)
    return timed(runs, args)


def timed(runs, args):
    """Rounds of turns, fewer where they would take long."""
    once = sum(float(s[0]) for s in interleave(runs, 1, warmup=1).values())
    return interleave(runs, max(3, min(args.rounds, int(args.seconds / once))))


class Naive(eqx.Module):
    """What one writes without a library."""

    weight: sparse.BCOO
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


def compiled(model, x):
    arrays, rest = eqx.partition(model, eqx.is_array)
    run = jax.jit(lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x)).lower(arrays, x).compile()
    return lambda: run(arrays, x), run(arrays, x)


def random_layer(shape, sparsity):
    key = jax.random.key(0)
    mask = jax.random.uniform(key, shape) >= sparsity
    return eqsparse.MaskedLinear(shape[1], shape[0], mask=mask, key=key)


def shown(shape):
    return f"{shape[0]}×{shape[1]}"


# Models.


class Block(eqx.Module):
    """A transformer's block."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, size, heads, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(size), eqx.nn.LayerNorm(size)]
        self.attention = eqx.nn.MultiheadAttention(heads, size, key=keys[0])
        self.up = eqx.nn.Linear(size, 4 * size, key=keys[1])
        self.down = eqx.nn.Linear(4 * size, size, key=keys[2])

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(self.norms[1])(x)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(y)))


class ViT(eqx.Module):
    """A vision transformer for 8×8 images, each 2×2 pixels a token."""

    embed: eqx.nn.Linear
    place: jax.Array
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, key, size=256, depth=3, heads=4):
        keys = jax.random.split(key, depth + 2)
        self.embed = eqx.nn.Linear(4, size, key=keys[0])
        self.place = 0.02 * jax.random.normal(keys[1], (16, size))
        self.blocks = [Block(size, heads, key) for key in keys[2:]]
        self.head = eqx.nn.Linear(size, 10, key=keys[1])

    def __call__(self, image):
        tokens = image.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
        x = jax.vmap(self.embed)(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


class CNN(eqx.Module):
    """A convolutional network for 8×8 images."""

    convs: list[eqx.nn.Conv2d]
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        sizes = [1, 64, 128, 256]
        self.convs = [eqx.nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1, key=keys[i]) for i in range(3)]
        self.hidden = eqx.nn.Linear(256 * 16, 256, key=keys[3])
        self.head = eqx.nn.Linear(256, 10, key=keys[4])

    def __call__(self, image):
        x = image[None]
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        x = x.reshape(256, 4, 2, 4, 2).max((2, 4)).reshape(-1)
        return self.head(jax.nn.relu(self.hidden(x)))


def print_models(args):
    print("\nModels on scikit-learn's digits, pruned to 90% by magnitude while they train, batch 128\n")
    rows = []
    for name in args.models:
        make, rate = MODELS[name]
        masked, images, labels = trained(make(jax.random.key(0)), rate)
        models = {
            "dense": eqsparse.materialise(masked),
            "auto (bytes)": eqsparse.export(masked),
            # A layer of the ViT sees all tokens of a batch.
            "auto (latency)": eqsparse.export(masked, objective="latency", batch=128 * (16 if name == "ViT" else 1)),
        }
        print(eqsparse.report(models["auto (bytes)"]), "\n")
        runs = {kind: compiled(model, images[:128])[0] for kind, model in models.items()}
        seconds = timed(runs, args)
        for kind, model in models.items():
            right = accuracy(model, images, labels)
            peaks = [f"{peak_bytes(model, images[:size]) / 1e6:.2f}" for size in (1, 128)]
            speed = f"{1 / ratio(seconds[kind], seconds['dense']):.2f}×"
            sizes = [f"{size / 1e6:.2f}" for size in (eqsparse.nbytes(model), file_bytes(model))]
            rows.append([name, kind, *sizes, *peaks, spread(seconds[kind]), speed, f"{right:.1%}"])
    print_table(["model", "", "MB", "file MB", "peak MB, 1", "peak MB, 128", "batch of 128", "", "accuracy"], rows)


def trained(model, rate, steps=600):
    import optax
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = jnp.asarray(digits.images[order] / 16, jnp.float32)
    labels = jnp.asarray(digits.target[order], jnp.int32)
    test, train = slice(0, 360), slice(360, None)
    schedule = eqsparse.Polynomial(steps // 4, steps // 2, 10)
    rates = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 100)
    pruner = eqsparse.MagnitudePruning(optax.adam(rates), distribution=0.9, schedule=schedule)
    model, state = pruner.init(model)

    def loss(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(data, model, state):
        return pruner.step(model, eqx.filter_grad(loss)(model, *data), state)

    rng = np.random.default_rng(1)
    for _ in range(steps):
        picked = rng.integers(0, len(labels) - 360, 64)
        model, state = step((images[train][picked], labels[train][picked]), model, state)
    return model, images[test], labels[test]


def accuracy(model, images, labels):
    run = eqx.filter_jit(lambda model, images: jax.vmap(model)(images))
    return float((run(model, images).argmax(1) == labels).mean())


def file_bytes(model):
    """What `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        eqsparse.save(Path(folder) / "model.eqs", model)
        return (Path(folder) / "model.eqs").stat().st_size


def peak_bytes(model, images):
    """Arguments, scratch and output of the compiled forward."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    run = jax.jit(lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x))
    used = run.lower(arrays, images).compile().memory_analysis()
    return used.argument_size_in_bytes + used.temp_size_in_bytes + used.output_size_in_bytes


MODELS = {"ViT": (ViT, 1e-3), "CNN": (CNN, 1e-3)}

if __name__ == "__main__":
    main()
