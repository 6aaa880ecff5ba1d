"""Statistics of inputs, against sums over inputs that are recorded one call at a time."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)
ALL = ("second_moment", "gram", "mean", "count", "absolute_maximum")
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def agree(found, rows, atol=1e-5):
    """That statistics are those of the rows, `(..., features)`."""
    rows = np.asarray(rows, np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    scale = max(np.abs(rows).max() ** 2 * len(rows), 1e-30)
    close = lambda a, b, s=scale: np.testing.assert_allclose(
        np.asarray(a).reshape(b.shape) / s, b / s, rtol=1e-5, atol=atol
    )
    close(found.second_moment, (rows**2).sum(0))
    close(found.mean, rows.mean(0), np.abs(rows).max())
    assert float(found.count) == len(rows)
    np.testing.assert_allclose(np.asarray(found.absolute_maximum).ravel(), np.abs(rows).max(0), rtol=1e-5)
    if found.gram is not None:
        close(found.gram, rows.T @ rows)


def slice_of(tree, i):
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)


def test_linear_layers_over_batches():
    model = eqx.nn.MLP(6, 3, 10, 2, key=KEY)
    x = normal(13, 6)
    found = eqsparse.calibrate(model, iter([x[:8], x[8:]]), statistics=ALL)
    agree(found["layers.0.weight"], x)
    hidden = jnp.stack([jax.nn.relu(model.layers[0](one)) for one in x])
    agree(found["layers.1.weight"], hidden)
    assert list(dict(found.items())) == list(found) == [f"layers.{i}.weight" for i in range(3)] and len(found) == 3


def test_masked_models_are_run_on_their_masks():
    model = eqsparse.MagnitudePruning(distribution=0.5, packed=True).prune(eqx.nn.MLP(6, 3, 10, 1, key=KEY))
    x = normal(9, 6)
    found = eqsparse.calibrate(model, [x], statistics=ALL)
    plain = eqsparse.calibrate(eqsparse.materialise(model), [x], statistics=ALL)
    agree(found["layers.1.weight"], jnp.stack([jax.nn.relu(model.layers[0](one)) for one in x]))
    np.testing.assert_allclose(found["layers.1.weight"].gram, plain["layers.1.weight"].gram, rtol=1e-6)


def test_a_scalar_input():
    agree(
        eqsparse.calibrate(eqx.nn.Linear("scalar", 3, key=KEY), [x := normal(5)], statistics=ALL)["weight"], x[:, None]
    )


def by_hand(layer, x):
    """Patches of one image, from the definition: row `o` of a product with them is output `o`."""
    zeros = np.zeros(layer.weight.shape, np.float32)
    patches = []
    for i in np.ndindex(layer.weight.shape[1:]):
        kernel = zeros.copy()
        kernel[(slice(None), *i)] = 1  # the output is then the input that this weight meets, in each group
        one = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(kernel))
        out = np.asarray(one(x)) if layer.bias is None else np.asarray(one(x) - layer.bias)
        patches.append(out.reshape(layer.groups, -1, *out.shape[1:])[:, 0])
    return np.stack(patches, axis=-1)  # groups, places..., features


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: eqx.nn.Conv1d(3, 4, 3, padding="SAME", key=KEY), (3, 7)),
        (lambda: eqx.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=((1, 0), (2, 1)), groups=2, key=KEY), (4, 7, 6)),
        (lambda: eqx.nn.Conv2d(2, 2, 3, dilation=2, padding=2, padding_mode="CIRCULAR", key=KEY), (2, 6, 6)),
        (lambda: eqx.nn.Conv3d(2, 2, 2, padding="SAME_LOWER", use_bias=False, key=KEY), (2, 3, 3, 3)),
        (lambda: eqx.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, key=KEY), (4, 4, 3)),
    ],
    ids=["1d", "groups", "circular", "3d", "transposed"],
)
def test_convolutions_over_their_patches(make, shape):
    layer, x = make(), normal(3, *shape)
    found = eqsparse.calibrate(layer, [x], statistics=("second_moment", "gram", "count"))["weight"]
    patches = np.stack([by_hand(layer, one) for one in x], axis=1)
    patches = patches.reshape(layer.groups, -1, patches.shape[-1]).astype(np.float64)
    gram = np.einsum("gri,grj->gij", patches, patches)
    groups = () if layer.groups == 1 else (layer.groups,)
    assert found.gram.shape == (*groups, *gram.shape[1:])
    assert found.second_moment.shape == (*groups, *layer.weight.shape[1:]) and float(found.count) == patches.shape[1]
    np.testing.assert_allclose(np.asarray(found.gram).reshape(gram.shape), gram, rtol=1e-5, atol=1e-5 * gram.max())
    np.testing.assert_allclose(
        np.asarray(found.second_moment).reshape(gram.shape[:2]), (patches**2).sum(1), rtol=1e-5, atol=1e-5 * gram.max()
    )


@pytest.mark.parametrize("kind", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_recurrent_cells_in_a_scan(kind):
    """Called several times: inputs of all steps, and hidden states of all."""
    cell, x = kind(4, 3, key=KEY), normal(5, 6, 4)
    start = jnp.zeros(3) if kind is eqx.nn.GRUCell else (jnp.zeros(3), jnp.zeros(3))
    of = lambda state: state if kind is eqx.nn.GRUCell else state[0]

    def forward(cell, x):
        return jax.jit(jax.vmap(lambda one: jax.lax.scan(lambda h, t: (cell(t, h), None), start, one)[0]))(x)

    found = eqsparse.calibrate(cell, [x], statistics=ALL, forward=forward)
    agree(found["weight_ih"], x)
    np.testing.assert_array_equal(found["weight_ih"].absolute_maximum, np.abs(x).max((0, 1)))  # to the last bit
    states, now = [], jax.vmap(lambda _: start)(x)
    for t in range(6):
        states.append(of(now))
        now = jax.vmap(cell)(x[:, t], now)
    agree(found["weight_hh"], jnp.stack(states))


def test_a_layer_called_several_times_and_outside_vmap():
    layer, x = eqx.nn.Linear(4, 4, key=KEY), normal(6, 4)
    twice = lambda layer, x: (jax.vmap(lambda one: layer(jnp.tanh(layer(one))))(x), layer(jnp.ones(4)))
    rows = jnp.concatenate([x, jnp.tanh(jax.vmap(layer)(x)), jnp.ones((1, 4))])
    agree(eqsparse.calibrate(layer, [x], statistics=ALL, forward=twice)["weight"], rows)


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.Linear

    def __init__(self, key):
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=key)
        self.mlp = eqx.nn.Linear(6, 6, key=key)

    def __call__(self, h):
        h = h + self.attention(h, h, h)
        return h + jax.vmap(self.mlp)(h)


class Transformer(eqx.Module):
    embedding: eqx.nn.Embedding
    blocks: Block
    head: eqx.nn.Linear
    checkpoint: bool = False

    def __call__(self, tokens):
        h = jax.vmap(self.embedding)(tokens)
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        step = lambda h, block: (eqx.combine(block, rest)(h), None)
        h, _ = jax.lax.scan(jax.checkpoint(step) if self.checkpoint else step, h, arrays)
        return self.head(h.mean(axis=0))


def transformer(**settings):
    blocks = eqx.filter_vmap(Block)(jax.random.split(KEY, 3))
    return Transformer(eqx.nn.Embedding(11, 6, key=KEY), blocks, eqx.nn.Linear(6, 2, key=KEY), **settings)


TOKENS = jnp.asarray(rng.integers(0, 11, (7, 5)))
KEEP = np.arange(5) < np.array([5, 4, 3, 2, 5, 1, 4])[:, None]


def check_blocks(model, found, keep):
    """Layer by layer, on the rows that are kept."""
    h = jax.vmap(jax.vmap(model.embedding))(TOKENS)
    for i in range(3):
        block = slice_of(model.blocks, i)
        here = lambda path, i=i: slice_of(found[f"blocks.{path}.weight"], i)
        attention = block.attention
        agree(here("attention.key_proj"), h[keep])
        heads = [
            jax.vmap(jax.vmap(p))(h).reshape(7, 5, 2, 3)
            for p in (attention.query_proj, attention.key_proj, attention.value_proj)
        ]
        logits = jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / np.sqrt(3).astype(np.float32)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), heads[2]).reshape(7, 5, 6)
        agree(here("attention.output_proj"), mixed[keep])
        agree(here("mlp"), (h + jax.vmap(jax.vmap(attention.output_proj))(mixed))[keep])
        h = jax.vmap(block)(h)
    counts = np.bincount(np.asarray(TOKENS)[keep], minlength=11)
    np.testing.assert_array_equal(found["embedding.weight"].second_moment, counts)
    np.testing.assert_array_equal(found["embedding.weight"].absolute_maximum, counts > 0)
    assert found["embedding.weight"].gram is None


def test_a_stack_in_a_scan_and_attention():
    """Statistics of each layer of a stack (computed again going back), of projections under a `vmap`, of tokens."""
    model = transformer(checkpoint=True)
    found = eqsparse.calibrate(model, [TOKENS], statistics=ALL)
    check_blocks(model, found, np.ones((7, 5), bool))


def test_padding_has_no_weight():
    model = transformer()

    def forward(model, batch):
        by_position = lambda t, k: eqsparse.weighted(eqsparse.weighted(model, k), 1.0, "head.*")(t)
        return jax.vmap(by_position)(*batch)

    found = eqsparse.calibrate(model, [(TOKENS, jnp.asarray(KEEP))], statistics=ALL, forward=forward)
    check_blocks(model, found, KEEP)
    assert float(found["head.weight"].count) == 7


def test_weights_of_examples_are_numbers_and_padding_may_be_nan():
    model, x, weight = eqx.nn.MLP(4, 2, 5, 1, key=KEY), normal(6, 4), jnp.array([1, 0.5, 0, 2, 1, 0])
    x = x.at[2].set(jnp.nan)
    forward = lambda model, batch: jax.vmap(lambda x, w: eqsparse.weighted(model, w)(x))(*batch)
    found = eqsparse.calibrate(model, [(x, weight)], statistics=ALL, forward=forward)["layers.0.weight"]
    rows, w = np.delete(np.asarray(x, np.float64), 2, 0), np.delete(np.asarray(weight, np.float64), 2)
    np.testing.assert_allclose(found.gram, rows.T @ (w[:, None] * rows), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.mean, (w[:, None] * rows).sum(0) / w.sum(), rtol=1e-5)
    np.testing.assert_array_equal(found.absolute_maximum, np.abs(rows[w > 0]).max(0))
    assert float(found.count) == 4.5
    plain = jax.vmap(lambda x: eqsparse.weighted(model, 0.0)(x))(x[:2])  # nothing is calibrated here
    np.testing.assert_array_equal(plain, jax.vmap(model)(x[:2]))


def test_weights_of_steps_in_a_scan():
    cell, x, keep = eqx.nn.GRUCell(4, 3, key=KEY), normal(7, 5, 4), jnp.asarray(KEEP)

    def forward(cell, batch):
        step = lambda h, tk: (eqsparse.weighted(cell, tk[1])(tk[0], h), None)
        return jax.vmap(lambda *one: jax.lax.scan(step, jnp.zeros(3), one)[0])(*batch)

    agree(eqsparse.calibrate(cell, [(x, keep)], statistics=ALL, forward=forward)["weight_ih"], x[KEEP])


def test_weights_of_places_of_a_convolution():
    layer, x = eqx.nn.Conv1d(2, 3, 1, key=KEY), normal(7, 2, 5)
    forward = lambda layer, batch: jax.vmap(lambda x, k: eqsparse.weighted(layer, k)(x))(*batch)
    found = eqsparse.calibrate(layer, [(x, jnp.asarray(KEEP))], statistics=ALL, forward=forward)["weight"]
    agree(found, jnp.moveaxis(x, 1, 2)[KEEP])


@pytest.mark.parametrize("order", ["stack in batch", "batch in stack"])
@pytest.mark.parametrize("own", [False, True], ids=["shared input", "own input"])
def test_a_stack_under_vmap(order, own):
    """Each member's own, also where all have the same input; weights of rows among the axes."""
    members = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(KEY, 5))
    x, weight = normal(*((6, 5, 4) if own else (6, 4))), jnp.asarray(rng.uniform(size=6), jnp.float32)
    axis = 0 if own else None

    def forward(model, batch):
        x, w = batch
        each = lambda x, w: eqx.filter_vmap(lambda m, x: m(x), in_axes=(eqx.if_array(0), axis))(
            eqsparse.weighted(model, w), x
        )
        if order == "stack in batch":
            return jax.vmap(each)(x, w)
        swapped = jnp.moveaxis(x, 0, 1) if own else x
        batched = lambda m, x: jax.vmap(lambda x, w: eqsparse.weighted(m, w)(x))(x, w)
        return eqx.filter_vmap(batched, in_axes=(eqx.if_array(0), axis))(model, swapped)

    found = eqsparse.calibrate(members, [(x, weight)], statistics=ALL, forward=forward)["weight"]
    for i in range(5):
        rows = np.asarray(x[:, i] if own else x, np.float64)
        expected = rows.T @ (np.asarray(weight)[:, None] * rows)
        np.testing.assert_allclose(found.gram[i], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.absolute_maximum[i], np.abs(rows).max(0))
    np.testing.assert_allclose(found.count, np.full(5, weight.sum()), rtol=1e-6)


