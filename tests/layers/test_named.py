"""`Masked`: named fields of any module."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import same_bits

import eqsparse


class Attention(eqx.Module):
    """A module of a user's own: raw arrays, a method, a property, static fields, an inner layer."""

    wq: jax.Array
    wk: jax.Array
    scale: jax.Array
    table: jax.Array
    inner: eqx.nn.Linear
    name: str = eqx.field(static=True)
    inference: bool

    def __init__(self, dtype=jnp.float32):
        rng = np.random.default_rng(0)
        self.wq, self.wk = (jnp.asarray(rng.normal(size=(4, 6)), dtype) for _ in range(2))
        self.scale = jnp.asarray(rng.normal(size=4), dtype)
        self.table = jnp.arange(8).reshape(2, 4)
        self.inner = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        self.name, self.inference = "attention", False

    def scores(self, x):
        return (self.wq @ x) * (self.wk @ x) * self.scale

    @property
    def norm(self):
        return jnp.sum(self.wq**2)

    @staticmethod
    def twice(x):
        return 2 * x

    def __call__(self, x, *, shift=0.0):
        return self.inner(self.scores(x)) + shift


def masks():
    rng = np.random.default_rng(5)
    return {"wq": rng.random((4, 6)) < 0.5, "wk": rng.random((4, 6)) < 0.5}


def by_hand(module, given):
    """The module with zeros written in, by NumPy."""
    zeroed = [jnp.asarray(np.where(given[n], np.asarray(getattr(module, n)), 0)) for n in ("wk", "wq")]
    return eqx.tree_at(lambda m: (m.wk, m.wq), module, tuple(zeroed))


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
def test_everything_runs_on_masked_weights(packed):
    module, given = Attention(), masks()
    layer, want = eqsparse.Masked(module, "wq", "wk", mask=given, packed=packed), by_hand(module, given)
    x = jnp.linspace(-1.0, 1.0, 6)
    assert same_bits(layer(x), want(x))
    assert same_bits(layer(x, shift=1.5), want(x, shift=1.5))
    assert same_bits(layer.scores(x), want.scores(x))  # no dense run by a back door
    assert same_bits(jax.vmap(layer.scores)(x[None]), jax.vmap(want.scores)(x[None]))
    assert same_bits(layer.norm, want.norm)
    assert same_bits(layer.twice(x), 2 * x)
    assert same_bits(layer.wq, module.wq)  # fields read through as stored
    assert layer.name == "attention" and layer.inference is False
    assert same_bits(layer.effective("wq"), want.wq)
    assert same_bits(layer.materialise(), want)
    assert type(layer.materialise()) is Attention
    assert sorted(layer.masks) == ["wk", "wq"]
    assert layer.masks["wq"].packed is packed


def test_full_by_default_and_some_masks_given():
    module = Attention()
    x = jnp.linspace(-1.0, 1.0, 6)
    assert same_bits(eqsparse.Masked(module, "wq", "wk")(x), module(x))
    one = eqsparse.Masked(module, "wq", "wk", mask={"wk": masks()["wk"]})
    assert one.masks["wq"].nnz() == 24
    assert one.masks["wk"].nnz() == masks()["wk"].sum()
    assert eqsparse.Masked(module, "wk", mask=masks()["wk"]).masks["wk"].nnz() == masks()["wk"].sum()


def test_any_rank():
    layer = eqsparse.Masked(Attention(), "scale", mask=np.asarray([True, False, True, False]), packed=True)
    np.testing.assert_array_equal(layer.effective("scale"), np.asarray(layer.scale) * [1, 0, 1, 0])


def test_gradient_is_dense_and_of_the_effective_weight():
    module, given = Attention(), masks()
    layer, x = eqsparse.Masked(module, "wq", "wk", mask=given), jnp.linspace(-1.0, 1.0, 6)
    loss = lambda m: jnp.sum(m(x) ** 2) + m.norm
    ours, theirs = eqx.filter_grad(loss)(layer), eqx.filter_grad(loss)(by_hand(module, given))
    for name in ("wq", "wk", "scale"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6)


