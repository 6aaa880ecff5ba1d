"""What each weight alone adds to the loss, and budgets made of it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import eqsparse

KEY = jax.random.key(0)
MODEL = eqx.nn.MLP(6, 3, 8, 1, key=KEY)
X = jax.random.normal(KEY, (16, 6))
Y = jax.vmap(MODEL)(X)


def loss(model):
    return ((jax.vmap(model)(X) - Y) ** 2).mean()


@functools.cache
def found(**settings):
    return eqsparse.sensitivity(MODEL, loss, (0.75, 0.5), **settings)


def test_each_loss_is_that_of_one_weight_pruned_alone():
    table = found(batch_size=2)
    assert table.paths == ("layers.0.weight", "layers.1.weight") and table.sparsities == (0.5, 0.75)
    assert table.sizes == (48, 24) and table.dense < 1e-10
    for i, path in enumerate(table.paths):
        for j, level in enumerate(table.sparsities):
            alone = eqsparse.MagnitudePruning(distribution=eqsparse.PerPath({path: level})).prune(MODEL)
            np.testing.assert_allclose(table.losses[i, j], loss(alone), rtol=1e-5)
    assert "layers.1.weight" in str(table) and "75.00%" in str(table)


def test_where_and_another_pruner():
    random = lambda distribution: eqsparse.RandomPruning(distribution=distribution, key=KEY)
    table = found(where="layers.1.*", prune=random)
    alone = eqsparse.RandomPruning(distribution=eqsparse.PerPath({"layers.1.*": 0.5}), key=KEY).prune(MODEL)
    assert table.losses.shape == (1, 2)
    np.testing.assert_allclose(table.losses[0, 0], loss(alone), rtol=1e-5)


def test_the_budget_goes_where_it_hurts_least():
    """By hand: `a` is cheap up to 0.5 and then dear, `b` costs the same for each weight."""
    losses = np.array([[1.0, 1.0, 31.0], [11.0, 14.0, 17.0]])
    table = eqsparse.Sensitivity(("a", "b"), (100, 100), (0.25, 0.5, 0.75), 1.0, losses)
    levels = lambda total: [float(f"{float(v):.4f}") for v in table.distribution(total).sparsities.values]
    assert levels(0.25) == [0.5, 0.0]
    # `b` as a whole: 16 for 75 weights is less for each than 30 for 25 more of `a`.
    assert levels(0.5) == [0.5, 0.5]
    assert levels(0.625) == [0.5, 0.75] and levels(0.7) == [0.65, 0.75] and levels(0.75) == [0.75, 0.75]
    with pytest.raises(ValueError, match="at most the largest that was tried, 0.75. Got 0.8"):
        table.distribution(0.8)
    pruned = eqsparse.MagnitudePruning(distribution=found(batch_size=2).distribution(0.6)).prune(MODEL)
    assert abs(sum(int(m.sum()) for m in eqsparse.get_masks(pruned).values()) - 0.4 * 72) <= 1


def test_a_heat_map(tmp_path):
    assert (
        isinstance(found(batch_size=2).plot(tmp_path / "map.png"), Figure)
        and (tmp_path / "map.png").stat().st_size > 1000
    )
    axes = Figure().add_subplot()
    assert found(batch_size=2).plot(axes) is axes.figure
    with pytest.raises(ValueError, match="must be a path"):
        found(batch_size=2).plot(3)


def test_errors():
    with pytest.raises(ValueError, match=r"`sensitivity\(sparsities=...\)` must hold one at least"):
        eqsparse.sensitivity(MODEL, loss, ())
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        eqsparse.sensitivity(MODEL, loss, (1.5,))
    with pytest.raises(ValueError, match=r"`sensitivity\(loss=...\)` must return one number. Got shape \(2,\)."):
        eqsparse.sensitivity(MODEL, lambda model: jnp.ones(2), 0.5)
    with pytest.raises(
        TypeError, match=r"`sensitivity\(loss=...\)` must return what JAX computes of the model. Got 0.5."
    ):
        eqsparse.sensitivity(MODEL, lambda model: 0.5, 0.5)
    with pytest.raises(ValueError, match="Nearest"):
        found(where="nothing")
    assert jnp.isfinite(found(batch_size=2).losses).all()


def test_a_budget_at_the_largest_level():
    assert all(float(v) == 0.75 for v in found(batch_size=2).distribution(0.75 + 1e-7).sparsities.values)


def test_a_pruner_that_goes_by_statistics():
    statistics = eqsparse.calibrate(MODEL, [X])
    wanda = lambda distribution: eqsparse.Wanda(distribution=distribution)
    table = eqsparse.sensitivity(MODEL, loss, 0.5, where="layers.1.*", prune=wanda, statistics=statistics)
    alone = wanda(eqsparse.PerPath({"layers.1.*": 0.5})).prune(MODEL, statistics=statistics)
    np.testing.assert_allclose(table.losses[0, 0], loss(alone), rtol=1e-5)


def test_errors_of_pruners_and_losses():
    runs = lambda distribution: eqsparse.MagnitudePruning(distribution=distribution, structure=eqsparse.NM(2, 4))
    with pytest.raises(ValueError, match="0.75"):
        eqsparse.sensitivity(MODEL, loss, (0.5, 0.75), where="layers.1.*", prune=runs)
    with pytest.raises(ValueError, match=r"`sensitivity\(prune=...\)` must be a function of a distribution"):
        eqsparse.sensitivity(MODEL, loss, 0.5, prune=lambda distribution: distribution)
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        eqsparse.sensitivity(MODEL, lambda model: float(loss(model)), 0.5)
    assert any("no `float()` or NumPy in it" in note for note in caught.value.__notes__)