class WithState(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self):
        self.first, self.last = eqx.nn.Linear(4, 5, key=KEY), eqx.nn.Linear(5, 2, key=KEY)
        self.norm, self.dropout = eqx.nn.BatchNorm(5, "batch", mode="batch"), eqx.nn.Dropout(0.5)

    def __call__(self, x, state, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(x, key=key)), state


def test_state_and_keys():
    model, state = eqx.nn.make_with_state(WithState)()
    x, keys = normal(8, 4), jax.random.split(KEY, 8)

    def run(model, x):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)

    found = eqsparse.calibrate(model, [x], statistics=ALL, forward=run)
    first = jax.vmap(model.first)(x)
    normed = jax.vmap(model.norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(first, state)[0]
    agree(found["last.weight"], jax.vmap(lambda x, key: model.dropout(x, key=key))(normed, keys))


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones((1000, 3), jnp.bfloat16) * 1.0078125
    layer = eqx.nn.Linear(3, 2, dtype=jnp.bfloat16, key=KEY)
    found = eqsparse.calibrate(layer, [x], statistics=ALL)["weight"]
    assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.gram, np.full((3, 3), 1000 * 1.0078125**2), rtol=1e-6)


def test_norms_shared_weights_and_masked_fields_around():
    """Layers inside wrappers are read where they stand; a field of `Masked` isn't known how to be."""
    layer, x = eqx.nn.Linear(4, 3, key=KEY), normal(6, 4)
    agree(eqsparse.calibrate(eqx.nn.WeightNorm(layer), [x], statistics=ALL)["layer.weight"], x)
    embedding, head = eqx.nn.Embedding(4, 3, key=KEY), eqx.nn.Linear(3, 4, key=KEY)
    tied = eqx.nn.Shared((embedding, head), lambda m: m[1].weight, lambda m: m[0].weight)
    forward = lambda tied, t: jax.vmap(lambda one: (pair := tied())[1](pair[0](one)))(t)
    found = eqsparse.calibrate(tied, [jnp.array([1, 3, -1])], forward=forward)
    np.testing.assert_array_equal(found["pytree.0.weight"].second_moment, [0, 1, 0, 2])
    with pytest.raises(ValueError, match="must contain a layer whose inputs can be read"):
        eqsparse.calibrate(eqsparse.Masked(eqx.nn.LayerNorm(4), "weight"), [x])