def test_pickle_and_ensemble():
    layer = eqsparse.Masked(Attention(), "wq", "wk", mask=masks(), packed=True)
    x = jnp.linspace(-1.0, 1.0, 6)
    assert same_bits(pickle.loads(pickle.dumps(layer))(x), layer(x))
    make = lambda mask: eqsparse.Masked(Attention(), "wq", mask=mask, packed=True)
    given = np.random.default_rng(1).random((3, 4, 6)) < 0.5
    out = eqx.filter_vmap(lambda m: m(x))(eqx.filter_vmap(make)(given))
    for i in range(3):
        np.testing.assert_allclose(out[i], make(given[i])(x), rtol=1e-5, atol=1e-6)


def test_inference_mode_reaches_the_module():
    layer = eqsparse.Masked(Attention(), "wq")
    assert eqx.nn.inference_mode(layer).layer.inference is True
    assert eqx.nn.inference_mode([layer, eqx.nn.Dropout()])[1].inference is True


def test_core_rank_is_recorded_when_it_wraps():
    """Axes that come before it later are a stack."""
    stack = eqx.filter_vmap(lambda key: eqsparse.Masked(Attention(), "wq", "scale"))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert stack.wq.shape == (3, 4, 6)
    assert (stack.core_rank("wq"), stack.core_rank("scale")) == (2, 1)


def test_a_field_of_the_module_may_be_called_fields():
    """`sparsify` reads the masked names off the wrapper, not off what the wrapped module calls `fields`."""

    class Record(eqx.Module):
        w: jax.Array
        fields: tuple = eqx.field(static=True, default=("a", "b"))

    layer = eqsparse.Masked(Record(jnp.ones((4, 4))), "w")
    assert layer.fields == ("a", "b")
    assert same_bits(eqsparse.sparsify(layer), layer)
    model, _ = eqsparse.MagnitudePruning(distribution=0.5).init([layer])
    assert list(eqsparse.get_masks(model)) == ["0.w"]


@pytest.mark.own_message
@pytest.mark.parametrize("name", ["layer", "masks"])
def test_hidden_fields(name):
    Bad = type("Bad", (eqx.Module,), {"__annotations__": {"w": jax.Array, name: jax.Array}})
    with pytest.raises(ValueError, match=rf"Masked.*{name}.*Bad"):
        eqsparse.Masked(Bad(jnp.ones((2, 2)), jnp.ones((2, 2))), "w")


@pytest.mark.own_message
@pytest.mark.parametrize(
    "names, says",
    [
        (("table",), r"Attention\.table.*floating-point"),  # integers
        (("name",), r"Attention\.name.*floating-point.*str"),
        (("inner",), r"Attention\.inner.*floating-point.*Linear"),
        (("wv",), r"Attention\.wv.*floating-point.*wq.*wk"),
        (("norm",), r"Attention\.norm"),  # an array, but no field
        ((), "one field at least"),
        ((["wq"],), r"each a string. Got \(\['wq'\],\)"),
    ],
)
def test_wrong_fields(names, says):
    with pytest.raises(ValueError, match=says):
        eqsparse.Masked(Attention(), *names)


@pytest.mark.own_message
def test_wrong_modules_and_masks():
    with pytest.raises(ValueError, match=r"eqx\.Module.*dict"):
        eqsparse.Masked({"w": jnp.ones((2, 2))}, "w")
    with pytest.raises(ValueError, match="layer"):
        eqsparse.Masked(eqsparse.MaskedLinear(2, 2, key=jax.random.key(0)), "weight")
    with pytest.raises(ValueError, match="dict by field"):
        eqsparse.Masked(Attention(), "wq", "wk", mask=masks()["wq"])
    with pytest.raises(ValueError, match=r"wv"):
        eqsparse.Masked(Attention(), "wq", mask={"wv": masks()["wq"]})
    with pytest.raises(ValueError, match=r"wq.*\(4, 6\)"):
        eqsparse.Masked(Attention(), "wq", mask=np.ones((6, 4), bool))
