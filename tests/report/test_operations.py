"""Operations against those worked out by hand from the shapes."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse import get_masks, Masked, MaskedConv2d, MaskedLinear, report, set_masks, sparsify
from eqsparse._report.table import in_thousands

KEY = jax.random.key(0)


def counted(model, x, forward=None):
    found = report(model, x, forward=forward)
    return {row["path"]: (row["operations_dense"], row["operations_effective"]) for row in found.rows}, found.total


def half(shape):
    return jnp.arange(np.prod(shape)).reshape(shape) % 2 == 0


def mapped(model, x):
    return jax.vmap(model)(x)


@pytest.mark.parametrize("packed", [False, True])
def test_linear_alone_and_mapped(packed):
    model = MaskedLinear(8, 6, key=KEY, mask=half((6, 8)), packed=packed)
    shape = jax.ShapeDtypeStruct((8,), jnp.float32)
    assert counted(model, shape)[0] == {"weight": (2 * 48, 48)}
    assert counted(model, jnp.ones((2, 5, 8)), jax.jit(lambda m, x: jax.vmap(jax.vmap(m))(x)))[0] == (
        {"weight": (10 * 2 * 48, 10 * 48)}
    )
    closed_over = lambda model, _: jax.vmap(model)(jnp.asarray(np.ones((5, 8), np.float32)))
    assert counted(model, 0, closed_over)[0] == {"weight": (5 * 2 * 48, 5 * 48)}


def test_nothing_is_computed():
    """A batch of 64 TiB."""
    x = jax.ShapeDtypeStruct((2**40, 16), jnp.float32)
    assert counted(eqx.nn.Linear(16, 8, key=KEY), x, mapped)[0] == {"weight": (2**48, 2**48)}


def test_convolutions():
    conv = MaskedConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, key=KEY, mask=half((6, 2, 3, 2)))
    rows, columns = conv(jnp.ones((4, 9, 10))).shape[1:]
    dense = 2 * rows * columns * (6 * 2 * 3 * 2)
    assert counted(conv, jnp.ones((4, 9, 10)))[0] == {"weight": (dense, dense // 2)}
    assert counted(conv, jnp.ones((5, 4, 9, 10)), mapped)[0] == {"weight": (5 * dense, 5 * dense // 2)}
    up = eqx.nn.ConvTranspose1d(4, 6, 3, stride=2, key=KEY)
    # Each of the 10 inputs is multiplied by the kernel, and nothing by the gaps that are put between them.
    assert counted(up, jnp.ones((4, 10)))[0] == {"weight": (2 * 10 * 4 * 6 * 3,) * 2}


class Attention(eqx.Module):
    wq: jax.Array
    wk: jax.Array

    def __call__(self, x):
        return (x @ self.wq) @ (x @ self.wk).T


def test_modules_of_ones_own_and_products_of_no_site():
    model = Masked(Attention(jnp.ones((8, 4)), jnp.ones((8, 4))), "wq", mask=half((8, 4)))
    by_path, total = counted(model, jnp.ones((5, 8)))
    assert by_path == {"wq": (2 * 5 * 32, 5 * 32)}
    assert total["operations_other"] == 2 * 5 * 32 + 2 * 5 * 5 * 4  # `wk`, which is not masked, and the scores
    assert total["model_operations_dense"] == 2 * 2 * 5 * 32 + 200
    assert total["model_operations_effective"] == 3 * 5 * 32 + 200


def test_lookups_take_none_and_a_tied_table_counts_where_it_multiplies():
    class Tied(eqx.Module):
        table: eqx.nn.Embedding

        def __call__(self, token):
            return self.table.weight @ self.table(token)

    assert counted(sparsify(eqx.nn.Embedding(10, 4, key=KEY)), jnp.array(1))[0] == {"weight": (0, 0)}
    assert counted(sparsify(Tied(eqx.nn.Embedding(10, 4, key=KEY))), jnp.array(1))[0] == {"table.weight": (80, 80)}


def test_norms_of_weights():
    linear = MaskedLinear(8, 6, key=KEY, mask=half((6, 8)))
    by_path, total = counted(eqx.nn.WeightNorm(linear), jnp.ones(8))
    assert by_path == {"layer.weight": (96, 48)} and total["operations_other"] == 0


def test_scans_over_stacks_and_time():
    stack = eqx.filter_vmap(lambda key: MaskedLinear(8, 8, key=key, mask=half((8, 8))))(jax.random.split(KEY, 3))

    def through(model, x):
        arrays, static = eqx.partition(model, eqx.is_array)
        layer = jax.checkpoint(lambda x, arrays: jnp.tanh(eqx.combine(arrays, static)(x)))
        return jax.lax.scan(lambda x, arrays: (layer(x, arrays), None), x, arrays)[0]

    assert counted(stack, jnp.ones(8), through)[0] == {"weight": (3 * 128, 3 * 64)}

    cell = sparsify(eqx.nn.GRUCell(4, 5, key=KEY))
    over_time = lambda cell, xs: jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(5), xs)[0]
    assert counted(cell, jnp.ones((7, 4)), over_time)[0] == (
        {"weight_hh": (7 * 2 * 75,) * 2, "weight_ih": (7 * 2 * 60,) * 2}
    )


def test_branches_and_loops():
    layers = {"a": MaskedLinear(8, 8, key=KEY), "b": MaskedLinear(8, 8, key=KEY)}
    twice = lambda layers, x: layers["b"](layers["b"](x))
    branch = lambda layers, x: jax.lax.cond(x[0] > 0, lambda x: layers["a"](x), lambda x: twice(layers, x), x)
    assert counted(layers, jnp.ones(8), branch)[0] == {"a.weight": (0, 0), "b.weight": (256, 256)}
    loop = lambda layers, x: jax.lax.while_loop(lambda x: x[0] < 9, lambda x: layers["a"](x), x)
    assert counted(layers, jnp.ones(8), loop)[0] == {"a.weight": (128, 128), "b.weight": (0, 0)}
    fixed = lambda layers, x: jax.lax.fori_loop(0, 4, lambda i, x: layers["a"](x), x)
    assert counted(layers, jnp.ones(8), fixed)[0] == {"a.weight": (512, 512), "b.weight": (0, 0)}


def test_table_and_totals():
    model = sparsify(eqx.nn.MLP(64, 8, 256, 1, key=KEY))
    quarter = {path: jnp.arange(mask.size).reshape(mask.shape) % 4 == 0 for path, mask in get_masks(model).items()}
    model = set_masks(model, quarter)
    found = report(model, jnp.ones(64))
    assert found.total["operations_dense"] == 2 * (64 * 256 + 256 * 8) == 4 * found.total["operations_effective"]
    lines = str(found).splitlines()
    assert lines[0].split()[-2:] == ["operations", "effective"]
    assert lines[2].split()[-4:] == ["32.8", "K", "8.2", "K"]
    assert [line.split()[-4:] for line in (lines[-3], lines[-1])] == [["36.9", "K", "9.2", "K"]] * 2
    assert len({len(line) for line in lines}) == 1
    assert [in_thousands(n) for n in (0, 999, 1000, 999_950, 4_100_000_000)] == ["0", "999", "1.0 K", "1.0 M", "4.1 G"]
    assert "operations_dense" not in report(model).total


def test_magnitudes_of_what_is_kept(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.figure")
    weight = jnp.array([[0.25, 0.3, -0.49, 0.5, 0.7, 0.0, 8.0, 1e-30]])
    layer = MaskedLinear(8, 1, key=KEY, mask=jnp.array([[True] * 7 + [False]]))
    layer = eqx.tree_at(lambda layer: layer.layer.weight, layer, weight)
    figure = report(layer).plot_magnitudes(tmp_path / "magnitudes.png")
    (line,) = figure.axes[0].patches
    # Of six kept that are not zero: three from 1/4, two from 1/2, one from 8.
    np.testing.assert_allclose(line.get_data().edges, 2.0 ** np.arange(-2, 5))
    np.testing.assert_allclose(line.get_data().values * 6, [3, 2, 0, 0, 0, 1])
    assert (tmp_path / "magnitudes.png").stat().st_size > 1000
    axes = matplotlib.Figure().add_subplot()
    assert report(layer).plot_magnitudes(axes) is axes.figure
    made = report(layer)
    again = pickle.loads(pickle.dumps(made))  # without the weights
    assert again == made and len(pickle.dumps(again)) < 3000
    assert len(again.plot_magnitudes().axes[0].patches) == 1
    with pytest.raises(ValueError, match=r"`Report.plot_magnitudes\(target=...\)` must be a path, .*Got 3"):
        made.plot_magnitudes(3)
    with pytest.raises(ValueError, match="needs weights that are kept"):
        report(eqsparse.to_bcoo(layer)).plot_magnitudes()


def test_errors():
    model = MaskedLinear(8, 6, key=KEY)
    with pytest.raises(ValueError, match=r"`report\(x=...\)` must be left out for an exported model"):
        report(eqsparse.to_bcoo(model), jnp.ones(8))
    with pytest.raises(ValueError, match=r"`report\(forward=...\)` must say how a dict is called"):
        report({"kernel": jnp.ones((3, 4))}, jnp.ones(3))
    plain = report({"kernel": jnp.ones((3, 4))}, jnp.ones(3), forward=lambda params, x: x @ params["kernel"])
    assert plain.total["operations_dense"] == 24
