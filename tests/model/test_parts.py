"""Taking a masked model apart and putting it together: trainable and rest, masks out and in, bytes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)


@pytest.fixture
def masked():
    return eqsparse.sparsify(eqx.nn.MLP(5, 3, 4, 1, key=KEY), packed=True)


def test_partition_and_combine(masked):
    trainable, rest = eqsparse.partition(masked)
    assert [x.shape for x in jax.tree.leaves(trainable)] == [(4, 5), (4,), (3, 4), (3,)]
    assert not any(eqx.is_inexact_array(x) for x in jax.tree.leaves(rest))
    assert sum(eqx.is_array(x) for x in jax.tree.leaves(rest)) == 2  # the masks
    assert eqx.tree_equal(eqsparse.combine(trainable, rest), masked)
    assert eqx.tree_equal(eqsparse.partition(masked), eqx.partition(masked, eqx.is_inexact_array))


def test_partition_of_anything():
    tree = {"w": jnp.ones(2), "n": jnp.arange(2), "f": jax.nn.relu, "half": np.ones(2, np.float16)}
    trainable, rest = eqsparse.partition(tree)
    assert {k for k, v in trainable.items() if v is not None} == {"w", "half"}
    assert eqx.tree_equal(eqsparse.combine(trainable, rest), tree)


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_masks_out_and_in(packed):
    model = eqsparse.sparsify(eqx.nn.MLP(5, 3, 4, 1, key=KEY), packed=packed)
    rng = np.random.default_rng(0)
    given = {"layers.0.weight": rng.random((4, 5)) < 0.5, "layers.1.weight": jnp.asarray(rng.random((3, 4)) < 0.5)}
    changed = eqsparse.set_masks(model, given)
    found = eqsparse.get_masks(changed)
    assert list(found) == ["layers.0.weight", "layers.1.weight"]
    for path, mask in given.items():
        assert found[path].dtype == jnp.bool_
        np.testing.assert_array_equal(found[path], mask)
    for i in range(2):
        assert changed.layers[i].masks["weight"].packed is packed  # stored as the model's are
        assert changed.layers[i].weight is model.layers[i].weight  # weights stay as they are
    assert all(mask.all() for mask in eqsparse.get_masks(model).values())  # nothing in place
    one = eqsparse.set_masks(model, {"layers.1.weight": given["layers.1.weight"]})
    assert eqsparse.get_masks(one)["layers.0.weight"].all()
    assert eqx.tree_equal(eqsparse.set_masks(changed, found), changed)


def test_masks_of_one_model_are_set_in_another():
    a, b = (eqsparse.sparsify(eqx.nn.MLP(5, 3, 4, 1, key=key)) for key in jax.random.split(KEY))
    a = eqsparse.MagnitudePruning(distribution=0.5).prune(a)
    b = eqsparse.set_masks(b, eqsparse.get_masks(a))
    np.testing.assert_array_equal(b.layers[0].masks["weight"].dense(), a.layers[0].masks["weight"].dense())
    b = eqsparse.set_masks(b, {"layers.0.weight": a.layers[0].masks["weight"]})  # a `Mask` does too


def test_given_masks_are_copied(masked):
    mask = jnp.ones((4, 5), bool)
    plain = eqsparse.sparsify(eqx.nn.MLP(5, 3, 4, 1, key=KEY))
    eqx.filter_jit(lambda m: m, donate="all")(eqsparse.set_masks(plain, {"layers.0.weight": mask}))
    assert bool(mask.all())


def test_masks_got_outlive_the_model():
    """What `get_masks` gives is the caller's: donating the model does not delete it."""
    model = eqsparse.sparsify(eqx.nn.MLP(5, 3, 4, 1, key=KEY))
    found = eqsparse.get_masks(model)
    eqx.filter_jit(lambda m: m, donate="all")(model)
    assert bool(found["layers.0.weight"].all())


def test_sparsity_survives_an_optimiser_that_knows_nothing():
    """PREDECESSOR row 20: masks live in the optimiser's state; forget one line and training is dense."""
    model = eqsparse.MagnitudePruning(distribution=0.75).prune(eqx.nn.MLP(5, 3, 4, 1, key=KEY))
    masks = {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}
    optim = optax.adam(0.1)
    state = optim.init(eqx.filter(model, eqx.is_inexact_array))
    x = jnp.linspace(-1.0, 1.0, 5)
    for _ in range(3):
        g = eqx.filter_grad(lambda m: jnp.sum(m(x) ** 2))(model)
        with jax.numpy_dtype_promotion("standard"):  # which Optax's own arithmetic relies on
            updates, state = optim.update(g, state)
        model = eqx.apply_updates(model, updates)
    assert np.any(np.asarray(model.layers[0].weight)[~masks["layers.0.weight"]] != 0)  # stored weights have grown
    w = [np.where(masks[f"layers.{i}.weight"], model.layers[i].weight, 0) for i in range(2)]
    for i in range(2):
        np.testing.assert_array_equal(model.layers[i].effective("weight"), w[i])
        np.testing.assert_array_equal(eqsparse.materialise(model).layers[i].weight, w[i])
    h = np.maximum(w[0] @ np.asarray(x) + model.layers[0].bias, 0)
    np.testing.assert_allclose(model(x), w[1] @ h + model.layers[1].bias, rtol=1e-5)


def test_nbytes(masked):
    """Weights and biases of 4 bytes, masks of one bit, each row in whole bytes."""
    assert eqsparse.nbytes(masked) == 4 * (20 + 4 + 12 + 3) + 4 * 1 + 3 * 1
    assert eqsparse.nbytes(eqsparse.sparsify(eqsparse.materialise(masked))) == 4 * 39 + 20 + 12
    assert eqsparse.nbytes({"a": np.ones(3, np.int8), "b": [jnp.ones(2, jnp.bfloat16), None, "x", 1.0]}) == 7


@pytest.mark.own_message
@pytest.mark.parametrize(
    "masks, says",
    [
        ({"layers.0.wieght": np.ones((4, 5), bool)}, r"set_masks.*'layers\.0\.wieght'.*Nearest.*layers\.0\.weight"),
        ({"layers.0.bias": np.ones((4,), bool)}, r"set_masks.*layers\.0\.bias"),
        ({"layers.0.weight": np.ones((5, 4), bool)}, r"layers\.0\.weight.*\(4, 5\).*\(5, 4\)"),
        ({"layers.0.weight": np.ones((4, 5), np.float32)}, r"layers\.0\.weight.*boolean.*float32"),
        ({"layers.0.weight": np.ones((4, 5), np.uint8)}, r"layers\.0\.weight.*boolean.*uint8"),
        ({"layers.0.weight": np.ones((4, 1), np.uint8)}, r"layers\.0\.weight.*boolean.*uint8"),  # a packed one
        ({"layers.0.weight": None}, r"layers\.0\.weight.*boolean"),
    ],
)
def test_wrong_masks_in(masked, masks, says):
    with pytest.raises(ValueError, match=says):
        eqsparse.set_masks(masked, masks)


@pytest.mark.own_message
def test_a_plain_model_has_no_masks():
    plain = eqx.nn.MLP(5, 3, 4, 1, key=KEY)
    assert eqsparse.get_masks(plain) == {}
    with pytest.raises(ValueError, match="set_masks"):
        eqsparse.set_masks(plain, {"layers.0.weight": np.ones((4, 5), bool)})
