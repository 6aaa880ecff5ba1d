"""`step` beside a plain NumPy re-telling, and what a step promises about masks."""

import equinox as eqx
import gradual_retold as told
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
WINDOW = {"start": 3, "stop": 24, "every": 4}  # updates at 3, 7, ..., 23 and 24


def layers(dtype=jnp.float32):
    return [eqx.nn.Linear(12, 16, dtype=dtype, key=KEY), eqx.nn.Linear(16, 8, dtype=dtype, key=jax.random.key(1))]


def with_weights(model, weights):
    return eqx.tree_at(lambda m: [x.weight for x in m], model, [jnp.asarray(w) for w in weights])


def gradients(model, weights):
    """A tree of gradients with the arrays given for the weights, ones for the biases."""
    trainable = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    return with_weights(trainable, weights)


UNSTRUCTURED = eqsparse.Unstructured()
CASES = {
    "uniform": (UNSTRUCTURED, eqsparse.Uniform(0.7), told.uniform(told.unstructured, 0.7)),
    "rows": (eqsparse.Unstructured("row"), eqsparse.Uniform(0.7), told.uniform(told.rows, 0.7)),
    "2:4": (eqsparse.NM(2, 4), eqsparse.Uniform(0.5), told.uniform(told.two_of_four, 0.5)),
    "blocks": (eqsparse.Block((4, 4)), eqsparse.Uniform(0.7), told.uniform(told.blocks, 0.7)),
    "channels": (eqsparse.Channel(0), eqsparse.Uniform(0.7), told.uniform(told.channels, 0.7)),
    "erk": (UNSTRUCTURED, eqsparse.ERK(0.7), told.erk(told.unstructured, 0.7)),
    "erk, one layer full": (UNSTRUCTURED, eqsparse.ERK(0.1), told.erk(told.unstructured, 0.1)),
    "global": (UNSTRUCTURED, eqsparse.Global(0.7, normalise=False), told.everywhere(0.7, False)),
    "global, blocks": (
        eqsparse.Block((4, 4)),
        eqsparse.Global(0.7, normalise=False),
        told.everywhere(0.7, False, told.tiles, lambda m: np.kron(m, np.ones((4, 4), bool))),
    ),
}


@pytest.mark.parametrize("name", ["uniform", "2:4", "blocks", "channels", "erk", "global"])
def test_adam_beside_numpy(name):
    """Equal masks at every step, weights to 1e-6 and moments too: masked gradient, masked state, landing.

    PREDECESSOR row 18: gradual pruning keeps Adam's moments alive at pruned positions.
    """
    structure, distribution, choose = CASES[name]
    if name == "global":
        distribution, choose = eqsparse.Global(0.7), told.everywhere(0.7, True)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((16, 12), (8, 16))]
    grads = [[rng.normal(size=w.shape).astype(np.float32) for w in weights] for _ in range(30)]
    pruner = eqsparse.MagnitudePruning(
        optax.adam(0.02), distribution=distribution, structure=structure, schedule=eqsparse.Polynomial(**WINDOW)
    )
    model, state = pruner.init(with_weights(layers(), weights))
    seen = set()
    for g, (w, m, s) in zip(grads, told.train(weights, grads, choose, told.adam(0.02), **WINDOW), strict=True):
        model, state = pruner.step(model, gradients(model, g), state)
        masks = list(eqsparse.get_masks(model).values())
        for i in range(2):
            np.testing.assert_array_equal(masks[i], m[i])
            np.testing.assert_allclose(model[i].weight, w[i], rtol=0, atol=1e-6)
            assert not np.asarray(model[i].weight)[~m[i]].any()
            moments = state.optim[0].mu[i].weight, state.optim[0].nu[i].weight
            for moment, want in zip(moments, s[i], strict=True):
                np.testing.assert_allclose(moment, want, rtol=0, atol=1e-6)
                assert not np.asarray(moment)[~m[i]].any()
        seen.add(tuple(int(mask.sum()) for mask in m))
    assert len(seen) >= 3  # it went by steps
    assert int(state.step) == 30


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("erk", "global")])
def test_bfloat16_beside_numpy(name):
    """PREDECESSOR row 4: exact counts in 16 bits, where scores tie by the dozen; packed masks.

    Weights are multiples of 1/32 that bfloat16 holds, gradients of -1, 0 or 1 of these: all sums are exact.
    """
    structure, distribution, choose = CASES[name]
    rng = np.random.default_rng(1)
    weights = [rng.integers(-90, 91, shape).astype(np.float32) / 32 for shape in ((16, 12), (8, 16))]
    grads = [[rng.integers(-1, 2, w.shape).astype(np.float32) / 32 for w in weights] for _ in range(30)]
    pruner = eqsparse.MagnitudePruning(
        optax.sgd(1.0), distribution=distribution, structure=structure, schedule=eqsparse.Polynomial(**WINDOW),
        packed=True,
    )  # fmt: skip
    model, state = pruner.init(with_weights(layers(jnp.bfloat16), [jnp.asarray(w, jnp.bfloat16) for w in weights]))
    for g, (w, m, _) in zip(grads, told.train(weights, grads, choose, told.sgd(1.0), **WINDOW), strict=True):
        model, state = pruner.step(model, gradients(model, [jnp.asarray(x, jnp.bfloat16) for x in g]), state)
        masks = list(eqsparse.get_masks(model).values())
        for i in range(2):
            assert model[i].masks["weight"].packed and model[i].weight.dtype == jnp.bfloat16
            np.testing.assert_array_equal(masks[i], m[i])
            np.testing.assert_array_equal(np.asarray(model[i].weight, np.float32), w[i])


