"""Train an encoder-decoder on text with spans cut out, as T5 is, with parts of it sparse: which part is easy to prune?

python examples/language.py                                    # the topics of Python's own help
python examples/language.py --text FILE --parts embedding mlp  # a text of your own

The vocabulary is learned from the text. Embeddings of inputs and outputs are the same, as in T5.
"""

import functools
import heapq
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqsparse

PARTS = {
    "embedding": "embedding.*",
    "encoder": "encoder.*",
    "decoder": "decoder.*",
    "mlp": "*.mlp.*",
    "all": "*",
}  # fmt: skip
END, UNKNOWN, SENTINEL = 0, 1, 2  # then as many sentinels as there are spans, then the pieces
WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s+")


class Vocabulary:
    """Pieces of words: first all characters, then again and again the pair of neighbours met most often."""

    def __init__(self, text, size, sentinels):
        words = Counter(WORD.findall(text))
        split, times = [list(word) for word in words], list(words.values())
        pairs, where = Counter(), defaultdict(set)

        def count(i, sign):
            for pair in itertools.pairwise(split[i]):
                pairs[pair] += sign * times[i]
                where[pair].add(i)

        for i in range(len(split)):
            count(i, 1)
        pieces = sorted(set(text))
        known = set(pieces)
        heap = [(-n, pair) for pair, n in pairs.items()]
        heapq.heapify(heap)
        while heap and len(pieces) < size - SENTINEL - sentinels:
            n, pair = heapq.heappop(heap)
            if -n != pairs[pair]:  # it has changed since
                if pairs[pair] > 0:
                    heapq.heappush(heap, (-pairs[pair], pair))
                continue
            joined = "".join(pair)
            if joined not in known:
                known.add(joined)
                pieces.append(joined)
            for i in where.pop(pair):
                count(i, -1)
                old, new = split[i], []
                while old:
                    take = 2 if tuple(old[:2]) == pair else 1
                    new.append("".join(old[:take]))
                    old = old[take:]
                split[i] = new
                count(i, 1)
                for fresh in itertools.pairwise(new):
                    if joined in fresh:
                        heapq.heappush(heap, (-pairs[fresh], fresh))
        self.ids = {piece: i for i, piece in enumerate(pieces, start=SENTINEL + sentinels)}
        self.size = SENTINEL + sentinels + len(pieces)
        self._word = functools.cache(self._encode_word)

    def encode(self, text):
        return np.array([i for word in WORD.findall(text) for i in self._word(word)], np.int32)

    def _encode_word(self, word):
        """The longest piece that fits, then on from its end."""
        ids = []
        while word:
            fits = next((n for n in range(len(word), 0, -1) if word[:n] in self.ids), None)
            ids.append(self.ids[word[:fits]] if fits else UNKNOWN)
            word = word[fits or 1 :]
        return ids


class SpanCorruption:
    """Windows of a text, of which spans are cut out: 15% of the tokens, about 3 in a span.

    Inputs have a sentinel in the place of each span, targets have each sentinel and its span, then the end.
    """

    def __init__(self, tokens, window):
        self.tokens, self.window = tokens, window
        self.noise = max(1, round(0.15 * window))
        self.spans = max(1, round(self.noise / 3))

    def sample(self, rng, size):
        starts = rng.integers(len(self.tokens) - self.window + 1, size=size)
        pairs = [self.corrupt(self.tokens[i : i + self.window], rng) for i in starts]
        return tuple(np.stack(part) for part in zip(*pairs, strict=True))

    def corrupt(self, tokens, rng):
        cut = self._lengths(self.noise, rng)
        kept = self._lengths(self.window - self.noise, rng)
        borders = np.cumsum(np.stack([kept, cut], axis=1).ravel())[:-1]
        pieces = np.split(tokens, borders)
        inputs, targets = [], []
        for i in range(self.spans):
            inputs += [*pieces[2 * i], SENTINEL + i]
            targets += [SENTINEL + i, *pieces[2 * i + 1]]
        return np.array(inputs, np.int32), np.array([*targets, END], np.int32)

    def _lengths(self, total, rng):
        """As many numbers of at least 1 as there are spans, drawn so that they sum up to the total."""
        borders = np.sort(rng.choice(total - 1, self.spans - 1, replace=False)) + 1
        return np.diff([0, *borders, total])


class Attention(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, dim, heads, key):
        linears = [eqx.nn.Linear(dim, dim, use_bias=False, key=k) for k in jax.random.split(key, 4)]
        self.query, self.key, self.value, self.output = linears
        self.heads = heads

    def __call__(self, x, y, bias):
        """Each token of x takes from the tokens of y. `bias` is added to the logits."""
        by_head = lambda layer, z: jax.vmap(layer)(z).reshape(len(z), self.heads, -1)
        q, k, v = by_head(self.query, x), by_head(self.key, y), by_head(self.value, y)
        logits = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5 + bias
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v)
        return jax.vmap(self.output)(mixed.reshape(x.shape))