@pytest.mark.parametrize("statistic, own", [("second_moment", 0), ("gram", 1)])
def test_the_backward_pass_is_left_out(statistic, own, planned):
    """Of the compiled products of matrices there are those of the forward pass, less those of the last layer, whose
    output is not looked at, and one for each Gram matrix (`q`, `k` and `v` have the same)."""
    from eqsparse._calibration.calibrate import _sums, mapped

    def products(function, *args):
        text = jax.jit(function).lower(*args).compile(planned).as_text()
        return len(re.findall(r"= \S+ (?:dot|convolution)\(|custom_call_target=\"__\w*matmul", text))

    mlp, x = eqx.nn.MLP(8, 4, 16, 3, key=KEY), normal(32, 8)
    for model, data, layers in [(mlp, x, 4)] if own == 0 else [(transformer(), TOKENS, 4)]:
        found = eqsparse.calibrate(model, [data], statistics=statistic)
        zeros = {path: site.sums for path, site in found.items()}
        forward = products(lambda data, m=model: mapped(m, data), data)
        tapped = products(lambda z, d, m=model: _sums.__wrapped__(m, d, mapped, z), zeros, data)
        assert tapped == forward - 1 + own * layers


def test_of_a_conditional_the_branch_that_is_taken_counts():
    model, x = tuple(eqx.nn.Linear(4, 4, key=key) for key in jax.random.split(KEY)), normal(9, 4)
    either = lambda model: lambda x: jax.lax.cond(x[0] > 0, lambda x: model[0](x), lambda x: model[1](x), x)
    forward = lambda model, x: jax.vmap(either(model))(x)
    found = eqsparse.calibrate(model, [x], statistics=ALL, forward=forward)
    agree(found["0.weight"], x[x[:, 0] > 0])
    agree(found["1.weight"], x[x[:, 0] <= 0])