def test_saliency_beside_numpy():
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((16, 12), (8, 16))]
    grads = [[rng.normal(size=w.shape).astype(np.float32) for w in weights] for _ in range(30)]
    pruner = eqsparse.SaliencyPruning(
        optax.sgd(0.01), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.Polynomial(**WINDOW)
    )
    model, state = pruner.init(with_weights(layers(), weights))
    choose, saliency = told.uniform(told.two_of_four, 0.5), lambda w, g: np.abs(w * g)
    retold = told.train(weights, grads, choose, told.sgd(0.01), **WINDOW, score=saliency)
    for g, (w, m, _) in zip(grads, retold, strict=True):
        model, state = pruner.step(model, gradients(model, g), state)
        for i, mask in enumerate(eqsparse.get_masks(model).values()):
            np.testing.assert_array_equal(mask, m[i])
            np.testing.assert_allclose(model[i].weight, w[i], rtol=0, atol=1e-6)


def kept(model):
    return [int(mask.sum()) for mask in eqsparse.get_masks(model).values()]


def run(pruner, model, steps):
    """The counts kept after each step, without an optimiser."""
    model, state = pruner.init(model)
    counts = []
    for _ in range(steps):
        model, state = pruner.step(model, None, state)
        counts.append(kept(model))
    return counts, model, state


@pytest.mark.parametrize("window", [(2, 9, 4), (2, 4, 100), (3, 3, 7)], ids=["off the grid", "short", "one step"])
def test_target_is_reached_at_stop(window):
    """PREDECESSOR row 12: where the end is no multiple of the frequency, the target is never reached; a window
    shorter than the frequency never updates."""
    start, stop, every = window
    pruner = eqsparse.MagnitudePruning(distribution=0.9, schedule=eqsparse.Polynomial(start, stop, every))
    counts, _, _ = run(pruner, [eqx.nn.Linear(10, 10, key=KEY)], 11)
    assert [c for (c,) in counts[stop:]] == [10] * (11 - stop)
    assert all(c > 10 for (c,) in counts[:stop])
    due = [t for t in range(start, stop) if (t - start) % every == 0]
    assert all(counts[t] == counts[t - 1] for t in range(1, stop) if t not in due)


