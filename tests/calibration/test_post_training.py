"""Wanda, RIA, SparseGPT, OWL, reconstruction, sequential pruning: against NumPy, and by what must hold."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from retold import best, by_blocks, by_runs, damped, error, surgery

import eqsparse

KEY = jax.random.key(0)
rng = np.random.default_rng(0)


def inputs(rows, features):
    """Correlated, of unequal size."""
    mixed = rng.normal(size=(rows, features)) @ (rng.normal(size=(features, features)) / np.sqrt(features))
    return jnp.asarray(mixed * np.exp(rng.normal(size=features) / 2), jnp.float32)


LAYER, X = eqx.nn.Linear(20, 7, key=KEY), inputs(60, 20)
W = np.asarray(LAYER.weight)


@pytest.fixture(scope="module")
def known():
    return eqsparse.calibrate(LAYER, [X], statistics="gram")


def pruned(pruner, statistics, model=LAYER):
    model = pruner.prune(model, statistics=statistics)
    return np.asarray(model.weight), np.asarray(model.masks["weight"].dense())


def error_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_wanda_keeps_the_best_of_each_row(known):
    scores = np.abs(W) * np.sqrt((np.asarray(X, np.float64) ** 2).sum(0))
    kept = round(7 * 20 * 0.35)
    each = [kept // 7 + (r < kept % 7) for r in range(7)]
    w, mask = pruned(eqsparse.Wanda(distribution=0.65), known)
    np.testing.assert_array_equal(mask, np.stack([best(s, k) for s, k in zip(scores, each, strict=True)]))
    np.testing.assert_array_equal(w, np.where(mask, W, 0))
    _, mask = pruned(eqsparse.Wanda(distribution=0.5, structure=eqsparse.NM(2, 4)), known)
    runs = scores.reshape(7, 5, 4)
    np.testing.assert_array_equal(mask.reshape(runs.shape), [[best(r, 2) for r in row] for row in runs])
    assert known["weight"].second_moment is not None  # the diagonal of the Gram matrix


def test_ria_by_shares_of_rows_and_columns(known):
    magnitude = np.abs(W.astype(np.float64))
    share = magnitude / magnitude.sum(0) + magnitude / magnitude.sum(1, keepdims=True)
    scores = share * (np.asarray(X, np.float64) ** 2).sum(0) ** 0.25
    _, mask = pruned(eqsparse.RIA(distribution=0.5), known)
    np.testing.assert_array_equal(mask, np.stack([best(s, 10) for s in scores]))


GRAM = np.asarray(X, np.float64).T @ np.asarray(X, np.float64)


@pytest.mark.parametrize(
    "settings, choose",
    [
        ({"block_size": 6}, by_blocks(7, 20, 6, 0.5)),
        ({"structure": eqsparse.Unstructured("row")}, by_blocks(7, 20, 128, 0.5, per_row=True)),
        ({"structure": eqsparse.Unstructured("row"), "block_size": 8}, by_blocks(7, 20, 8, 0.5, per_row=True)),
        ({"structure": eqsparse.NM(2, 4)}, by_runs(2, 4)),
        ({"structure": eqsparse.NM(1, 2), "block_size": 4, "damping": 0.1}, by_runs(1, 2)),
    ],
    ids=["blocks", "rows", "rows in blocks", "2:4", "1:2"],
)
def test_sparse_gpt_is_surgery_input_by_input(known, settings, choose):
    w, mask = pruned(eqsparse.SparseGPT(distribution=0.5, **settings), known)
    told, kept = surgery(W, GRAM, choose, settings.get("damping", 0.01))
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(w, told, atol=1e-5)
    assert mask.sum() == 70


@pytest.mark.parametrize(
    "settings",
    [
        {"structure": eqsparse.Channel(1)}, {"structure": eqsparse.Block((7, 2))}, {"structure": eqsparse.FixedFanIn()},
        {"structure": eqsparse.NM(4, 7, axis=0), "distribution": 3 / 7}, {"distribution": eqsparse.Global(0.5)},
    ],
    ids=["channel", "block", "fan-in", "N:M of outputs", "global"],
)  # fmt: skip
def test_masks_known_before_don_t_depend_on_blocks(known, settings):
    """Chosen by w² Σx², then surgery with these masks."""
    prune = lambda size: pruned(eqsparse.SparseGPT(block_size=size, **{"distribution": 0.5, **settings}), known)
    w, mask = prune(128)
    again, same = prune(4)
    np.testing.assert_array_equal(mask, same)
    np.testing.assert_allclose(w, again, atol=1e-5)
    if "distribution" not in settings:
        np.testing.assert_array_equal(mask, settings["structure"].mask(W**2 * np.diag(GRAM), 0.5))
    told, _ = surgery(W, GRAM, lambda j, w, costs: {j: mask[:, j]})
    np.testing.assert_allclose(w, told, atol=1e-5)


def test_least_squares_is_best_then_surgery_then_masks_alone(known):
    model = eqsparse.SparseGPT(distribution=0.5).prune(LAYER, statistics=known)
    w, mask = np.asarray(model.weight), np.asarray(model.masks["weight"].dense())
    fitted = np.asarray(eqsparse.reconstruct(model, LAYER, known).weight)
    exact = np.zeros_like(W, np.float64)
    for row, kept in enumerate(mask):
        exact[row, kept] = np.linalg.solve(GRAM[np.ix_(kept, kept)], GRAM[kept] @ W[row])
    np.testing.assert_allclose(fitted, exact, atol=2e-3)
    errors = [error(x, W, GRAM) for x in (exact, fitted, w, np.where(mask, W, 0))]
    assert errors[0] <= errors[1] * (1 + 1e-6) and errors[1] < errors[2] < errors[3] and errors[1] < 1.001 * errors[0]
    assert (fitted[~mask] == 0).all()


def test_weights_of_one_shape_are_compiled_once(monkeypatch):
    traced = []
    for file, name in (("sparse_gpt", "_of_slice"), ("reconstruct", "_row")):
        module = importlib.import_module(f"eqsparse._calibration.{file}")
        inner = getattr(module, name)
        counted = lambda *args, _inner=inner, _name=name, **kwargs: (traced.append(_name), _inner(*args, **kwargs))[1]
        monkeypatch.setattr(module, name, counted)
    model = eqx.nn.MLP(6, 6, 6, 2, key=KEY)
    statistics = eqsparse.calibrate(model, [X[:, :6]], statistics="gram")
    masked = eqsparse.SparseGPT(distribution=0.5).prune(model, statistics=statistics)
    eqsparse.reconstruct(masked, model, statistics)
    assert traced == ["_of_slice", "_row"]


def test_with_a_diagonal_hessian_it_ranks_as_wanda():
    x = jnp.diag(jnp.asarray(np.exp(rng.normal(size=20)), jnp.float32))
    known = eqsparse.calibrate(LAYER, [x], statistics="gram")
    rows = eqsparse.Unstructured("row")
    w, mask = pruned(eqsparse.SparseGPT(distribution=0.5, structure=rows, damping=0.0), known)
    np.testing.assert_array_equal(mask, pruned(eqsparse.Wanda(distribution=0.5), known)[1])
    np.testing.assert_allclose(w, np.where(mask, W, 0), atol=1e-6)


def test_a_weight_that_is_nan_counts_as_zero(known):
    bad, zero = (eqx.tree_at(lambda m: m.weight, LAYER, LAYER.weight.at[3, 2].set(value)) for value in (jnp.nan, 0.0))
    pruner = eqsparse.SparseGPT(distribution=0.5)
    for one, other in zip(pruned(pruner, known, bad), pruned(pruner, known, zero), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_weight_that_is_nan_counts_as_zero_in_reconstruction(known):
    bad, zero = (eqx.tree_at(lambda m: m.weight, LAYER, LAYER.weight.at[3, 2].set(value)) for value in (jnp.nan, 0.0))
    masked = eqsparse.Wanda(distribution=0.5).prune(bad, statistics=known)
    one, other = (eqsparse.reconstruct(masked, dense, known).weight for dense in (bad, zero))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pruner", [eqsparse.Wanda, eqsparse.SparseGPT])
def test_without_any_input_weights_go_by_magnitude(pruner):
    nothing = eqsparse.calibrate(LAYER, [jnp.zeros((3, 20))], statistics="gram")
    w, mask = pruned(pruner(distribution=0.5, structure=eqsparse.Unstructured("row")), nothing)
    np.testing.assert_array_equal(mask, [best(np.abs(row), 10) for row in W])
    np.testing.assert_array_equal(w, np.where(mask, W, 0))


def test_in_float32_with_float64_enabled(known):
    before = eqsparse.SparseGPT(distribution=0.5).prune(LAYER, statistics=known)
    before = eqsparse.reconstruct(before, LAYER, known).weight
    with jax.enable_x64(True):
        found = eqsparse.calibrate(LAYER, [X], statistics="gram")
        assert all(x.dtype == jnp.float32 for x in found["weight"].sums.values())
        model = eqsparse.SparseGPT(distribution=0.5).prune(LAYER, statistics=found)
        np.testing.assert_allclose(eqsparse.reconstruct(model, LAYER, found).weight, before, rtol=1e-3, atol=1e-5)


def test_few_rows_dead_inputs_and_copies():
    """A singular Hessian: no NaN, exact counts, inputs that were always 0 go first, nothing is worse than masks alone."""
    x = np.array(inputs(6, 20))
    x[:, [3, 8]] = 0
    x[:, 5] = x[:, 4]
    known = eqsparse.calibrate(LAYER, [jnp.asarray(x)], statistics="gram")
    for settings in ({}, {"damping": 0.0}, {"structure": eqsparse.NM(2, 4)}):
        model = eqsparse.SparseGPT(distribution=0.5, **settings).prune(LAYER, statistics=known)
        for w in (model.weight, eqsparse.reconstruct(model, LAYER, known).weight):
            assert np.isfinite(w).all() and (np.asarray(w) != 0).sum() == 70
            assert (np.asarray(w)[:, [3, 8]] == 0).all()
    w, mask = pruned(eqsparse.SparseGPT(distribution=0.05), known)
    np.testing.assert_allclose(w[:, [3, 8]], np.where(mask, W, 0)[:, [3, 8]])  # what stays there stays as it was
    nothing = eqsparse.calibrate(LAYER, [jnp.zeros((3, 20))], statistics="gram")
    w, mask = pruned(eqsparse.SparseGPT(distribution=0.5), nothing)
    assert mask.sum() == 70
    np.testing.assert_array_equal(w, np.where(mask, W, 0))


@pytest.mark.parametrize("kind", ["conv", "grouped", "transposed"])
def test_convolutions_through_their_patches(kind):
    make = {
        "conv": lambda: eqx.nn.Conv2d(4, 6, 3, padding=1, key=KEY),
        "grouped": lambda: eqx.nn.Conv1d(8, 6, 3, groups=2, key=KEY),
        "transposed": lambda: eqx.nn.ConvTranspose1d(4, 6, 2, stride=2, key=KEY),
    }
    layer = make[kind]()
    x = jnp.asarray(rng.normal(size=(12, layer.in_channels, *(8,) * layer.num_spatial_dims)), jnp.float32)
    known = eqsparse.calibrate(layer, [x], statistics="gram")
    y = jax.vmap(layer)(x)
    loss = lambda model: float(((jax.vmap(model)(x) - y) ** 2).sum())
    for structure in (eqsparse.Unstructured(), eqsparse.NM(2, 4))[kind != "transposed" :]:
        magnitude = eqsparse.MagnitudePruning(distribution=0.5, structure=structure).prune(layer)
        model = eqsparse.SparseGPT(distribution=0.5, structure=structure).prune(layer, statistics=known)
        fitted = eqsparse.reconstruct(model, layer, known)
        assert loss(fitted) < loss(model) < loss(magnitude)
        assert int(model.masks["weight"].nnz()) == layer.weight.size // 2
    runs = np.moveaxis(np.asarray(model.weight), 1, -1).reshape(-1, 4)
    assert ((runs != 0).sum(1) == 2).all()
    if kind == "conv":  # as of a matrix, with channels next to each other
        told, _ = surgery(
            np.moveaxis(np.asarray(layer.weight), 1, -1).reshape(6, -1),
            np.asarray(known["weight"].gram).reshape(4, 9, 4, 9).transpose(1, 0, 3, 2).reshape(36, 36),
            by_runs(2, 4),
        )
        np.testing.assert_allclose(np.moveaxis(np.asarray(model.weight), 1, -1).reshape(6, -1), told, atol=1e-5)


def test_stacks_packed_masks_and_bfloat16():
    """Each layer of a stack as it would be alone."""
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(20, 7, dtype=jnp.bfloat16, key=key))(jax.random.split(KEY, 3))
    forward = lambda stack, x: eqx.filter_vmap(lambda layer: jax.vmap(layer)(x))(stack)
    x = X.astype(jnp.bfloat16)
    known = eqsparse.calibrate(stack, [x], statistics="gram", forward=forward)
    for pruner in (eqsparse.SparseGPT, eqsparse.RIA):
        model = pruner(distribution=0.6, packed=True).prune(stack, statistics=known)
        assert model.weight.dtype == jnp.bfloat16 and model.masks["weight"].packed
        np.testing.assert_array_equal((np.asarray(model.weight, np.float32) != 0).sum((1, 2)), [56] * 3)
        alone = jax.tree.map(lambda a: a[1] if eqx.is_array(a) else a, stack)
        one = pruner(distribution=0.6).prune(alone, statistics=eqsparse.calibrate(alone, [x], statistics="gram"))
        np.testing.assert_allclose(
            np.asarray(model.weight[1], np.float32), np.asarray(one.weight, np.float32), atol=1e-2
        )
        np.testing.assert_array_equal(model.masks["weight"].dense()[1], one.masks["weight"].dense())
    fitted = eqsparse.reconstruct(model, stack, known)
    assert fitted.weight.dtype == jnp.bfloat16 and np.isfinite(np.asarray(fitted.weight, np.float32)).all()


def test_embeddings_by_how_often_a_token_comes():
    table = eqx.nn.Embedding(5, 4, key=KEY)
    known = eqsparse.calibrate(table, [jnp.array([0, 0, 0, 1, 3])], statistics="gram")
    scores = np.asarray(table.weight) ** 2 * np.array([3, 1, 1, 1, 1])[:, None]  # what never came counts as if once
    for pruner in (eqsparse.SparseGPT, eqsparse.Wanda):
        w, mask = pruned(pruner(distribution=0.5, structure=eqsparse.Unstructured()), known, table)
        np.testing.assert_array_equal(mask, best(scores, 10))
        np.testing.assert_array_equal(w, np.where(mask, table.weight, 0))
    model = eqsparse.Wanda(distribution=0.5).prune(table, statistics=known)
    with pytest.raises(ValueError, match='"gram" at'):
        eqsparse.SparseGPT(distribution=0.5).prune(LAYER, statistics=eqsparse.calibrate(LAYER, [X]))
    np.testing.assert_array_equal(eqsparse.reconstruct(model, table, known).weight, model.weight)


def test_what_is_masked_already_stays_so(known):
    model = eqsparse.MagnitudePruning(distribution=0.3).prune(LAYER)
    before = np.asarray(model.masks["weight"].dense())
    for pruner in (eqsparse.SparseGPT, eqsparse.Wanda, eqsparse.RIA):
        w, mask = pruned(pruner(distribution=0.6), known, model)
        assert not (mask & ~before).any() and (w[~mask] == 0).all() and 50 <= mask.sum() <= 56


def test_counts_are_exact_where_masks_were_uneven(known):
    """What early inputs, all masked in most rows, can't keep of their share the later ones do; what late ones can't the
    early; where there are fewer than the target, all stay."""
    uneven = np.ones((7, 20), bool)
    uneven[:6, :10] = uneven[6, 12:] = False  # 72 of 140
    for there in (uneven, uneven[:, ::-1]):
        model = eqsparse.MaskedLinear.from_layer(LAYER, jnp.asarray(there))
        for sparsity, kept in ((0.5, 70), (0.6, 56), (0.4, 72)):
            w, mask = pruned(eqsparse.SparseGPT(distribution=sparsity, block_size=4), known, model)
            assert mask.sum() == kept and not (mask & ~there).any() and (w[~mask] == 0).all()
        rows = eqsparse.Unstructured("row")
        w, mask = pruned(eqsparse.SparseGPT(distribution=0.55, structure=rows, block_size=4), known, model)
        np.testing.assert_array_equal(mask.sum(1), 9)  # 63, although eight of the inputs of a row have at most two
        w, mask = pruned(eqsparse.SparseGPT(distribution=0.4, structure=rows, block_size=4), known, model)
        np.testing.assert_array_equal(mask.sum(1), np.minimum(there.sum(1), 12))


MLP = eqx.nn.MLP(20, 5, 16, 2, key=KEY)


def test_owl_keeps_more_where_there_are_outliers():
    known = eqsparse.calibrate(MLP, [X])
    targets = eqsparse.OWL(0.7, multiple=3.0, statistics=known).targets(MLP)
    shares, sizes = [], []
    h = np.asarray(X, np.float64)
    for layer in MLP.layers:
        w = np.asarray(layer.weight, np.float64)
        scores = np.abs(w) * np.sqrt((h**2).sum(0))
        shares.append((scores > 3 * scores.mean()).mean())
        sizes.append(w.size)
        h = np.maximum(h @ w.T + np.asarray(layer.bias, np.float64), 0)
    shares, sizes = np.array(shares), np.array(sizes)
    ranked = (shares - shares.min()) / (shares.max() - shares.min())
    expected = 0.7 - 0.16 * (ranked - (ranked * sizes).sum() / sizes.sum())
    np.testing.assert_allclose(list(targets.values()), expected, rtol=1e-5)
    pruner = eqsparse.Wanda(distribution=eqsparse.OWL(0.7, {"layers.2.*": None}, multiple=3.0))
    model = pruner.prune(MLP, statistics=known)  # hands its statistics on
    kept = [int(m.sum()) for m in eqsparse.get_masks(model).values()]
    assert kept[2] == 80 and abs(sum(kept[:2]) - 0.3 * 576) <= 1 and kept[0] / 320 != kept[1] / 256
    for sparsity in (0.02, 0.9, 0.98, 1.0):  # where densities would leave the range from 0 to 1
        model = eqsparse.Wanda(distribution=eqsparse.OWL(sparsity, spread=0.2, multiple=2.0)).prune(
            MLP, statistics=known
        )
        kept = [int(m.sum()) for m in eqsparse.get_masks(model).values()]
        assert abs(sum(kept) - (1 - sparsity) * sizes.sum()) <= 2 and (min(kept) > 0) == (sparsity < 1)
    with pytest.raises(ValueError, match=r"`OWL\(statistics=...\)` must be what"):
        eqsparse.OWL(0.7).targets(MLP)


@pytest.mark.parametrize("pruner", [eqsparse.SparseGPT, eqsparse.Wanda])
def test_group_by_group_on_what_the_groups_before_have_left(pruner):
    groups = ["layers.0.*", ["layers.1.*", "layers.2.*"]]
    prune = pruner(distribution=eqsparse.ERK(0.5), structure=eqsparse.Unstructured("row"))
    model = eqsparse.prune_sequentially(prune, MLP, [X], groups)
    first = prune.prune(MLP, statistics=eqsparse.calibrate(MLP, [X], statistics="gram"))
    both = eqx.tree_at(lambda m: m.layers[0], eqsparse.sparsify(MLP), first.layers[0])
    second = prune.prune(both, statistics=eqsparse.calibrate(both, [X], statistics="gram"))
    for i, other in enumerate([first, second, second]):
        np.testing.assert_allclose(model.layers[i].weight, other.layers[i].weight, atol=1e-5)
    kept = sum(int(m.sum()) for m in eqsparse.get_masks(model).values())
    assert abs(kept - 328) <= 1
    message = lambda *args: error_of(lambda: eqsparse.prune_sequentially(*args))
    assert "Got `layers.1.weight` in 0." in message(prune, MLP, [X], ["layers.0.*", "layers.2.*"])
    assert "must be a list" in message(prune, MLP, iter([X]), groups)
    shared = pruner(distribution=eqsparse.Global(0.5), structure=eqsparse.Unstructured())
    assert "budgets of their own. Got Global" in message(shared, MLP, [X], groups)


def test_the_model_trains_on_with_its_masks(known):
    pruner = eqsparse.Wanda(optax.adam(1e-2), distribution=0.5)
    model, state = pruner.init(pruner.prune(LAYER, statistics=known))
    before = eqsparse.get_masks(model)
    grads = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    model, state = pruner.step(model, grads, state)
    np.testing.assert_array_equal(eqsparse.get_masks(model)["weight"], before["weight"])
    assert (np.asarray(model.weight)[~np.asarray(before["weight"])] == 0).all()


@pytest.mark.own_message
def test_errors_of_statistics_that_do_not_fit(known):
    message = error_of
    wanda = eqsparse.Wanda(distribution=0.5)
    found = message(lambda: wanda.prune(MLP, statistics=eqsparse.calibrate(MLP, [X], where="layers.0.*")))
    assert "`statistics` must have what flows into `layers.1.weight`: calibrate it" in found
    other = eqsparse.calibrate(eqx.nn.Linear(5, 7, key=KEY), [X[:, :5]])
    assert "Got inputs of shape (5,) for a weight of shape (7, 20)" in message(
        lambda: wanda.prune(LAYER, statistics=other)
    )
    for wrong in ({"statistics": {"weight": X}}, {}):
        assert "what `eqsparse.calibrate` returns" in message(lambda: wanda.prune(LAYER, **wrong))
    with pytest.raises(ValueError, match="N:M|NM"):
        eqsparse.SparseGPT(distribution=0.75, structure=eqsparse.NM(2, 4)).prune(LAYER, statistics=known)
    with pytest.raises(ValueError, match="must have a masked weight"):
        eqsparse.reconstruct(LAYER, LAYER, known)
    with pytest.raises(ValueError, match="must have a weight of shape"):
        eqsparse.reconstruct(wanda.prune(LAYER, statistics=known), MLP, known)
    for value in (-0.1, jnp.nan):
        assert "`SparseGPT(damping=...)` must be finite and not negative." in message(
            lambda value=value: eqsparse.SparseGPT(distribution=0.5, damping=value)
        )
    assert "`reconstruct(damping=...)` must be finite and not negative. Got -1." in message(
        lambda: eqsparse.reconstruct(wanda.prune(LAYER, statistics=known), LAYER, known, damping=-1.0)
    )
    assert (
        "`prune_sequentially(batches=...)` must be an iterable of batches: of one batch a list. Got NoneType"
        in message(lambda: eqsparse.prune_sequentially(wanda, LAYER, None, ["*"]))
    )
    assert "`prune_sequentially(groups=...)` must be a list of groups. Got '*': of one group a list." in message(
        lambda: eqsparse.prune_sequentially(wanda, LAYER, [X], "*")
    )
    assert damped(np.eye(2), 0.5)[0, 0] == 1.5


def test_groups_of_a_convolution_compete_by_what_their_removal_costs():
    """Depthwise: each group's Gram matrix is of its own size; of small inputs weights go first, of none at all before."""
    layer = eqx.nn.Conv1d(4, 4, 5, groups=4, use_bias=False, key=KEY)
    for scales, kept in (((10, 3, 1, 0.1), [5, 5, 0, 0]), ((0.1, 0, 0.01, 0.001), [5, 0, 5, 0])):
        x = jnp.asarray(rng.normal(size=(16, 4, 20)) * np.array(scales)[:, None], jnp.float32)
        statistics = eqsparse.calibrate(layer, [x], statistics="gram")
        for pruner in (eqsparse.SparseGPT, eqsparse.Wanda):
            _, mask = pruned(pruner(distribution=0.5, structure=eqsparse.Unstructured()), statistics, layer)
            assert mask.sum((1, 2)).tolist() == kept