def test_one_trace_for_all_batches():
    traces = []

    def forward(model, x):
        traces.append(x.shape)
        return jax.vmap(model)(x)

    model, x = eqx.nn.Linear(4, 2, key=KEY), normal(9, 4)
    eqsparse.calibrate(model, [x, 2 * x, x[:5]], forward=forward)
    assert traces == [(9, 4), (5, 4)]


def error(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.own_message
def test_errors_name_argument_rule_and_value():
    model, x = eqx.nn.MLP(4, 2, 5, 1, key=KEY), normal(6, 4)
    calibrate = eqsparse.calibrate
    assert "`calibrate(batches=...)` must hold one batch at least. Got none." in error(lambda: calibrate(model, []))
    assert "an iterable of batches: of one batch a list. Got ndarray" in error(
        lambda: calibrate(model, np.ones((3, 4)))
    )
    assert "`calibrate(statistics=...)` must be of" in error(lambda: calibrate(model, [x], statistics="grams"))
    assert "must be of ['second_moment', 'gram'" in error(lambda: calibrate(model, [x], statistics=None))
    assert "Nearest: ['layers.0.weight'" in error(lambda: calibrate(model, [x], where="layer.0.weight"))
    bad = x.at[0, 0].set(jnp.inf)
    assert "NaN or infinity at ['layers.0.weight'" in error(lambda: calibrate(model, [x, bad]))
    first_only = lambda model, x: jax.vmap(model.layers[0])(x)
    assert "Got none at ['layers.1.weight']" in error(lambda: calibrate(model, [x], forward=first_only))
    assert list(calibrate(model, [x], forward=first_only, where="layers.0.*")) == ["layers.0.weight"]
    whole_numbers = lambda model, x: jax.vmap(model)(x).argmax(-1)
    assert "`forward` that returns nothing differentiable" in error(
        lambda: calibrate(model, [x], forward=whole_numbers)
    )
    with pytest.raises(TypeError) as caught:
        calibrate(model, [x, x[:, :3]])
    assert "on batch 1 of `calibrate(batches=...)`: float32[6, 3]." in caught.value.__notes__[-1]
    by_position = lambda model, batch: jax.vmap(lambda x, k: eqsparse.weighted(model, k)(x))(*batch)
    message = error(lambda: calibrate(model, [(x, jnp.ones((6, 2)))], forward=by_position))
    assert "`weighted(weight=...)` must have the axes along which `layers.0.weight` is called" in message
    complex_layer = eqx.nn.Linear(4, 2, dtype=jnp.complex64, key=KEY)
    assert "must have real weights" in error(lambda: calibrate(complex_layer, [x]))


def test_a_table_of_them_fits_a_screen():
    one = eqsparse.calibrate(eqx.nn.Linear(4, 2, key=KEY), [normal(3, 4)])["weight"]
    lines = repr(eqsparse.Statistics({f"layers.{i}.weight": one for i in range(41)})).splitlines()
    assert len(lines) == 22 and lines[0].split() == ["path", "inputs", "rows", "statistics"]
    assert lines[1].split() == ["layers.0.weight", "(4,)", "3", "count,", "second_moment"] and "(21 more)" in lines[11]


def test_each_slice_of_a_stack_must_be_reached():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(jax.random.key(0), 2))
    first = lambda stack, batch: jax.vmap(jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, stack))(batch)
    with pytest.raises(ValueError, match=r"must reach all weights.*weight \(slice \(1,\) of its stack\)"):
        eqsparse.calibrate(stack, [jnp.ones((5, 4))], forward=first)