class MLP(eqx.Module):
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, dim, key):
        keys = jax.random.split(key)
        self.up = eqx.nn.Linear(dim, 4 * dim, use_bias=False, key=keys[0])
        self.down = eqx.nn.Linear(4 * dim, dim, use_bias=False, key=keys[1])

    def __call__(self, x):
        return self.down(jax.nn.relu(self.up(x)))


class Layer(eqx.Module):
    """Attention to itself, to the encoder (in the decoder), and an MLP, each added to what it reads."""

    attention: Attention
    cross: Attention | None
    mlp: MLP
    norms: list[eqx.nn.RMSNorm]

    def __init__(self, dim, heads, is_decoder, key):
        keys = jax.random.split(key, 3)
        self.attention = Attention(dim, heads, keys[0])
        self.cross = Attention(dim, heads, keys[1]) if is_decoder else None
        self.mlp = MLP(dim, keys[2])
        self.norms = [eqx.nn.RMSNorm(dim, use_bias=False) for _ in range(3)]

    def __call__(self, x, encoded, bias):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, bias)
        if self.cross is not None:
            x = x + self.cross(jax.vmap(self.norms[1])(x), encoded, jnp.zeros(()))
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[2])(x))


class Stack(eqx.Module):
    """Layers one after the other, as one stack of arrays, and what is added to the attention at each distance."""

    layers: Layer
    distances: jax.Array
    norm: eqx.nn.RMSNorm
    is_decoder: bool = eqx.field(static=True)

    def __init__(self, dim, heads, depth, is_decoder, key):
        make = lambda k: Layer(dim, heads, is_decoder, k)
        self.layers = eqx.filter_vmap(make)(jax.random.split(key, depth))
        self.distances = jnp.zeros((heads, 2 * 32 + 1))
        self.norm = eqx.nn.RMSNorm(dim, use_bias=False)
        self.is_decoder = is_decoder

    def __call__(self, x, encoded=None):
        place = jnp.arange(len(x))
        distance = place[None, :] - place[:, None]
        bias = self.distances[:, jnp.clip(distance, -32, 32) + 32]
        if self.is_decoder:
            bias = jnp.where(distance[None] > 0, -jnp.inf, bias)
        arrays, rest = eqx.partition(self.layers, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, layer: (eqx.combine(layer, rest)(x, encoded, bias), None), x, arrays)
        return jax.vmap(self.norm)(x)


