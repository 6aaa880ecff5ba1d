"""`SparseTraining` beside the masked form: the same masks, and losses but for rounding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (32, 12))
Y = jnp.sin(X @ jax.random.normal(jax.random.key(1), (12, 5)))
WINDOW = eqsparse.Periodic(2, 20, 3)
ADAM, SGD = optax.adam(0.01), optax.sgd(0.1, momentum=0.9)
MAKE = {
    "static": lambda o: eqsparse.StaticSparse(o, distribution=0.75, key=KEY),
    "set": lambda o: eqsparse.SET(o, distribution=0.75, schedule=WINDOW, key=KEY),
    "rigl": lambda o: eqsparse.RigL(o, distribution=eqsparse.ERK(0.75), schedule=WINDOW, key=KEY),
    "static growth": lambda o: eqsparse.DynamicSparse(
        o, drop=eqsparse.Magnitude(), grow=eqsparse.GradientMagnitude(), order=eqsparse.After(), distribution=0.75,
        schedule=WINDOW, key=KEY, where="layers.0.*", drop_fraction=optax.constant_schedule(0.5),
    ),
}  # fmt: skip


def loss(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def plain():
    return eqx.nn.MLP(12, 5, 24, 1, key=jax.random.key(2))


@pytest.mark.parametrize("name", MAKE)
def test_the_masks_and_losses_of_step(name):
    optim = SGD if name == "static growth" else ADAM
    pruner = MAKE[name](optim)
    training = eqsparse.SparseTraining(pruner)
    masked, masked_state = pruner.init(plain())
    compact, compact_state = training.init(plain())

    @eqx.filter_jit
    def both(masked, masked_state, compact, compact_state):
        value, grads = eqx.filter_value_and_grad(loss)(masked, X, Y)
        small_value, small = eqx.filter_value_and_grad(loss)(compact, X, Y)
        masked = pruner.step(masked, grads, masked_state)
        dense = lambda model: eqx.filter_grad(loss)(model, X, Y)
        return value, small_value, masked, training.step(compact, small, compact_state, dense=dense)

    moved = 0
    for _ in range(12):
        before = eqsparse.get_masks(masked)
        value, small_value, (masked, masked_state), (compact, compact_state) = both(
            masked, masked_state, compact, compact_state
        )
        np.testing.assert_allclose(small_value, value, rtol=1e-4)
        masks, ours = eqsparse.get_masks(masked), eqsparse.get_masks(training.masked(compact))
        for path, mask in ours.items():
            np.testing.assert_array_equal(mask, masks[path], err_msg=path)
            moved += int((mask != before[path]).sum())
    assert (moved > 0) == (name != "static")
    assert int(compact_state.step) == 12
    for path, layer in {f"layers.{i}": layer for i, layer in enumerate(training.masked(compact).layers)}.items():
        ours = np.asarray(layer.weight)
        np.testing.assert_allclose(ours, masked.layers[int(path[-1])].layer.weight, rtol=0, atol=2e-4)
    held = sum(x.size for x in jax.tree.leaves(compact_state.optim) if x.ndim)
    copies = {id(ADAM): 2, id(SGD): 1}[id(optim)]
    assert held == copies * sum(x.size for x in jax.tree.leaves(eqx.filter(compact, eqx.is_inexact_array)))


def test_a_pruned_model_goes_on():
    """With its own masks, also those of a structure; unpruned layers stay as they are."""
    pruned = eqsparse.MagnitudePruning(distribution=0.5, structure=eqsparse.NM(2, 4), where="layers.0.*").prune(plain())
    training = eqsparse.SparseTraining(eqsparse.NoPruning(ADAM))
    model, state = training.init(pruned)
    assert [type(layer).__name__ for layer in model.layers] == ["SparseLayer", "Linear"]
    first = loss(model, X, Y)
    for _ in range(20):
        model, state = training.step(model, eqx.filter_grad(loss)(model, X, Y), state)
    assert loss(model, X, Y) < 0.8 * first
    for path, mask in eqsparse.get_masks(training.masked(model)).items():
        np.testing.assert_array_equal(mask, eqsparse.get_masks(pruned)[path])
    assert eqsparse.nbytes(model) < eqsparse.nbytes(plain())


def test_no_dense_weight_in_a_compiled_step():
    """Nothing of a layer's size in the compiled text but what an update draws: no float array of it."""
    training = eqsparse.SparseTraining(eqsparse.SET(ADAM, distribution=0.9, schedule=WINDOW, key=KEY))
    wide = eqx.nn.MLP(12, 5, 37, 2, key=KEY)
    model, state = training.init(wide)
    arrays, rest = eqx.partition((model, state), eqx.is_array)

    def step(arrays, x, y):
        model, state = eqx.combine(arrays, rest)
        grads = eqx.filter_grad(loss)(model, x, y)
        return eqx.filter(training.step(model, grads, state), eqx.is_array)

    text = jax.jit(step).lower(arrays, X, Y).compile().as_text()
    assert "f32[37,37]" not in text and "f32[1369]" not in text
    assert "u32[37,37]" in text or "u32[1369]" in text  # lots, where masks are updated