def test_a_layer_without_inputs():
    """Nothing flows into it, so there are no sums."""
    model = eqx.nn.Sequential([eqx.nn.Linear(0, 3, key=KEY), eqx.nn.Linear(3, 2, key=KEY)])
    found = eqsparse.calibrate(model, [jnp.ones((4, 0))])
    assert found["layers.0.weight"].second_moment.shape == (0,)
    np.testing.assert_allclose(found["layers.1.weight"].second_moment, 4 * model.layers[0].bias ** 2, rtol=1e-6)


def test_errors_that_say_what_to_do():
    layer, x = eqx.nn.Linear(4, 3, key=KEY), jnp.ones((5, 4))
    for batches, forward in (([x[:0]], None), ([x], lambda model, x: None)):
        with pytest.raises(ValueError, match="Got no row at any: batches without rows, weights of rows that are 0"):
            eqsparse.calibrate(layer, batches, forward=forward)
    with pytest.raises(Exception) as caught:
        eqsparse.calibrate(layer, [(x, x)])
    assert any("By default `forward` is `jax.vmap(model)(batch)`" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="whose squares float32 can hold"):
        eqsparse.calibrate(layer, [1e20 * x])
    with pytest.raises(ValueError, match="must not be traced: call it outside of `jit`"):
        eqx.filter_jit(lambda model: eqsparse.calibrate(model, [x])["weight"].count)(layer)
    counts = eqsparse.calibrate(layer, [x], statistics="count")
    with pytest.raises(ValueError, match=r"must hold \"second_moment\" or \"gram\" at `weight`. Got \['count'\]"):
        eqsparse.Wanda(distribution=0.5).prune(layer, statistics=counts)
