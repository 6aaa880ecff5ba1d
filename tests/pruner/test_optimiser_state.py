"""The optimiser's state follows the masks: which part belongs to which weight, and what is not to be touched."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)


def counting(optim):
    """The optimiser, and a list that grows each time its update is traced."""
    traced = []

    def update(grads, state, params=None, **extra):
        traced.append(1)
        return optax.with_extra_args_support(optim).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optim.init, update), traced


def model_of(dtype=jnp.float32):
    return [eqx.nn.Linear(8, 8, dtype=dtype, key=KEY), eqx.nn.Linear(8, 4, dtype=dtype, key=jax.random.key(1))]


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), eqx.filter(tree, eqx.is_inexact_array)
    )


def behind(array, mask):
    return np.asarray(array, np.float32)[~np.asarray(mask)]


def of_parameter(state, name, shape):
    """Leaves of that shape at the places in the state that end like the parameter's path, `[0].layer.weight` say."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return [x for path, x in found if jax.tree_util.keystr(path).endswith(name) and np.shape(x) == shape]


IN_BFLOAT16 = {
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.01, weight_decay=0.1),
    "adafactor, factored": optax.adafactor(0.01, min_dim_size_to_factor=4),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.1),
    "accumulated": optax.MultiSteps(optax.adam(0.01), 3),
}


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_bfloat16(name):
    optim, traced = counting(IN_BFLOAT16[name])
    pruner = eqsparse.MagnitudePruning(
        optim, distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(1)
    )
    model, state = pruner.init(model_of(jnp.bfloat16))
    for step in range(3):
        model, state = pruner.step(model, random_like(model, step), state)
    for i, mask in enumerate(eqsparse.get_masks(model).values()):
        assert model[i].weight.dtype == jnp.bfloat16
        assert not behind(model[i].weight, mask).any()
        assert not any(behind(x, mask).any() for x in of_parameter(state.optim, f"[{i}].layer.weight", mask.shape))
    assert len(traced) == 1


@pytest.mark.parametrize(
    "optim", [optax.adafactor(0.01), optax.chain(optax.add_noise(0.1, 0.5, 0), optax.trace(0.9), optax.scale(-0.1))],
    ids=["adafactor, whole", "noise before momentum"],
)  # fmt: skip
def test_state_that_the_optimiser_itself_fills_behind_the_mask_is_zeroed_before_it_is_used(optim):
    """Rule 9: state is masked before the update. What a transform adds of its own within it (1e-30, noise) does not
    gather: it is gone before the next, and never reaches a weight."""
    pruner = eqsparse.MagnitudePruning(
        optim, distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(0)
    )
    model, state = pruner.init(model_of())
    sizes = []
    for step in range(40):
        model, state = pruner.step(model, random_like(model, step), state)
        for i, mask in enumerate(eqsparse.get_masks(model).values()):
            assert not behind(model[i].weight, mask).any()
            sizes += [
                np.abs(behind(x, mask)).max() for x in of_parameter(state.optim, f"[{i}].layer.weight", mask.shape)
            ]
    assert max(sizes) < 4  # noise of one step, standard deviation 0.7 at most; not of ten


