"""Criteria: scores against NumPy, lots against the laws of chance, and messages for what is missing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse import GradientMagnitude, Magnitude, Random, Saliency

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def draw(shape=(4, 5), dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def to64(array):
    return np.asarray(array).astype(np.float64)


# Scores of arrays.


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_is_the_absolute_value_in_its_own_precision(dtype):
    weight = draw(dtype=dtype).at[0].set(jnp.asarray([-jnp.inf, jnp.nan, -0.0, 0.0, -1.0], dtype))
    score = Magnitude().score(weight)
    assert score.dtype == dtype
    np.testing.assert_array_equal(to64(score), np.abs(to64(weight)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saliency_is_the_product_in_float32_at_least(dtype):
    """Products of 16-bit floats are exact in float32, so that they tie no more than they must."""
    weight, grads = draw(dtype=dtype), draw(dtype=dtype, seed=1)
    score = Saliency().score(weight, grads=grads)
    assert score.dtype == jnp.float32
    exact = np.abs(to64(weight) * to64(grads))
    np.testing.assert_allclose(to64(score), exact, rtol=1e-7 if dtype == jnp.float32 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_magnitude(dtype):
    weight, grads = draw(dtype=dtype), draw(dtype=dtype, seed=1)
    score = GradientMagnitude().score(weight, grads=grads)
    assert score.dtype == jnp.float32
    np.testing.assert_array_equal(to64(score), np.abs(to64(grads)))


def test_weights_and_gradients_of_different_dtypes():
    """Mixed precision: weights in bfloat16, gradients in float32."""
    weight, grads = draw(dtype=jnp.bfloat16), draw(seed=1)
    score = Saliency().score(weight, grads=grads)
    np.testing.assert_allclose(to64(score), np.abs(to64(weight) * to64(grads)), rtol=1e-7)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        weight, grads = draw(dtype=jnp.float64), draw(dtype=jnp.float64, seed=1)
        score = Saliency().score(weight, grads=grads)
        assert score.dtype == jnp.float64
        np.testing.assert_array_equal(np.asarray(score), np.abs(np.asarray(weight) * np.asarray(grads)))


def test_complex_weights_are_scored_by_their_absolute_value():
    weight = jnp.asarray([3 + 4j, -1j, 0], jnp.complex64)
    np.testing.assert_allclose(np.asarray(Magnitude().score(weight)), [5, 1, 0])


# Scores by path.


def test_scores_by_path_of_any_tree(getkey):
    a, b = draw(), draw((3, 2), seed=1)
    by_path = lambda tree: {path: to64(score) for path, score in Magnitude().scores(tree).items()}
    for tree, paths in (
        ({"a": a, "b": b}, ["a", "b"]),
        ({"x": {"a": a}, "b": b}, ["b", "x.a"]),
        ([a, (b,)], ["0", "1.0"]),
        (a, [""]),
    ):
        found = by_path(tree)
        assert sorted(found) == paths
        expected = {"a": a, "x.a": a, "0": a, "": a, "b": b, "1.0": b}
        for path in paths:
            np.testing.assert_array_equal(found[path], np.abs(to64(expected[path])))
    linear = eqx.nn.Linear(5, 4, key=getkey())
    for model in ([linear], eqsparse.sparsify([linear])):
        found = by_path(model)
        assert list(found) == ["0.weight"]
        np.testing.assert_array_equal(found["0.weight"], np.abs(to64(linear.weight)))


def test_gradients_of_a_masked_model(getkey):
    """As `eqx.filter_grad` gives them, `None`s and all."""
    model = eqsparse.sparsify([eqx.nn.Linear(5, 4, key=getkey())])
    grads = eqx.filter_grad(lambda m: jnp.sum(m[0](jnp.arange(5.0))))(model)
    found = Saliency().scores(model, grads=grads)
    expected = np.abs(to64(model[0].weight) * np.arange(5.0))
    np.testing.assert_allclose(to64(found["0.weight"]), expected, rtol=1e-6)
    found = GradientMagnitude().scores(model, grads=grads)
    np.testing.assert_allclose(to64(found["0.weight"]), np.broadcast_to(np.arange(5.0), (4, 5)), rtol=1e-6)


def test_integer_arrays_are_no_weights():
    """PREDECESSOR row 28: whether the dict is flat or nested."""
    table = jnp.arange(6).reshape(2, 3)
    assert set(Magnitude().scores({"a": {"w": draw(), "ids": table}})) == {"a.w"}
    assert set(Magnitude().scores({"w": draw(), "ids": table})) == {"w"}


def test_a_criterion_of_ones_own():
    """The example of the docstring, and an input that only the caller knows."""

    class Balance(eqsparse.AbstractCriterion):
        needs = ("grads", "curvature")
        power: float = 2.0

        def score(self, weight, *, grads, curvature):
            return jnp.abs(weight) ** self.power * jnp.abs(grads) * curvature

    a, g, h = {"x": draw()}, {"x": draw(seed=1)}, {"x": draw(seed=2)}
    found = Balance().scores(a, grads=g, curvature=h)["x"]
    np.testing.assert_allclose(to64(found), to64(a["x"]) ** 2 * np.abs(to64(g["x"])) * to64(h["x"]), rtol=1e-5)
    with pytest.raises(ValueError, match=r"`curvature` must be given: the criterion Balance needs"):
        Balance().scores(a, grads=g)


# Lots.


def lots(tree, seed=0):
    return {path: np.asarray(s) for path, s in Random().scores(tree, key=jax.random.key(seed)).items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_lots_have_32_bits_in_any_dtype(dtype):
    """PREDECESSOR row 3: a bfloat16 layer has only 128 distinct uniform scores there."""
    (score,) = lots({"w": jnp.zeros((256, 256), dtype)}).values()
    assert score.dtype == np.uint32
    assert len(np.unique(score)) >= score.size - 10  # of 2¹⁶ among 2³², half a pair is expected to collide
    ones = np.unpackbits(score.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(32 * score.size)


def test_lots_do_not_depend_on_the_dtype_or_the_other_sites():
    """The same path and key, the same lots: whichever other paths there are."""
    one = lots({"w": jnp.zeros((8, 8))})
    for tree in (
        {"w": jnp.ones((8, 8), jnp.bfloat16)},
        {"a": jnp.zeros((3, 3)), "w": jnp.zeros((8, 8)), "z": jnp.ones((2, 2))},
    ):
        np.testing.assert_array_equal(lots(tree)["w"], one["w"])
    np.testing.assert_array_equal(lots({"w": jnp.zeros((8, 8))})["w"], one["w"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.9, 0.999])
def test_random_masks_favour_no_index(dtype, sparsity):
    """PREDECESSOR row 3: at 99.9% only weights of the first rows are kept there."""
    tree = {"w": jnp.ones((64, 4096), dtype)}
    pruner = eqsparse.RandomPruning(distribution=sparsity, key=jax.random.key(1))
    kept = np.asarray(pruner.prune(tree)["w"]).astype(np.float32) != 0
    n = round(64 * 4096 * (1 - sparsity))
    assert kept.sum() == n
    for axis in (0, 1):  # mean place of the kept: within five standard errors of the middle
        length = kept.shape[axis]
        place = np.nonzero(kept)[axis].mean()
        assert abs(place - (length - 1) / 2) < 5 * length / np.sqrt(12 * n)


def correlation(a, b):
    return abs(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def test_sites_and_layers_of_a_stack_draw_their_own():
    """PREDECESSOR row 21: one hidden key there, and the same mask for all members of an ensemble."""
    found = lots({"layers.0.weight": jnp.zeros((64, 64)), "layers.1.weight": jnp.zeros((64, 64))})
    stack = lots({"w": jnp.zeros((3, 64, 64))})["w"]
    limit = 5 / 64  # five standard errors of 64² pairs
    assert correlation(*found.values()) < limit
    assert correlation(stack[0], stack[1]) < limit and correlation(stack[1], stack[2]) < limit
    assert correlation(lots({"w": jnp.zeros((64, 64))}, 0)["w"], lots({"w": jnp.zeros((64, 64))}, 1)["w"]) < limit


def test_each_step_draws_anew(getkey):
    """At 50% throughout, the masks of two updates from full ones share half of what they keep."""
    layer = eqx.nn.Linear(64, 64, key=getkey())
    pruner = eqsparse.RandomPruning(distribution=0.5, schedule=eqsparse.Periodic(0, 5, 1), key=getkey())
    masks = []
    full, state = pruner.init(layer)
    for _ in range(3):
        pruned, state = pruner.step(full, None, state)
        masks.append(np.asarray(pruned.masks["weight"].dense()))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert masks[a].sum() == 2048
        assert abs((masks[a] & masks[b]).sum() - 1024) < 5 * 16 * 2  # hypergeometric: σ = 16


def test_members_of_a_mapped_ensemble_draw_their_own():
    """PREDECESSOR row 21."""
    keys = jax.random.split(jax.random.key(0), 3)
    models = eqx.filter_vmap(lambda k: eqx.nn.Linear(64, 64, key=k))(keys)
    pruner = eqsparse.RandomPruning(distribution=0.5, schedule=eqsparse.OneShot(0), key=jax.random.key(1))
    masked, state = eqx.filter_vmap(pruner.init)(models)
    masked, _ = eqx.filter_vmap(lambda m, s: pruner.step(m, None, s))(masked, state)
    masks = np.asarray(eqx.filter_vmap(lambda m: m.masks["weight"].dense())(masked))
    assert masks.sum(axis=(1, 2)).tolist() == [2048] * 3
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs((masks[a] & masks[b]).sum() - 1024) < 5 * 16 * 2


@pytest.mark.parametrize("structure", [eqsparse.NM(2, 4), eqsparse.Block((4, 4)), eqsparse.Channel(0)])
def test_lots_in_every_structure(structure):
    """Random masks of any structure keep exactly their share, and are not always the first."""
    pruned = eqsparse.RandomPruning(distribution=0.5, structure=structure, key=jax.random.key(0)).prune(
        {"w": jnp.ones((32, 32), jnp.bfloat16)}
    )
    mask = np.asarray(pruned["w"]).astype(np.float32) != 0
    assert mask.sum() == 512
    first = np.asarray(structure.mask(jnp.ones((32, 32)), 0.5))
    assert 0.3 < (mask & first).sum() / 512 < 0.7


def test_random_pruning_over_all_sites_together():
    """Lots under a global budget: they are compared as they are, norms do not apply."""
    tree = {"a": jnp.ones((64, 64)), "b": jnp.ones((32, 32), jnp.bfloat16)}
    pruner = eqsparse.RandomPruning(distribution=eqsparse.Global(0.75), key=jax.random.key(0))
    kept = {name: int((np.asarray(w) != 0).sum()) for name, w in pruner.prune(tree).items()}
    assert sum(kept.values()) == 1280
    assert abs(kept["b"] - 256) < 5 * 13  # hypergeometric: σ = 12.4


# Messages.


@pytest.mark.own_message
@pytest.mark.parametrize(
    "criterion, missing", [(Saliency(), "grads"), (GradientMagnitude(), "grads"), (Random(), "key")]
)
def test_a_missing_input_is_named(criterion, missing):
    with pytest.raises(ValueError) as raised:
        criterion.scores({"w": draw()})
    name = type(criterion).__name__
    assert str(raised.value) == f"`{missing}` must be given: the criterion {name} needs ['{missing}']. Got None."


@pytest.mark.own_message
def test_gradients_must_fit_the_weights():
    with pytest.raises(ValueError, match=r"`grads` must have an array of shape \(4, 5\) at `w`\. Got shape \(5, 4\)\."):
        Saliency().scores({"w": draw()}, grads={"w": draw((5, 4))})
    with pytest.raises(ValueError, match=r"`grads` must have an array of shape \(4, 5\) at `w`\. Got None\."):
        Saliency().scores({"w": draw()}, grads={"v": draw()})


@pytest.mark.own_message
@pytest.mark.parametrize("make", [Magnitude, Saliency, GradientMagnitude])
def test_inputs_that_are_not_needed_are_ignored(make):
    found = make().scores({"w": draw()}, grads={"w": draw(seed=1)}, key=jax.random.key(0))
    assert set(found) == {"w"}


# Transforms.


@pytest.mark.parametrize("criterion", [Magnitude(), Random(), Saliency(), GradientMagnitude()])
def test_compiled_and_mapped(criterion):
    weight, grads = {"w": draw((3, 4, 5))}, {"w": draw((3, 4, 5), seed=1)}
    key = jax.random.key(0)
    score = lambda w, g: criterion.scores(w, grads=g, key=key)["w"]
    eager = score(weight, grads)
    np.testing.assert_array_equal(np.asarray(jax.jit(score)(weight, grads)), np.asarray(eager))
    mapped = jax.vmap(score)(weight, grads)
    assert mapped.shape == (3, 4, 5)
    if not isinstance(criterion, Random):  # lots depend on the shape and are shared by what is mapped
        np.testing.assert_array_equal(np.asarray(mapped), np.asarray(eager))


def test_lots_of_large_arrays_are_the_same_on_one_device_and_on_several(monkeypatch):
    """They are drawn by parts, in a loop or side by side."""
    for shape in ((300, 700), (3, 90, 40, 3, 3), (70_000,)):
        weights, key = {"w": jnp.zeros(shape)}, jax.random.key(3)
        one = np.asarray(Random().scores(weights, key=key)["w"])
        with monkeypatch.context() as patch:
            patch.setattr(jax, "device_count", lambda *_: 8)
            several = np.asarray(Random().scores(weights, key=key)["w"])
        np.testing.assert_array_equal(one, several)
        assert one.shape == shape and one.dtype == np.uint32
        assert np.unique(one).size > 0.999 * one.size  # no part draws what another does
        assert abs(one.mean() / 2**32 - 0.5) < 0.005
