"""Train a vision transformer and a ResNet on images, dense and sparse; export the sparse ones; compare.

python examples/vision.py                              # scikit-learn's digits, 8x8 pixels
python examples/vision.py --mnist DIR                  # MNIST, from its IDX files in DIR
python examples/vision.py --imagenet DIR --models vit --dim 384 --depth 12 --patch 16 --steps 100000

The first convolution (that of the patches in the transformer) stays dense, as in the paper.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _common as common
import equinox as eqx
import jax
import numpy as np
import optax

import eqsparse

FIRST = "stem.weight"


class Block(eqx.Module):
    """Attention and an MLP, each added to what it reads."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, dim, heads, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(dim), eqx.nn.LayerNorm(dim)]
        self.attention = eqx.nn.MultiheadAttention(heads, dim, key=keys[0])
        self.up = eqx.nn.Linear(dim, 4 * dim, key=keys[1])
        self.down = eqx.nn.Linear(4 * dim, dim, key=keys[2])

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(self.up)(jax.vmap(self.norms[1])(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(y))


class ViT(eqx.Module):
    """Patches of the image → tokens → blocks → their mean → classes. The blocks are one stack, so they compile once."""

    stem: eqx.nn.Conv2d
    positions: jax.Array
    blocks: Block
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, shape, classes, *, dim, depth, patch, key):
        channels, height, width = shape
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(channels, dim, patch, patch, key=keys[0])
        self.positions = 0.02 * jax.random.normal(keys[1], ((height // patch) * (width // patch), dim))
        self.blocks = eqx.filter_vmap(lambda k: Block(dim, max(1, dim // 16), k))(jax.random.split(keys[3], depth))
        self.norm = eqx.nn.LayerNorm(dim)
        self.head = eqx.nn.Linear(dim, classes, key=keys[2])

    def __call__(self, image, state):
        x = self.stem(image).reshape(len(self.positions.T), -1).T + self.positions
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, rest)(x), None), x, arrays)
        return self.head(self.norm(x.mean(axis=0))), state


def conv(n_in, n_out, size, stride, key):
    return eqx.nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, use_bias=False, key=key)


def batch_norm(channels):
    return eqx.nn.BatchNorm(channels, "batch", momentum=0.9, mode="batch")


class Residual(eqx.Module):
    """Two convolutions, added to what they read; the first may halve the image."""

    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]
    shortcut: eqx.nn.Conv2d | None

    def __init__(self, n_in, n_out, stride, key):
        keys = jax.random.split(key, 3)
        self.convs = [conv(n_in, n_out, 3, stride, keys[0]), conv(n_out, n_out, 3, 1, keys[1])]
        self.norms = [batch_norm(n_out) for _ in range(2)]
        self.shortcut = None if (n_in, stride) == (n_out, 1) else conv(n_in, n_out, 1, stride, keys[2])

    def __call__(self, x, state):
        y, state = self.norms[0](self.convs[0](x), state)
        y, state = self.norms[1](self.convs[1](jax.nn.relu(y)), state)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x))), state