@pytest.mark.parametrize("sparsity, kept", [(1.0, 0), (0.9, 29)])
def test_nothing_left_and_half_precision_with_unknown_gradients(sparsity, kept):
    """Counts stay exact; a layer without a value is one."""
    layer = eqx.nn.Linear(12, 24, dtype=jnp.bfloat16, key=KEY)
    pruner = eqsparse.RigL(ADAM, distribution=sparsity, schedule=eqsparse.Periodic(0, 9, 1), key=KEY)
    training = eqsparse.SparseTraining(pruner)
    model, state = training.init([layer])
    unknown = lambda tree: jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), eqx.filter(tree, eqx.is_inexact_array))
    for _ in range(2):
        model, state = training.step(model, unknown(model), state, dense=unknown)
    assert model[0].weight.values.dtype == jnp.bfloat16
    assert [int(mask.sum()) for mask in eqsparse.get_masks(training.masked(model)).values()] == [kept]


def test_what_cannot_be_trained_so():
    with pytest.raises(ValueError, match=r"`SparseTraining\(pruner=...\)` must be a pruner. Got 3"):
        eqsparse.SparseTraining(3)
    with pytest.raises(
        ValueError, match=r"must train the weights on its masks and no others, and not rewind. Got MagnitudeSTE"
    ):
        eqsparse.SparseTraining(eqsparse.MagnitudeSTE(distribution=0.5))
    with pytest.raises(ValueError, match=r"must keep its masks, or drop by `Magnitude` .* Got MagnitudePruning"):
        eqsparse.SparseTraining(eqsparse.MagnitudePruning(distribution=0.5))
    with pytest.raises(ValueError, match=r"must have the structure `Unstructured\(\)` where masks move. Got NM"):
        eqsparse.SparseTraining(eqsparse.SET(distribution=0.5, structure=eqsparse.NM(2, 4), key=KEY))
    training = eqsparse.SparseTraining(eqsparse.SET(distribution=eqsparse.Global(0.5), schedule=WINDOW, key=KEY))
    with pytest.raises(
        ValueError, match=r"must give each weight a number of its own .* Got one for \['layers.0.weight'"
    ):
        training.init(plain())
    moving = eqsparse.SparseTraining(eqsparse.SET(distribution=0.75, schedule=WINDOW, key=KEY))
    with pytest.raises(ValueError, match=r"must keep as many weights as .* move, 72 at `layers.0.weight`. Got 144"):
        moving.init(eqsparse.MagnitudePruning(distribution=0.5).prune(plain()))
    with pytest.raises(ValueError, match=r"must hold arrays, not tracers"):
        eqx.filter_eval_shape(moving.init, plain())
    with pytest.raises(ValueError, match=r"`SparseTraining.masked\(model=...\)` must come from `init`"):
        moving.masked(plain())
    training = eqsparse.SparseTraining(eqsparse.StaticSparse(ADAM, distribution=0.5, key=KEY))
    with pytest.raises(
        ValueError, match=r"must have its pruned weights in single `eqx.nn.Linear` layers; .* \['weight'\]"
    ):
        training.init(eqx.nn.Conv1d(3, 4, 3, key=KEY))
    model, state = training.init(plain())
    other, _ = training.init(eqx.nn.MLP(12, 5, 20, 1, key=KEY))
    with pytest.raises(ValueError, match="`state` must be that of `model`"):
        training.step(other, other, state)
    with pytest.raises(ValueError, match="`grads` must have one floating-point array"):
        training.step(model, other, state)
    rigl = eqsparse.SparseTraining(eqsparse.RigL(ADAM, distribution=0.5, schedule=WINDOW, key=KEY))
    model, state = rigl.init(plain())
    with pytest.raises(ValueError, match=r"`SparseTraining.step\(dense=...\)` must be a function .* RigL grows"):
        rigl.step(model, model, state)