@pytest.mark.parametrize("per", ["site", "row"])
def test_dead_inputs_that_lie_together_go_first(per):
    layer = eqx.nn.Linear(32, 6, use_bias=False, key=KEY)
    x = inputs(100, 32).at[:, 8:20].set(0)
    statistics = eqsparse.calibrate(layer, [x], statistics="gram")
    for sparsity, dead in ((0.5, 0), (0.25, 192 * 3 // 4 - 6 * 20)):
        pruner = eqsparse.SparseGPT(distribution=sparsity, structure=eqsparse.Unstructured(per), block_size=8)
        _, mask = pruned(pruner, statistics, layer)
        assert mask.sum() == 192 * (1 - sparsity) and mask[:, 8:20].sum() == dead


def test_what_is_masked_counts_for_nothing(known):
    """Whatever lies behind a mask: in the sums of rows and columns, and in the outputs to come near to."""
    there = jnp.asarray(rng.uniform(size=W.shape) < 0.7)
    clean = eqsparse.set_masks(eqsparse.sparsify([LAYER]), {"0.weight": there})[0]
    clean = eqx.tree_at(lambda m: m.layer.weight, clean, jnp.where(there, LAYER.weight, 0))
    other = eqx.tree_at(lambda m: m.layer.weight, clean, jnp.where(there, LAYER.weight, 100.0))
    masks = [pruned(eqsparse.RIA(distribution=0.6), known, model)[1] for model in (clean, other)]
    np.testing.assert_array_equal(*masks)
    half = eqsparse.Wanda(distribution=0.5).prune(LAYER, statistics=known)
    fitted = [eqsparse.reconstruct(half, dense, known).weight for dense in (clean, other)]
    np.testing.assert_array_equal(*fitted)