class EncoderDecoder(eqx.Module):
    embedding: eqx.nn.Embedding
    encoder: Stack
    decoder: Stack

    def __init__(self, vocabulary, *, dim, depth, key):
        keys = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(vocabulary, dim, key=keys[0])
        self.encoder = Stack(dim, max(1, dim // 32), depth, False, keys[1])
        self.decoder = Stack(dim, max(1, dim // 32), depth, True, keys[2])

    def __call__(self, inputs, targets):
        """Logits of each target, from the inputs and the targets before it."""
        # A call for each token rather than `.weight`: also right where the embedding is masked or exported.
        table = jax.vmap(self.embedding)(jnp.arange(self.embedding.num_embeddings))
        before = jnp.concatenate([jnp.full(1, END, targets.dtype), targets[:-1]])
        decoded = self.decoder(table[before], self.encoder(table[inputs]))
        return decoded @ table.T / table.shape[1] ** 0.5


@eqx.filter_jit
def make(vocabulary, *, dim, depth, key):
    return EncoderDecoder(vocabulary, dim=dim, depth=depth, key=key)


def forward(model, batch):
    return jax.vmap(model)(*batch[:2])


def loss(model, batch):
    """In nats for each target token."""
    return optax.softmax_cross_entropy_with_integer_labels(forward(model, batch), batch[1]).mean()


@eqx.filter_jit
def step(model, pruner, state, batch):
    return pruner.step(model, eqx.filter_grad(loss)(model, batch), state)


evaluate = eqx.filter_jit(loss)
predict = eqx.filter_jit(forward)


def train(model, pruner, data, held_out, *, steps, batch, seed, tick=lambda: None, curve=20):
    """The trained model; (step, loss, sparsity) along the way. `held_out`: batches."""
    rng = np.random.default_rng(seed)
    model, state = common.begin(pruner, model, loss, data.sample(rng, batch), forward)
    history = []
    for i in range(steps):
        model, state = step(model, pruner, state, data.sample(rng, batch))
        if (i + 1) % max(1, steps // curve) == 0 or i + 1 == steps:
            history.append((i + 1, test(model, held_out), common.sparsity_of(model)))
        tick()
    return model, history


def test(model, held_out):
    return float(np.mean([evaluate(model, batch) for batch in held_out]))


def load(file, size, window, batch):
    """The vocabulary, the text to train on, and batches of its last tenth, always the same."""
    if file is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        text = file.read_text(encoding="utf-8")
    shape = SpanCorruption(None, window)
    border = len(text) * 9 // 10
    vocabulary = Vocabulary(text[:border], size, shape.spans)
    parts = [SpanCorruption(vocabulary.encode(part), window) for part in (text[:border], text[border:])]
    rng = np.random.default_rng(0)
    return vocabulary, parts[0], [parts[1].sample(rng, batch) for _ in range(8)]


def arguments(argv):
    parser = common.options(
        __doc__, algorithm="MagnitudeSTE", sparsity=0.8, distribution="Uniform", name="language.png"
    )
    option = parser.add_argument
    option("--text", type=Path, metavar="FILE", help="a text to train on instead of the topics of Python's help")
    option("--parts", nargs="+", choices=PARTS, default=["embedding", "all"],
           help=f"what to prune, a run for each: of {', '.join(PARTS)} (embedding and all)")  # fmt: skip
    option("--vocabulary", type=int, default=4096, help="sentinels and pieces of words, at most (%(default)s)")
    option("--window", type=int, default=64, help="tokens of text in an example (%(default)s)")
    option("--dim", type=int, default=96, help="numbers in a token (%(default)s)")
    option("--depth", type=int, default=2, help="layers of the encoder, and of the decoder (%(default)s)")
    option("--steps", type=int, default=500, help="training steps of each run (%(default)s)")
    option("--batch", type=int, default=32, help="(%(default)s)")
    option("--rate", type=float, default=3e-3, help="of Adam, at its highest (%(default)s)")
    args = common.parsed(parser, argv, ("dim", "depth", "steps", "batch"))
    if args.window < 8:
        parser.error(f"--window must be at least 8. Got {args.window}.")
    if args.text and not args.text.is_file():
        parser.error(f"--text: there is no file {args.text}")
    return args


def main(argv=None):
    args = arguments(argv)
    console = common.console()
    with console.status("learning the vocabulary"):
        vocabulary, data, held_out = load(args.text, args.vocabulary, args.window, args.batch)
    optim = optax.adam(optax.warmup_cosine_decay_schedule(0, args.rate, args.steps // 10, args.steps))

    models, curves, rows = {}, {}, []
    runs = ["dense", *args.parts]
    with common.progress(console, dict.fromkeys(runs, args.steps)) as tick:
        for run in runs:
            pruner = common.make_pruner(
                "dense" if run == "dense" else args.algorithm, optim, sparsity=args.sparsity, steps=args.steps,
                every=max(5, args.steps // 40), distribution=args.distribution, seed=args.seed, where=PARTS.get(run),
            )  # fmt: skip
            if run != "dense" and args.algorithm in common.AFTER_TRAINING:
                rng = np.random.default_rng(args.seed)
                batches = (data.sample(rng, args.batch) for _ in range(8))
                model = common.after_training(pruner, eqsparse.materialise(models["dense"]), batches, forward)
                curves[run] = [(args.steps, test(model, held_out), common.sparsity_of(model))]
                tick(run, args.steps)
            else:
                model = make(vocabulary.size, dim=args.dim, depth=args.depth, key=jax.random.key(args.seed))
                model, curves[run] = train(
                    model, pruner, data, held_out, steps=args.steps, batch=args.batch, seed=args.seed,
                    tick=lambda run=run: tick(run),
                )  # fmt: skip
            models[run] = model
            name = run if run == "dense" else f"{args.algorithm}, {run}"
            cells = common.size_cells(model, models["dense"])
            rows.append((name, f"{curves[run][-1][1]:.3f}", f"{common.sparsity_of(model):.0%}", *cells))

    console.print(common.results_table(
        f"{len(data.tokens):,} tokens, a vocabulary of {vocabulary.size:,}",
        ["", "test loss", "of all weights removed", "weights kept", "bytes exported"], rows,
        f"loss in nats for a token (guessing: {np.log(vocabulary.size):.2f});\n"
        f"{args.steps} steps of {args.batch}, {args.sparsity:.0%} of each part, {args.distribution}, seed {args.seed}",
    ))  # fmt: skip
    common.lines(curves, "test loss, nats for a token", "training step", args.out)
    console.print(f"Figure: {args.out}", soft_wrap=True)
    console.print(common.same_predictions(predict, models[runs[-1]], held_out[0]), soft_wrap=True)


if __name__ == "__main__":
    main()