class ResNet(eqx.Module):
    """A convolution → residual blocks, of which each stage has twice the channels on half the image → classes."""

    stem: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    blocks: list[Residual]
    head: eqx.nn.Linear
    large: bool = eqx.field(static=True)

    def __init__(self, shape, classes, *, dim, depth, key):
        self.large = shape[1] >= 64
        keys = jax.random.split(key, depth + 2)
        self.stem = conv(shape[0], dim, 7 if self.large else 3, 2 if self.large else 1, keys[0])
        self.norm = batch_norm(dim)
        # Two blocks a stage: the first of each stage but the first halves the image.
        widths = [dim * 2 ** (i // 2) for i in range(depth)]
        strides = [2 if i and i % 2 == 0 else 1 for i in range(depth)]
        self.blocks = [
            Residual(n_in, n_out, stride, k)
            for n_in, n_out, stride, k in zip([dim, *widths], widths, strides, keys[2:], strict=False)
        ]
        self.head = eqx.nn.Linear(widths[-1], classes, key=keys[1])

    def __call__(self, image, state):
        x, state = self.norm(self.stem(image), state)
        x = jax.nn.relu(x)
        if self.large:
            x = eqx.nn.MaxPool2d(3, 2, padding=1)(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean(axis=(1, 2))), state


class Arrays:
    """Images and labels in memory."""

    def __init__(self, train, held_out):
        self.train, self.held_out = train, held_out
        self.shape, self.classes = train[0].shape[1:], int(train[1].max()) + 1

    def sample(self, rng, size):
        return common.rows_of(rng, self.train, size)

    def test(self, size):
        x, y = self.held_out
        return ((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size))


class Folder:
    """Images in DIR/train/CLASS and DIR/val/CLASS, read (with Pillow) when they are needed."""

    def __init__(self, folder, size):
        self.names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
        self.files = {part: self._files(folder / part) for part in ("train", "val")}
        self.size, self.shape, self.classes = size, (3, size, size), len(self.names)
        self.threads = ThreadPoolExecutor(16)

    def _files(self, folder):
        return [(path, i) for i, name in enumerate(self.names) for path in sorted((folder / name).iterdir())]

    def _read(self, path, corner=(0.5, 0.5), flip=False):
        """A square of the image: where it lies is a share of the way that there is."""
        from PIL import Image

        with Image.open(path) as image:
            scale = self.size / min(image.size)
            image = image.convert("RGB").resize([max(self.size, round(scale * n)) for n in image.size])
        left, top = (int(c * (n - self.size + 1 - 1e-9)) for c, n in zip(corner, image.size, strict=True))
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)), np.float32) / 127.5 - 1
        return (pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1)

    def _batch(self, files, *how):
        images = self.threads.map(self._read, [path for path, _ in files], *how)
        return np.stack(list(images)), np.array([label for _, label in files], np.int32)

    def sample(self, rng, size):
        files = [self.files["train"][i] for i in rng.integers(len(self.files["train"]), size=size)]
        return self._batch(files, rng.random((size, 2)), rng.random(size) < 0.5)

    def test(self, size):
        files = self.files["val"]
        return (self._batch(files[i : i + size]) for i in range(0, len(files), size))