def test_two_of_four_passes_through_four_and_three():
    """PREDECESSOR row 9: N:M ignores the sparsity asked and the schedule. 2:4 passes through 4:4 and 3:4."""
    schedule = eqsparse.Polynomial(0, 8, 1, power=1)  # 0, 1/16, ..., 1/2
    pruner = eqsparse.MagnitudePruning(distribution=0.5, structure=eqsparse.NM(2, 4), schedule=schedule)
    counts, model, _ = run(pruner, [eqx.nn.Linear(8, 8, key=KEY)], 9)
    # Per run of 4, ceil(4 (1 - s)) of 4 - t/4: 4 for t < 4 (the ceiling), 3 for 4 ≤ t < 8, and then 2.
    assert [c // 16 for (c,) in counts] == [4, 4, 4, 4, 3, 3, 3, 3, 2]
    runs = np.asarray(model[0].masks["weight"].dense()).reshape(-1, 4)
    assert (runs.sum(1) == 2).all()


@pytest.mark.parametrize(
    "weight",
    [
        np.linspace(1e4, 3e4, 64).astype(np.float16),
        np.full(64, 3e38, np.float32),
        np.linspace(1e-8, 1e-5, 64).astype(np.float16),
        np.repeat(np.float32([1, 2]), 32).astype(jnp.bfloat16),
        np.zeros(64, jnp.bfloat16),
    ],
    ids=["large float16", "tied float32", "small float16", "tied bfloat16", "zeros"],
)
def test_monotone_and_exact_at_any_size_of_score(weight):
    """PREDECESSOR row 4: scores raised by `max + 1e-5` are lost in rounding when large, or in 16 bits.

    What is removed never comes back, and counts are exact, also among ties: the lower index stays.
    """
    linear = eqx.nn.Linear(8, 8, dtype=weight.dtype, key=KEY)
    linear = eqx.tree_at(lambda m: m.weight, linear, jnp.asarray(weight.reshape(8, 8)))
    pruner = eqsparse.MagnitudePruning(distribution=0.75, schedule=eqsparse.Polynomial(0, 4, 1, power=1))
    model, state = pruner.init([linear])
    old = np.ones((8, 8), bool)
    for step in range(6):
        model, state = pruner.step(model, None, state)
        (mask,) = (np.asarray(m) for m in eqsparse.get_masks(model).values())
        k = 64 - 12 * min(step, 4)
        assert mask.sum() == k
        assert not (mask & ~old).any()
        np.testing.assert_array_equal(mask, told.top(np.abs(weight.astype(np.float64)).reshape(8, 8), k))
        old = mask


def test_global_pruning_leaves_overridden_sites_alone():
    """PREDECESSOR row 14: global pruning with overrides masks the overridden layers at step 0, from signed values."""
    rng = np.random.default_rng(0)
    sites = [eqx.nn.Linear(8, 8, key=k) for k in jax.random.split(KEY, 3)]
    weights = [rng.normal(size=(8, 8)).astype(np.float32) for _ in sites]
    distribution = eqsparse.Global(0.5, normalise=False, overrides={"0.*": None, "1.weight": 0.25})
    pruner = eqsparse.GlobalMagnitudePruning(distribution=distribution, schedule=eqsparse.OneShot(2))
    counts, model, _ = run(pruner, with_weights(sites, weights), 4)
    assert counts == [[64, 64, 64]] * 2 + [[64, 48, 32]] * 2
    for i, k in ((1, 48), (2, 32)):  # by |w|
        np.testing.assert_array_equal(model[i].masks["weight"].dense(), told.top(np.abs(weights[i]), k))


@pytest.mark.parametrize("container", [list, tuple, dict, "linear", "dict of lists"])
def test_containers(container):
    """Modules, and lists, tuples and dicts of them."""
    a, b = eqx.nn.Linear(8, 8, key=KEY), eqx.nn.Linear(8, 4, key=KEY)
    model, total = {
        list: ([a, b], 96), tuple: ((a, b), 96), dict: ({"a": a, "b": b}, 96), "linear": (a, 64),
        "dict of lists": ({"x": [a, (b, None)]}, 96),
    }[container]  # fmt: skip
    pruner = eqsparse.MagnitudePruning(
        optax.sgd(0.1), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(0)
    )
    model, state = pruner.init(model)
    kind = type(model)
    model, state = pruner.step(model, eqx.filter(model, eqx.is_inexact_array), state)
    assert type(model) is kind
    assert sum(kept(model)) == total // 2
    # w - 0.1 w where kept, 0 elsewhere.
    first = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, eqsparse.MaskedLinear))[0]
    want = np.where(first.masks["weight"].dense(), np.float32(0.9) * np.asarray(a.weight), 0)
    np.testing.assert_allclose(first.weight, want, rtol=1e-6)


