"""Bad input: a clear error as early as it can be known, model and state unharmed; a compiled step never raises."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
RUNS = eqsparse.NM(2, 4)


def model_of(*sizes):
    return [eqx.nn.Linear(a, b, key=jax.random.fold_in(KEY, i)) for i, (a, b) in enumerate(sizes or [(8, 8), (8, 4)])]


def like(model, value=1.0):
    return jax.tree.map(lambda x: jnp.full_like(x, value), eqx.filter(model, eqx.is_inexact_array))


def snapshot(tree):
    return [np.array(x) for x in jax.tree.leaves(tree) if eqx.is_array(x)]


def unharmed(tree, before):
    after = [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]
    assert len(after) == len(before)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(after, before, strict=True))


# --- Arguments of a pruner -------------------------------------------------------------------------------------------


@pytest.mark.own_message
@pytest.mark.parametrize("value", [1.2, -0.1, float("nan"), float("inf"), 2, np.float32(1.5), jnp.asarray(-1.0)])
@pytest.mark.parametrize(
    "name, make",
    [
        ("Uniform(sparsity=...)", lambda s: eqsparse.MagnitudePruning(distribution=s)),
        ("Uniform(sparsity=...)", lambda s: eqsparse.Uniform(s)),
        ("Uniform(overrides=...)['*']", lambda s: eqsparse.Uniform(0.5, overrides={"*": s})),
        ("ERK(sparsity=...)", lambda s: eqsparse.ERK(s)),
        ("Global(sparsity=...)", lambda s: eqsparse.Global(s)),
        ("Global(sparsity=...)", lambda s: eqsparse.GlobalMagnitudePruning(distribution=s)),
        ("Global(sparsity=...)", lambda s: eqsparse.GlobalSaliencyPruning(distribution=s)),
        ("PerPath(...)['*']", lambda s: eqsparse.PerPath({"*": s})),
        ("PerPath(default=...)", lambda s: eqsparse.PerPath({}, default=s)),
    ],
)
def test_sparsity_outside_its_range(name, make, value):
    with pytest.raises(ValueError) as caught:
        make(value)
    assert str(caught.value).startswith(f"`{name}` must be in [0, 1]. Got ")
    assert str(np.asarray(value)) in str(caught.value)


@pytest.mark.own_message
@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], np.bool_(True), 0.5j, jnp.asarray([0.1, 0.2]), RUNS])
def test_no_number(value):
    with pytest.raises(ValueError, match=r"(distribution|sparsity).*must be.*Got"):
        eqsparse.MagnitudePruning(distribution=value)


@pytest.mark.own_message
@pytest.mark.parametrize(
    "kwargs, says",
    [
        ({"optim": optax.adam}, r"MagnitudePruning\(optim=\.\.\.\).*Optax optimiser.*adam"),
        ({"optim": "adam"}, r"optim=.*Optax optimiser.*'adam'"),
        ({"schedule": 10}, r"schedule=.*a schedule.*10"),
        ({"schedule": eqsparse.Polynomial}, r"schedule=.*a schedule"),
        ({"schedule": None}, r"schedule=.*a schedule.*None"),
        ({"structure": "2:4"}, r"structure.*a structure.*'2:4'"),
        ({"structure": eqsparse.Unstructured}, r"structure.*a structure"),
        ({"structure": {"*": 4}}, r"structure.*4"),
        ({"structure": {5: RUNS}}, r"structure.*globs.*5"),
        ({"where": 3}, r"where.*glob.*3"),
    ],
)
def test_arguments_of_a_wrong_kind(kwargs, says):
    with pytest.raises(ValueError, match=says):
        eqsparse.MagnitudePruning(distribution=0.5, **kwargs)


@pytest.mark.own_message
@pytest.mark.parametrize("key", [None, 0, "key", jnp.ones(3)])
def test_keys(key):
    """Those that draw need a key, and an integer is none."""
    with pytest.raises(ValueError, match=r"RandomPruning\(key=\.\.\.\).*jax\.random\.key.*Got"):
        eqsparse.RandomPruning(distribution=0.5, key=key)
    if key is not None:
        with pytest.raises(ValueError, match=r"RandomPruning\.prune\(key=\.\.\.\).*jax\.random\.key.*Got"):
            eqsparse.RandomPruning(distribution=0.5, key=KEY).prune(jnp.ones((2, 2)), key=key)


# --- Models ----------------------------------------------------------------------------------------------------------

NOTHING = {
    "a norm": eqx.nn.LayerNorm(4), "no layers": [eqx.nn.Dropout()], "arrays": {"w": jnp.ones((4, 4))}, "empty": {},
    "none": None, "array": jnp.ones((4, 4)),
}  # fmt: skip


@pytest.mark.own_message
@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_train(name):
    with pytest.raises(ValueError, match=r"model.*Linear.*Got"):
        eqsparse.MagnitudePruning(distribution=0.5).init(NOTHING[name])


@pytest.mark.own_message
@pytest.mark.parametrize(
    "tree",
    [{}, [], None, {"ids": jnp.ones((4, 4), int)}, {"bias": jnp.ones(4)}, 3.0, "w", eqx.nn.LayerNorm(4), np.arange(4)],
)
def test_nothing_to_prune(tree):
    with pytest.raises(ValueError, match=r"model.*must.*Got"):
        eqsparse.MagnitudePruning(distribution=0.5).prune(tree)


@pytest.mark.own_message
@pytest.mark.parametrize(
    "kwargs, says",
    [
        ({"where": "encodr.*"}, r"where.*'encodr\.\*'.*Nearest"),
        ({"where": ["0.*", "0.wieght"]}, r"where.*'0\.wieght'.*Nearest.*0\.weight"),
        ({"where": re.compile("2")}, r"where.*'2'"),
        ({"where": lambda path, array: False}, "where"),
        ({"structure": {"0.wieght": RUNS}}, r"structure.*'0\.wieght'.*Nearest.*0\.weight"),
        (
            {"distribution": eqsparse.Uniform(0.5, {"0.wieght": 0.1})},
            r"Uniform\(overrides=.*'0\.wieght'.*Nearest.*0\.weight",
        ),
        ({"distribution": eqsparse.PerPath({"0.wieght": 0.1})}, r"PerPath.*'0\.wieght'.*Nearest.*0\.weight"),
        ({"distribution": eqsparse.ERK(0.5, {"0.wieght": 0.1})}, r"ERK\(overrides=.*'0\.wieght'.*Nearest.*0\.weight"),
    ],
)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_patterns_without_match(kwargs, says, masked):
    """PREDECESSOR row 15: known, and said, at `init`; and in `prune`."""
    model = eqsparse.sparsify(model_of()) if masked else model_of()
    before = snapshot(model)
    pruner = eqsparse.MagnitudePruning(**{"distribution": 0.5, **kwargs})
    for each in (pruner.init, pruner.prune):
        with pytest.raises(ValueError, match=says):
            each(model)
    unharmed(model, before)


UNFIT = [
    ({"structure": RUNS}, [(8, 8), (6, 4), (12, 4)], r"NM.*length 6.*`1\.weight`.*fits \['0\.weight', '2\.weight'\]"),
    ({"structure": eqsparse.NM(2, 4, axis=2)}, [(8, 8)], r"NM.*axis 2.*\(8, 8\).*`0\.weight`"),
    ({"structure": RUNS, "distribution": 0.9}, [(8, 8)], r"NM.*0\.5 at most.*0\.9.*`0\.weight`"),
    (
        {"structure": RUNS, "distribution": eqsparse.Uniform(0.5, {"1.*": 0.75})}, [(8, 8), (8, 4)],
        r"NM.*0\.5 at most.*0\.75.*`1\.weight`.*fits \['0\.weight'\]",
    ),
    ({"structure": RUNS, "distribution": eqsparse.Global(0.5)}, [(8, 8)], r"distribution.*global.*NM.*`0\.weight`"),
    (
        {"structure": eqsparse.Unstructured("row"), "distribution": eqsparse.Global(0.5)}, [(8, 8)],
        r"distribution.*global.*row.*`0\.weight`",
    ),
    ({"structure": eqsparse.Channel(2)}, [(8, 8)], r"Channel\(axis=\.\.\.\).*2.*`0\.weight`"),
    ({"structure": eqsparse.Block((2, 2), axes=(0, 2))}, [(8, 8)], r"Block\(axes=\.\.\.\).*\(0, 2\).*`0\.weight`"),
]  # fmt: skip


@pytest.mark.own_message
@pytest.mark.parametrize("kwargs, sizes, says", UNFIT)
def test_structures_that_do_not_fit(kwargs, sizes, says):
    """PREDECESSOR row 9: 2:4 at 90% gives 50%, at once. `init` names the path, and those that do fit."""
    model = model_of(*sizes)
    pruner = eqsparse.MagnitudePruning(**{"distribution": 0.5, **kwargs})
    with pytest.raises(ValueError, match=says):
        pruner.init(model)


@pytest.mark.own_message
@pytest.mark.parametrize("kwargs, sizes, says", UNFIT)
def test_structures_that_do_not_fit_in_one_shot(kwargs, sizes, says):
    model = model_of(*sizes)
    before = snapshot(model)
    pruner = eqsparse.MagnitudePruning(**{"distribution": 0.5, **kwargs})
    with pytest.raises(ValueError, match=says):
        pruner.prune(model)
    unharmed(model, before)


# --- Steps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    pruner = eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.5, structure=RUNS, schedule=eqsparse.OneShot(0))
    return pruner, *pruner.init(model_of())


def refuses(run, says, grads=None, state=None, model=None):
    pruner, own_model, own_state = run
    model = own_model if model is None else model
    state = own_state if state is None else state
    grads = like(own_model) if grads is None else grads
    before = snapshot((model, state, grads))
    with pytest.raises(ValueError, match=says):
        pruner.step(model, grads, state)
    unharmed((model, state, grads), before)
    pruner.step(own_model, like(own_model), own_state)  # goes on as if nothing had been


@pytest.mark.own_message
@pytest.mark.parametrize(
    "grads, says",
    [
        (lambda m: like(model_of()), r"`grads`.*parameter.*`0"),  # of the plain model
        (lambda m: like(m)[:1], r"`grads`.*`1.*Got nothing"),
        (lambda m: [*like(m), jnp.ones(3)], r"`grads`.*`2`.*nothing.*Got shape \(3,\)"),
        (lambda m: eqx.tree_at(lambda g: g[0].weight, like(m), jnp.ones((8, 4))), r"`grads`.*`0\..*\(8, 8\).*\(8, 4\)"),
        (lambda m: eqx.tree_at(lambda g: g[0].bias, like(m), None), r"`grads`.*`0\..*bias.*\(8,\).*nothing"),
        (lambda m: {}, r"`grads`.*nothing"),
        (lambda m: jnp.ones(3), r"`grads`"),
        (lambda m: like(eqsparse.sparsify(model_of((8, 8), (8, 3)))), r"`grads`.*`1\..*\(4, 8\).*\(3, 8\)"),
        (lambda m: eqx.tree_at(lambda g: g[0].weight, like(m), jnp.ones((8, 8), jnp.int32)), r"`grads`.*int32"),
        (lambda m: eqx.tree_at(lambda g: g[0].weight, like(m), jnp.ones((8, 8), bool)), r"`grads`.*bool"),
    ],
    ids=[
        "plain",
        "short",
        "long",
        "shape",
        "a bias gone",
        "empty",
        "an array",
        "another model",
        "integers",
        "booleans",
    ],
)
def test_gradients_of_another_structure(run, grads, says):
    refuses(run, says, grads=grads(run[1]))


@pytest.mark.own_message
def test_no_gradients_and_a_batch_of_keys(run):
    pruner, model, state = run
    with pytest.raises(ValueError, match=r"`grads`.* At `0.weight` "):  # as sites are called, not `0.layer.weight`
        pruner.step(model, None, state)
    with pytest.raises(ValueError, match=r"`jax.random.key`. Got dtype key<fry>, shape \(2,\)"):
        eqsparse.RandomPruning(distribution=0.5, key=jax.random.split(jax.random.key(0)))
    saliency = eqsparse.SaliencyPruning(distribution=0.5, schedule=eqsparse.OneShot(0))
    model, state = saliency.init(model_of())
    with pytest.raises(ValueError, match=r"`grads`"):
        saliency.step(model, None, state)
    with pytest.raises(ValueError, match=r"`grads`.*Saliency"):
        saliency.prune(model)
    with pytest.raises(ValueError, match=r"`grads`.*\(8, 8\).*`0\.weight`"):
        saliency.prune(model, grads=like(eqsparse.sparsify(model_of((8, 4)))))


@pytest.mark.own_message
@pytest.mark.parametrize(
    "sizes, says",
    [
        ([(8, 8), (8, 3)], r"`state`.*`1\.weight`.*\(4, 8\).*\(3, 8\)"),
        ([(8, 8)], r"`state`.*`1\.weight`.*\(4, 8\).*nothing"),
        ([(8, 8), (8, 4), (4, 4)], r"`state`.*`2\.weight`.*nothing.*\(4, 4\)"),
    ],
    ids=["shape", "fewer", "more"],
)
def test_state_of_another_model(run, sizes, says):
    other = eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.5).init(model_of(*sizes))[1]
    refuses(run, says, state=other)


@pytest.mark.own_message
def test_state_of_a_model_that_differs_elsewhere(run):
    """In a bias, or in how masks are stored: the sites are the same."""
    plain = [eqx.nn.Linear(8, 8, use_bias=False, key=KEY), eqx.nn.Linear(8, 4, key=KEY)]
    other = lambda model, **k: eqsparse.MagnitudePruning(optax.adam(0.1), distribution=0.5, **k).init(model)[1]
    refuses(
        run,
        r"`state` must be that of `model`. At `0.*bias` `model` has shape \(8,\). Got a state of nothing",
        state=other(plain),
    )
    refuses(
        run,
        r"`state`.*At `0.weight` `model` has .* with a mask. Got .* with a packed mask",
        state=other(model_of(), packed=True),
    )


@pytest.mark.own_message
def test_state_of_another_pruner_or_optimiser(run):
    other = eqsparse.SaliencyPruning(optax.adam(0.1), distribution=0.5).init(model_of())[1]
    refuses(run, "`state` must be that of this pruner, a MagnitudePruning. Got that of a SaliencyPruning", state=other)
    other = eqsparse.MagnitudePruning(optax.sgd(0.1), distribution=0.5).init(model_of())[1]
    refuses(run, "`state` must be that of this pruner's optimiser. Got EmptyState and EmptyState", state=other)


@pytest.mark.own_message
def test_nothing_to_prune_is_said(run):
    """Rather than to train on, dense."""
    none = {"*": None}
    for pruner in (eqsparse.MagnitudePruning(distribution=eqsparse.Uniform(0.5, none)),):
        with pytest.raises(ValueError, match="`MagnitudePruning` must have a weight to prune"):
            pruner.init(model_of())
    with pytest.raises(ValueError, match="`MagnitudePruning` must have a weight to prune"):
        eqsparse.MagnitudePruning(optax.sgd(0.1), distribution=0.5).as_optax().init({"a": jnp.ones(3)})
    for call in (
        lambda: eqsparse.sparsify(model_of(), []),
        lambda: eqsparse.MagnitudePruning(distribution=0.5, where=[]),
    ):
        with pytest.raises(ValueError, match="`where` must hold one pattern at least"):
            call()


@pytest.mark.own_message
def test_settings_of_another_kind():
    with pytest.raises(ValueError, match=r"`Global\(normalise=...\)` must be a bool. Got {'0.*': None}"):
        eqsparse.Global(0.5, {"0.*": None})  # overrides come third
    with pytest.raises(ValueError, match=r"`MagnitudePruning\(packed=...\)` must be a bool. Got 'yes'"):
        eqsparse.MagnitudePruning(distribution=0.5, packed="yes")
    with pytest.raises(ValueError, match=r"`set_masks\(masks=...\)` must be a dict of path → mask. Got list"):
        eqsparse.set_masks(eqsparse.sparsify(model_of()), [1])
    with pytest.raises(ValueError, match=r"`set_masks\(model=...\)` must contain a masked layer"):
        eqsparse.set_masks(model_of(), {"0.weight": jnp.ones((8, 8), bool)})
    for structure in (eqsparse.Unstructured(), eqsparse.Block((2, 2)), eqsparse.Channel(), eqsparse.NM(2, 4)):
        with pytest.raises(ValueError, match="`scores` must be floating point or unsigned integers. Got dtype int32"):
            structure.mask(jnp.ones((4, 4), jnp.int32), 0.5)
    with pytest.raises(ValueError, match=r"`scores\(key=...\)` must be a `jax.random.key`"):
        eqsparse.Random().scores({"a": jnp.ones(3)}, key=5)
    with pytest.raises(ValueError, match=r"`target` must be in \[0, 1\]. Got 1.5"):
        eqsparse.Polynomial(0, 10, 3).sparsity(1.5, 3)
    with pytest.raises(ValueError, match="`step` must be a whole number. Got 3.7"):
        eqsparse.Polynomial(0, 10, 3).is_due(3.7)


@pytest.mark.own_message
def test_what_is_no_state(run):
    for state in ((), {"step": 0}, run[2].optim):
        refuses(run, r"`state`.*`init`.*Got", state=state)


@pytest.mark.own_message
def test_a_plain_model_in_a_step(run):
    refuses(run, r"model|grads|state", model=model_of())


# --- Numbers that are not finite; a compiled step never raises -------------------------------------------------------

STRUCTURES = {
    "unstructured": (eqsparse.Unstructured(), 32),
    "rows": (eqsparse.Unstructured("row"), 32),
    "2:4": (eqsparse.NM(2, 4), 32),
    "blocks": (eqsparse.Block((2, 2)), 32),
    "largest of a block": (eqsparse.Block((2, 2), "max"), 32),
    "channels": (eqsparse.Channel(0), 32),
}


def spoilt(kind, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(8, 8)).astype(np.float32)
    where = rng.random((8, 8))
    if kind in ("nan", "both"):
        w[where < 0.4] = np.nan
    if kind in ("inf", "both"):
        w[where > 0.6] = np.inf
        w[where > 0.8] = -np.inf
    return np.full_like(w, np.nan) if kind == "all nan" else w


@pytest.mark.parametrize("kind", ["nan", "inf", "both", "all nan"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_counts_stay_exact_on_weights_that_are_not_finite(name, kind):
    """PREDECESSOR row 5: NaN scores empty a whole mask."""
    structure, k = STRUCTURES[name]
    found = eqsparse.MagnitudePruning(distribution=0.5, structure=structure).prune(
        [eqsparse.sparsify(with_weight(spoilt(kind)))]
    )
    mask = np.asarray(found[0].masks["weight"].dense())
    assert mask.sum() == k
    assert not np.asarray(found[0].weight)[~mask].any()  # dropped ones are zero, not NaN
    if name == "unstructured" and kind == "nan":  # every number before any NaN
        assert not np.isnan(spoilt(kind)[mask]).any()


def with_weight(w):
    return eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(8, 8, key=KEY), jnp.asarray(w))


@pytest.mark.parametrize("kind", ["nan", "inf", "both", "all nan"])
@pytest.mark.parametrize("name", ["unstructured", "2:4", "blocks", "largest of a block", "channels"])
def test_counts_stay_exact_from_update_to_update(name, kind):
    """A gradient that goes wrong at a late update: what is kept is still chosen among what is left."""
    structure, _ = STRUCTURES[name]
    schedule = eqsparse.Polynomial(0, 8, 2, power=1) if name != "2:4" else eqsparse.Periodic(0, 8, 2)
    pruner = eqsparse.SaliencyPruning(distribution=0.5, structure=structure, schedule=schedule)
    model, state = pruner.init([with_weight(np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32))])
    old = np.ones((8, 8), bool)
    for step in range(9):
        g = np.random.default_rng(step).normal(size=(8, 8)).astype(np.float32) if step < 4 else spoilt(kind, step)
        grads = eqx.tree_at(lambda m: m[0].weight, like(model), jnp.asarray(g))
        model, state = pruner.step(model, grads, state)
        mask = np.asarray(model[0].masks["weight"].dense())
        want = 32 if name == "2:4" else 64 - 8 * (step // 2)
        assert mask.sum() == want, step
        assert not (mask & ~old).any()
        old = mask


def test_a_tile_of_infinity_and_nan_is_still_there():
    """Its average is NaN, as that of a removed tile is: it must not lose its place to one of these."""
    w = np.ones((4, 4), np.float32)
    w[2:, 2:] = 5.0
    w[:2, 2:] = 4.0
    pruner = eqsparse.MagnitudePruning(
        distribution=0.5, structure=eqsparse.Block((2, 2)), schedule=eqsparse.Periodic(0, 9, 1)
    )
    linear = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(4, 4, key=KEY), jnp.asarray(w))
    model, state = pruner.init([linear])
    model, state = pruner.step(model, None, state)
    first = np.asarray(model[0].masks["weight"].dense())
    assert first.sum() == 8 and first[2:, 2:].all()
    model = eqx.tree_at(lambda m: m[0].weight, model, model[0].weight.at[2, 2].set(jnp.inf).at[3, 3].set(jnp.nan))
    model, state = pruner.step(model, None, state)
    np.testing.assert_array_equal(model[0].masks["weight"].dense(), first)


def test_nan_gradients_reach_kept_weights_as_in_a_dense_run_and_no_others():
    pruner = eqsparse.MagnitudePruning(optax.sgd(0.1), distribution=0.5, structure=RUNS, schedule=eqsparse.OneShot(0))
    model, state = pruner.init(model_of())
    model, state = pruner.step(model, like(model, float("nan")), state)
    for layer in model:
        mask = np.asarray(layer.masks["weight"].dense())
        assert mask.sum() == mask.size // 2
        assert np.isnan(np.asarray(layer.weight)[mask]).all() and not np.asarray(layer.weight)[~mask].any()
    model, state = pruner.step(model, like(model), state)  # and goes on


@pytest.mark.parametrize("sparsity, k", [(1.5, 0), (-0.5, 64), (float("nan"), 64), (float("inf"), 0), (0.5, 32)])
def test_traced_sparsities_are_clamped(sparsity, k):
    """A compiled step never raises: what is out of range is taken to its nearest end, and NaN for 0."""
    count = COMPILED(jnp.asarray(sparsity))
    assert int(count) == k


@eqx.filter_jit
def COMPILED(s):
    pruner = eqsparse.MagnitudePruning(distribution=s, schedule=eqsparse.OneShot(0))
    model, state = pruner.init([eqx.nn.Linear(8, 8, key=KEY)])
    return pruner.step(model, None, state)[0][0].masks["weight"].nnz()


def test_a_traced_target_that_runs_cannot_reach_is_clamped_too():
    @eqx.filter_jit
    def count(s):
        pruner = eqsparse.MagnitudePruning(distribution=s, structure=RUNS, schedule=eqsparse.OneShot(0))
        model, state = pruner.init([eqx.nn.Linear(8, 8, key=KEY)])
        return pruner.step(model, None, state)[0][0].masks["weight"].nnz()

    assert [int(count(jnp.asarray(s))) for s in (0.0, 0.3, 0.9)] == [64, 48, 32]


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"`LotteryTicket\(rewind=...\)` must be a step of the first round.*Got 5"):
        eqsparse.LotteryTicket(distribution=0.5, rounds=2, steps=5, rewind=5)
    with pytest.raises(ValueError, match=r"`TopKAST\(backward_sparsity=...\)` must be at most .*0.5. Got 0.9"):
        eqsparse.TopKAST(distribution=0.5, backward_sparsity=0.9)
    for decay in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`SRSTE\(decay=...\)` must be finite and not negative"):
            eqsparse.SRSTE(distribution=0.5, decay=decay)