@eqx.filter_jit
def make(name, shape, classes, *, dim, depth, patch, key):
    """The network and the state of its batch norms (a transformer has none)."""
    if name == "vit":
        return eqx.nn.make_with_state(ViT)(shape, classes, dim=dim, depth=depth, patch=patch, key=key)
    return eqx.nn.make_with_state(ResNet)(shape, classes, dim=dim // 2, depth=depth, key=key)


def forward(model, batch):
    """Logits of a batch, and the new state. `batch`: (images, state)."""
    x, state = batch
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def loss(model, batch):
    x, y, state = batch
    logits, state = forward(model, (x, state))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state


@eqx.filter_jit
def step(model, state, pruner, pruner_state, x, y):
    grads, state = eqx.filter_grad(loss, has_aux=True)(model, (x, y, state))
    model, pruner_state = pruner.step(model, grads, pruner_state)
    return model, state, pruner_state


@eqx.filter_jit
def predict(model, batch):
    return forward(eqx.nn.inference_mode(model), batch)[0]


def accuracy(model, state, data, batch):
    right = [np.argmax(predict(model, (x, state)), axis=1) == y for x, y in data.test(batch)]
    return float(np.mean(np.concatenate(right)))


def train(model, state, pruner, data, *, steps, batch, seed, tick=lambda: None, curve=30):
    """The trained model, the state of its batch norms, and (step, accuracy, sparsity) along the way."""
    rng = np.random.default_rng(seed)
    at_first = lambda model, batch, state=state: loss(model, (*batch, state))[0]
    outputs = lambda model, batch, state=state: forward(model, (batch[0], state))[0]
    model, pruner_state = common.begin(pruner, model, at_first, data.sample(rng, batch), outputs)
    history = []
    for i in range(steps):
        model, state, pruner_state = step(model, state, pruner, pruner_state, *data.sample(rng, batch))
        if (i + 1) % max(1, steps // curve) == 0 or i + 1 == steps:
            history.append((i + 1, accuracy(model, state, data, batch), common.sparsity_of(model)))
        tick()
    return model, state, history


def arguments(argv):
    parser = common.options(
        __doc__, algorithm="MagnitudeSTE", sparsity=0.8, distribution="ERK", name="vision.png"
    )  # fmt: skip
    option = parser.add_argument
    option("--mnist", type=Path, metavar="DIR", help="read MNIST from DIR instead of scikit-learn's digits")
    option("--imagenet", type=Path, metavar="DIR", help="train on DIR/train/CLASS/IMAGE, test on DIR/val/CLASS/IMAGE")
    option("--image-size", type=int, default=224, help="side of the images of --imagenet (%(default)s)")
    option("--models", nargs="+", choices=("vit", "resnet"), default=["vit", "resnet"], help="(both)")
    option("--dim", type=int, default=64, help="numbers in a token; twice the ResNet's first channels (%(default)s)")
    option("--depth", type=int, default=4, help="blocks (%(default)s)")
    option("--patch", type=int, help="side of the transformer's patches (a fourth of the image's, 16 at most)")
    option("--steps", type=int, default=400, help="training steps of each run (%(default)s)")
    option("--batch", type=int, default=64, help="(%(default)s)")
    option("--rate", type=float, default=2e-3, help="of Adam, at its highest (%(default)s)")
    args = common.parsed(parser, argv, ("dim", "depth", "steps", "batch", "image_size"))
    if args.imagenet and not all((args.imagenet / part).is_dir() for part in ("train", "val")):
        parser.error(f"--imagenet: there are no folders train and val in {args.imagenet}")
    return args


def main(argv=None):
    args = arguments(argv)
    data = Folder(args.imagenet, args.image_size) if args.imagenet else Arrays(*common.digits(args.mnist))
    patch = args.patch or min(16, data.shape[1] // 4)
    optim = optax.adam(optax.warmup_cosine_decay_schedule(0, args.rate, args.steps // 20, args.steps))
    console = common.console()

    runs = [f"{name}, {how}" for name in args.models for how in ("dense", args.algorithm)]
    models, curves, rows = {}, {}, []
    with common.progress(console, dict.fromkeys(runs, args.steps)) as tick:
        for run in runs:
            name, how = run.split(", ")
            pruner = common.make_pruner(
                how, optim, sparsity=args.sparsity, steps=args.steps, every=max(5, args.steps // 40),
                distribution=args.distribution, dense=[FIRST], seed=args.seed,
            )  # fmt: skip
            model, state = make(
                name, data.shape, data.classes, dim=args.dim, depth=args.depth, patch=patch,
                key=jax.random.key(args.seed),
            )  # fmt: skip
            if how in common.AFTER_TRAINING:
                dense, state = models[f"{name}, dense"]
                rng = np.random.default_rng(args.seed)
                batches = ((data.sample(rng, args.batch)[0], state) for _ in range(8))
                as_tested = eqx.nn.inference_mode(eqsparse.materialise(dense))
                model = common.after_training(pruner, as_tested, batches, lambda *args: forward(*args)[0])
                curves[run] = [(args.steps, accuracy(model, state, data, args.batch), common.sparsity_of(model))]
                tick(run, args.steps)
            else:
                model, state, curves[run] = train(
                    model, state, pruner, data, steps=args.steps, batch=args.batch, seed=args.seed,
                    tick=lambda run=run: tick(run),
                )  # fmt: skip
            models[run] = model, state
            dense = models[f"{name}, dense"][0]
            rows.append((run, f"{curves[run][-1][1]:.1%}", *common.size_cells(model, dense)))

    tested = sum(len(y) for _, y in data.test(1024)) if args.imagenet is None else len(data.files["val"])
    console.print(common.results_table(
        f"{tested:,} test images", ["", "accuracy", "weights kept", "bytes exported"], rows,
        f"{args.steps} steps of {args.batch}, sparsity {args.sparsity:.0%}, {args.distribution}, seed {args.seed}",
    ))  # fmt: skip
    percent = {run: [(i, 100 * a, s) for i, a, s in rows] for run, rows in curves.items()}
    common.lines(percent, "accuracy, %", "training step", args.out)
    console.print(f"Figure: {args.out}", soft_wrap=True)
    model, state = models[runs[-1]]
    images = next(iter(data.test(args.batch)))[0]
    console.print(common.same_predictions(predict, model, (images, state)), soft_wrap=True)


if __name__ == "__main__":
    main()