class Three(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear
    c: eqx.nn.Linear

    def __init__(self):
        self.a, self.b, self.c = (eqx.nn.Linear(8, 8, key=k) for k in jax.random.split(KEY, 3))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_where_and_structures_by_pattern(masked):
    """A structure may be named for a weight that `where` leaves out; one without a structure is unstructured."""
    net = Three()
    pruner = eqsparse.MagnitudePruning(
        distribution=0.5, where=["a.*", "b.weight"], schedule=eqsparse.OneShot(0),
        structure={"a.*": eqsparse.Channel(1), "c.*": eqsparse.NM(2, 4)},
    )  # fmt: skip
    _, model, _ = run(pruner, eqsparse.sparsify(net) if masked else net, 1)
    columns = np.asarray(model.a.masks["weight"].dense())
    np.testing.assert_array_equal(columns, told.channels(np.abs(np.asarray(net.a.weight)).T, 0.5).T)
    np.testing.assert_array_equal(
        model.b.masks["weight"].dense(), told.unstructured(np.abs(np.asarray(net.b.weight)), 0.5)
    )
    np.testing.assert_array_equal(model.c.weight, net.c.weight)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_where_and_overrides(masked):
    """An override wins over `where`; `None` for a weight that `where` leaves out says the same twice."""
    net = Three()
    distribution = eqsparse.Uniform(0.5, overrides={"b.*": 0.25, "c.*": None})
    pruner = eqsparse.MagnitudePruning(distribution=distribution, where="a.*", schedule=eqsparse.OneShot(0))
    _, model, _ = run(pruner, eqsparse.sparsify(net) if masked else net, 1)
    assert [int((x.weight != 0).sum()) for x in (model.a, model.b, model.c)] == [32, 48, 64]
    pruned = pruner.prune(eqsparse.sparsify(net) if masked else net)
    assert [int((x.weight != 0).sum()) for x in (pruned.a, pruned.b, pruned.c)] == [32, 48, 64]


def test_init():
    plain = layers()
    pruner = eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.5, packed=True)
    model, state = pruner.init(plain)
    assert kept(model) == [192, 128] and model[0].masks["weight"].packed
    assert eqx.tree_equal(eqsparse.materialise(model), plain)
    assert int(state.step) == 0 and state.key is None
    # A model that is masked already keeps its masks, how they are stored, and loses the weights behind them.
    mask = np.random.default_rng(0).random((16, 12)) < 0.5
    given = [eqsparse.MaskedLinear.from_layer(plain[0], mask), eqsparse.MaskedLinear.from_layer(plain[1])]
    model, state = pruner.init(given)
    assert not model[0].masks["weight"].packed
    np.testing.assert_array_equal(model[0].masks["weight"].dense(), mask)
    np.testing.assert_array_equal(model[0].weight, np.where(mask, plain[0].weight, 0))
    again, fresh = pruner.init(model)
    assert eqx.tree_equal(again, model) and eqx.tree_equal(fresh, state)
    compiled, jitted_state = eqx.filter_jit(pruner.init)(given)
    assert eqx.tree_equal(compiled, model) and eqx.tree_equal(jitted_state, state)


def test_layers_that_are_not_masked_are_trained_and_not_pruned():
    """Of a model with masked layers in it these are the sites; the others are dense."""
    a, b = layers()
    pruner = eqsparse.MagnitudePruning(optax.sgd(1.0), distribution=0.5, schedule=eqsparse.OneShot(0))
    model, state = pruner.init([eqsparse.MaskedLinear.from_layer(a), b])
    model, state = pruner.step(model, jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array)), state)
    assert kept(model) == [96] and type(model[1]) is eqx.nn.Linear
    np.testing.assert_allclose(model[1].weight, np.asarray(b.weight) - 1, rtol=1e-6)
    np.testing.assert_allclose(model[0].bias, np.asarray(a.bias) - 1, rtol=1e-6)


def test_no_pruning_trains_on_the_masks():
    mask = np.random.default_rng(0).random((16, 12)) < 0.5
    model = [eqsparse.MaskedLinear.from_layer(layers()[0], mask), eqsparse.MaskedLinear.from_layer(layers()[1])]
    pruner = eqsparse.NoPruning(optax.sgd(1.0))
    model, state = pruner.init(model)
    before = np.asarray(model[0].weight)
    for _ in range(2):
        model, state = pruner.step(model, jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array)), state)
    np.testing.assert_array_equal(model[0].masks["weight"].dense(), mask)
    np.testing.assert_allclose(model[0].weight, np.where(mask, before - 2, 0), rtol=1e-6)
    assert kept(eqsparse.NoPruning().prune(layers())) == [192, 128]


def test_masks_and_landing_hold_if_the_user_changes_things_outside():
    """PREDECESSOR row 20: masks live in the model; weights written behind them are landed at the next step."""
    pruner = eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.75, schedule=eqsparse.OneShot(0))
    model, state = pruner.init(layers())
    g = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    model, state = pruner.step(model, g, state)
    masks = [np.asarray(m) for m in eqsparse.get_masks(model).values()]
    model = eqx.tree_at(lambda m: [x.weight for x in m], model, [jnp.ones((16, 12)), jnp.ones((8, 16))])
    for i in range(2):  # effectively sparse at once
        np.testing.assert_array_equal(model[i].effective("weight"), masks[i].astype(np.float32))
    model, state = pruner.step(model, g, state)
    for i in range(2):
        np.testing.assert_array_equal(np.asarray(model[i].weight) != 0, masks[i])