def test_clipping_sees_the_pulled_back_gradient():
    """Dense gradients inflate the norm: the one that is clipped is that of kept weights and biases."""
    mask = np.zeros((4, 8), bool)
    mask[:, :2] = True
    model = [eqsparse.MaskedLinear.from_layer(eqx.nn.Linear(8, 4, key=KEY), mask)]
    pruner = eqsparse.NoPruning(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    model, state = pruner.init(model)
    g = random_like(model, 0)
    new, _ = pruner.step(model, g, state)
    gw, gb = np.where(mask, g[0].weight, 0), np.asarray(g[0].bias)
    scale = 1 / np.sqrt((gw**2).sum() + (gb**2).sum())
    np.testing.assert_allclose(new[0].weight, np.where(mask, model[0].weight - gw * scale, 0), atol=1e-6)
    np.testing.assert_allclose(new[0].bias, model[0].bias - gb * scale, atol=1e-6)


def test_layers_of_one_shape_do_not_take_each_others_masks():
    """State is matched by path and shape: two layers of the same shape, one within the other's name."""

    class Net(eqx.Module):
        layer: eqx.nn.Linear
        inner: list

    net = Net(eqx.nn.Linear(8, 8, key=KEY), [{"layer": eqx.nn.Linear(8, 8, key=jax.random.key(1))}])
    pruner = eqsparse.MagnitudePruning(
        optax.adam(0.1), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(0)
    )
    model, state = pruner.init(net)
    model, state = pruner.step(model, random_like(model, 0), state)
    masks = eqsparse.get_masks(model)
    assert not np.array_equal(masks["layer.weight"], masks["inner.0.layer.weight"])
    for moments in (state.optim[0].mu, state.optim[0].nu):
        np.testing.assert_array_equal(np.asarray(moments.layer.weight) != 0, masks["layer.weight"])
        np.testing.assert_array_equal(np.asarray(moments.inner[0]["layer"].weight) != 0, masks["inner.0.layer.weight"])


def test_a_module_named_like_a_part_of_the_optimisers_state():
    """A model may have fields called `mu` and `nu` (a variational autoencoder does), as Adam's state has."""

    class Variational(eqx.Module):
        layer: eqx.nn.Linear
        mu: dict

    net = Variational(eqx.nn.Linear(8, 8, key=KEY), {"layer": eqx.nn.Linear(8, 8, key=jax.random.key(1))})
    pruner = eqsparse.MagnitudePruning(
        optax.adam(0.1), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(1)
    )
    model, state = pruner.init(net)
    for step in range(3):
        model, state = pruner.step(model, random_like(model, step), state)
    masks = eqsparse.get_masks(model)
    for moments in (state.optim[0].mu, state.optim[0].nu):
        np.testing.assert_array_equal(np.asarray(moments.layer.weight) != 0, masks["layer.weight"])
        np.testing.assert_array_equal(np.asarray(moments.mu["layer"].weight) != 0, masks["mu.layer.weight"])
    # Moments of kept weights are those of a dense run: β₁ and β₂ averages over three steps.
    gs = [np.asarray(random_like(model, step).layer.weight) for step in range(3)]
    want = 0.1 * (0.81 * gs[0] + 0.9 * gs[1] + gs[2])
    kept = np.asarray(masks["layer.weight"])
    np.testing.assert_allclose(np.asarray(state.optim[0].mu.layer.weight)[kept], want[kept], rtol=1e-4)


@pytest.mark.parametrize("trained", ["layer", "mu"])
def test_a_module_named_like_a_part_of_the_state_of_a_wrapped_optimiser(trained):
    """As above where the wrapper leaves out the other half of the model."""

    class Variational(eqx.Module):
        layer: eqx.nn.Linear
        mu: dict

    net = Variational(eqx.nn.Linear(8, 8, key=KEY), {"layer": eqx.nn.Linear(8, 8, key=jax.random.key(1))})

    def only(params):
        off = jax.tree.map(lambda x: False, params)
        on = lambda part: jax.tree.map(lambda x: True, part)
        return eqx.tree_at(lambda m: getattr(m, trained), off, replace_fn=on)

    pruner = eqsparse.MagnitudePruning(
        optax.masked(optax.adam(0.1), only), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(1)
    )
    model, state = pruner.init(net)
    for step in range(3):
        model, state = pruner.step(model, random_like(model, step), state)
    path = {"layer": "layer.weight", "mu": "mu.layer.weight"}[trained]
    moment = getattr(state.optim.inner_state[0].mu, trained)
    moment = moment.weight if trained == "layer" else moment["layer"].weight
    np.testing.assert_array_equal(np.asarray(moment) != 0, eqsparse.get_masks(model)[path])


def test_stateful_parameters_of_equal_shape_are_left_alone():
    """A bias or a raw parameter of a site's shape is no site: its moments stay."""

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        table: jax.Array

    net = Net(eqx.nn.Linear(8, 8, key=KEY), jnp.ones((8, 8)))
    pruner = eqsparse.MagnitudePruning(
        optax.adam(0.1), distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(0)
    )
    model, state = pruner.init(net)
    g = random_like(model, 0)
    model, state = pruner.step(model, g, state)
    np.testing.assert_allclose(state.optim[0].mu.table, 0.1 * np.asarray(g.table), rtol=1e-5)
    np.testing.assert_allclose(state.optim[0].mu.linear.bias, 0.1 * np.asarray(g.linear.bias), rtol=1e-5)


def test_micro_steps_count():
    """`state.step` counts calls; with `MultiSteps` inside these are micro-steps."""
    optim = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    pruner = eqsparse.MagnitudePruning(
        optim, distribution=0.5, structure=eqsparse.NM(2, 4), schedule=eqsparse.OneShot(2)
    )
    model, state = pruner.init(model_of())
    biases = [np.asarray(model[0].bias)]
    g = random_like(model, 0)
    for _ in range(4):
        model, state = pruner.step(model, g, state)
        biases.append(np.asarray(model[0].bias))
        kept = int(eqsparse.get_masks(model)["0.weight"].sum())
        assert kept == (64 if int(state.step) <= 2 else 32)
    assert int(state.step) == 4
    for after, updates in ((1, 0), (2, 1), (3, 1), (4, 2)):
        np.testing.assert_allclose(biases[after], biases[0] - updates * np.asarray(g[0].bias), atol=1e-6)


def test_multi_steps_as_optax_makes_it():
    """`optax.MultiSteps(...)` has `init` and `update` and is no named tuple; Optax's own loops take it as it is."""
    pruner = eqsparse.MagnitudePruning(
        optax.MultiSteps(optax.sgd(1.0), 2), distribution=0.5, structure=eqsparse.NM(2, 4)
    )
    model, state = pruner.init(model_of())
    for _ in range(2):
        model, state = pruner.step(model, random_like(model, 0), state)
    np.testing.assert_allclose(model[0].bias, model_of()[0].bias - random_like(model, 0)[0].bias, atol=1e-6)


def test_nan_gradients_behind_the_mask_do_no_harm():
    """Pulled back by selection: a non-finite gradient of a dropped weight reaches neither weight nor state."""
    mask = np.random.default_rng(0).random((4, 8)) < 0.5
    model = [eqsparse.MaskedLinear.from_layer(eqx.nn.Linear(8, 4, key=KEY), mask)]
    pruner = eqsparse.NoPruning(optax.apply_if_finite(optax.adam(0.1), 3))
    model, state = pruner.init(model)
    g = random_like(model, 0)
    bad = eqx.tree_at(lambda m: m[0].weight, g, jnp.where(jnp.asarray(mask), g[0].weight, jnp.nan))
    with_nan, state_nan = pruner.step(model, bad, state)
    without, state_without = pruner.step(model, g, state)
    assert eqx.tree_equal(with_nan, without) and eqx.tree_equal(state_nan, state_without)


@pytest.mark.parametrize("optim", [optax.adam(0.1), optax.yogi(0.1)], ids=["adam", "yogi"])
def test_fisher_goes_by_the_gradient_while_the_second_moment_is_as_it_began(optim):
    """Yogi's begins at 1e-6, by which all weights would seem to matter alike."""
    pruner = eqsparse.FisherPruning(optim, distribution=0.5, schedule=eqsparse.OneShot(0))
    model, state = pruner.init(
        [eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(4, 1, key=KEY), jnp.array([[4.0, 3, 2, 1]]))]
    )
    grads = eqx.tree_at(
        lambda g: g[0].layer.weight, eqx.filter(model, eqx.is_inexact_array), jnp.array([[0.0, 0, 5, 9]])
    )
    model, _ = pruner.step(model, grads, state)
    assert np.asarray(eqsparse.get_masks(model)["0.weight"]).tolist() == [[False, False, True, True]]