def test_masks_set_by_the_user_are_obeyed():
    """Weights, moments and counts follow masks that `set_masks` has put in."""
    pruner = eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.5, schedule=eqsparse.OneShot(2))
    model, state = pruner.init(layers())
    g = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    model, state = pruner.step(model, g, state)
    given = np.random.default_rng(0).random((16, 12)) < 0.25
    model = eqsparse.set_masks(model, {"0.weight": given})
    for _ in range(3):
        model, state = pruner.step(model, g, state)
        np.testing.assert_array_equal(
            model[0].masks["weight"].dense(), given
        )  # sparser than the target: none comes back
        for array in (model[0].weight, state.optim[0].mu[0].weight, state.optim[0].nu[0].weight):
            np.testing.assert_array_equal(np.asarray(array) != 0, given)
    assert kept(model)[1] == 64


def test_scan_over_steps():
    """Model and state keep their types from step to step, so they may be carried by `lax.scan`."""
    pruner = eqsparse.MagnitudePruning(
        optax.adamw(0.05),
        distribution=0.75,
        structure=eqsparse.NM(1, 4),
        schedule=eqsparse.Polynomial(2, 7, 2),
        packed=True,
    )
    model, state = pruner.init(layers())
    rng = np.random.default_rng(0)
    stacked = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(10, *x.shape)), jnp.float32), eqx.filter(model, eqx.is_inexact_array)
    )

    @eqx.filter_jit
    def scanned(model, state):
        arrays, static = eqx.partition((model, state), eqx.is_array)

        def body(carry, g):
            carry, _ = eqx.partition(
                pruner.step(eqx.combine(carry, static)[0], g, eqx.combine(carry, static)[1]), eqx.is_array
            )
            return carry, None

        return eqx.combine(jax.lax.scan(body, arrays, stacked)[0], static)

    m, s = scanned(model, state)
    for i in range(10):
        model, state = pruner.step(model, jax.tree.map(lambda x: x[i], stacked), state)
    assert eqsparse.get_masks(m).keys() == eqsparse.get_masks(model).keys()
    for a, b in zip(jax.tree.leaves((m, s)), jax.tree.leaves((model, state)), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-5, atol=1e-6)
    assert kept(m) == [48, 32]


def test_saved_and_loaded_run_goes_on_as_it_would(tmp_path):
    pruner = eqsparse.RandomPruning(
        optax.adam(0.05), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.Polynomial(0, 5, 1), key=KEY
    )
    model, state = pruner.init(layers())
    skeleton = eqx.filter_eval_shape(pruner.init, layers())
    g = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    for step in range(6):
        if step == 3:
            eqx.tree_serialise_leaves(tmp_path / "run.eqx", jax.tree.map(_data, (model, state)))
        model, state = pruner.step(model, g, state)
    like = jax.tree.map(_data, eqx.filter_eval_shape(lambda: jax.tree.map(_data, pruner.init(layers()))))
    loaded = eqx.tree_deserialise_leaves(tmp_path / "run.eqx", like)
    m, s = jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, loaded, skeleton)
    assert int(s.step) == 3
    for _ in range(3):
        m, s = pruner.step(m, g, s)
    assert eqx.tree_equal(m, model)


def _is_key(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x):
    return jax.random.key_data(x) if isinstance(x, jax.Array) and _is_key(x) else x


def test_donated_step_by_step():
    """Every leaf has its own buffer after `init` and after each step: tied arrays and the key, too."""
    linear = eqx.nn.Linear(8, 8, key=KEY)
    key = jax.random.key(7)
    pruner = eqsparse.RandomPruning(
        optax.adam(0.05), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(1), key=key
    )
    model, state = pruner.init([linear, linear])
    leaves = [x for x in jax.tree.leaves((model, state)) if eqx.is_array(x) and not _is_key(x)]
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    old = model[0].weight
    step = eqx.filter_jit(lambda p, g, model, state: p.step(model, g, state), donate="all-except-first")
    for _ in range(3):
        g = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
        model, state = step(pruner, g, model, state)
    assert old.is_deleted()
    assert kept(model) == [32, 32]
    assert not key.is_deleted()
    pruner.init([eqx.nn.Linear(8, 8, key=KEY)])  # the pruner lives on
