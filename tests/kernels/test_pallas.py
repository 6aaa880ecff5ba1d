"""The kernels in Pallas against NumPy, by interpretation; and that they compile to Triton's language for a GPU."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_gpu import abstract_gpu, abstract_gpus
from jax.sharding import NamedSharding, PartitionSpec as P

import eqsparse
from eqsparse._kernels import operations_of_jax
from eqsparse._kernels._pallas import block, switch

# JAX 0.11 announces that it will take its compiler to Triton away.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 1e-2, jnp.float16: 2e-3}


def make(rng, shape, sides, dtype=jnp.float32, stack=(), kept=0.4):
    """A layout of such blocks, its mask and its weight."""
    down, across = (-(-size // side) for size, side in zip(shape, sides, strict=True))
    mask = np.kron(rng.random((*stack, down, across)) < kept, np.ones(sides))[..., : shape[0], : shape[1]] > 0
    weight = jnp.where(mask, jnp.asarray(rng.standard_normal(mask.shape), dtype), jnp.zeros((), dtype))
    layout = eqsparse.BlockLayout.from_dense(weight, mask)
    assert layout.values.shape[-2:] == sides
    return layout, mask, weight


def products(layout, x, y):
    """The product, and the gradients of the values and of the other factor."""
    out, pull_back = jax.vjp(lambda values, x: dataclasses.replace(layout, values=values).product(x), layout.values, x)
    return out, *pull_back(y)


def check(layout, mask, weight, x, y, found):
    out, of_values, of_x = found
    w, x, y = (np.asarray(array, np.float64) for array in (weight, x, y))
    of_weight = dataclasses.replace(layout, values=of_values).to_dense()
    expected = (x @ w.mT, np.where(mask, y.mT @ x, 0), y @ w)
    for one, wanted in zip((out, of_weight, of_x), expected, strict=True):
        size = np.abs(wanted).max(initial=1.0)
        assert one.dtype == weight.dtype
        tolerance = TOLERANCE[weight.dtype.type] * size
        np.testing.assert_allclose(np.asarray(one, np.float64), wanted, atol=tolerance)


@pytest.mark.parametrize(
    "shape, sides, batch, dtype",
    [
        ((20, 300), (4, 8), 17, jnp.float32),  # smaller than a tile, and sticking out of it
        ((40, 70), (16, 32), 3, jnp.bfloat16),  # sticking out of the matrix
        ((310, 290), (150, 140), 130, jnp.float16),  # more than a tile in each direction
    ],
)
def test_as_numpy(shape, sides, batch, dtype):
    rng = np.random.default_rng(0)
    layout, mask, weight = make(rng, shape, sides, dtype)
    x, y = (jnp.asarray(rng.standard_normal((batch, size)), dtype) for size in reversed(shape))
    with eqsparse.kernels.use_pallas(interpret=True):
        found = jax.jit(products)(layout, x, y)
    check(layout, mask, weight, x, y, found)


def test_other_tiles():
    """Whatever a tuned tile is: smaller than a block in every direction, and not a part of it."""
    rng = np.random.default_rng(0)
    layout, mask, weight = make(rng, (100, 90), (40, 36))
    x, y = (jnp.asarray(rng.standard_normal((37, size)), jnp.float32) for size in (90, 100))
    places, tile = (layout.block_rows, layout.block_columns), block.Tile(16, 32, 16, 4, 2)
    with eqsparse.kernels.use_pallas(interpret=True):
        out = block.product(layout.values, *places, x, shape=layout.shape, tile=tile)
        of_x = block.transposed(layout.values, *places, y, shape=layout.shape, tile=tile)
        stored = layout.values.shape
        of_values = block.sampled(*places, y, x, shape=layout.shape, stored=stored, tile=tile)
    check(layout, mask, weight, x, y, (out, of_values, of_x))


def test_nested_vmap_is_one_call_without_masks():
    """And sides that tiles divide: nothing is masked."""
    rng = np.random.default_rng(0)
    layout, mask, weight = make(rng, (64, 32), (16, 32))
    x, y = (jnp.asarray(rng.standard_normal((4, 8, size)), jnp.float32) for size in (32, 64))

    def run(layout, x, y):
        apply = lambda values, x: jax.vmap(jax.vmap(lambda x: dataclasses.replace(layout, values=values) @ x))(x)
        out, pull_back = jax.vjp(apply, layout.values, x)
        return out, *pull_back(y)

    with eqsparse.kernels.use_pallas(interpret=True):
        jaxpr = str(jax.make_jaxpr(run)(layout, x, y))
        out, of_values, of_x = jax.jit(run)(layout, x, y)
    assert all(jaxpr.count(f"eqsparse_block{part}[") == 1 for part in ("", "_transposed", "_sampled"))
    flat = lambda array: array.reshape(32, -1)
    check(layout, mask, weight, flat(x), flat(y), (flat(out), of_values, flat(of_x)))


def test_stacks_hold_padding():
    """Slices with fewer blocks than others, one with none; as an ensemble."""
    rng = np.random.default_rng(0)
    share = np.array([0.0, 0.3, 0.7])[:, None, None]
    stack, mask, weight = make(rng, (24, 40), (8, 16), stack=(3,), kept=share)
    x, y = (jnp.asarray(rng.standard_normal((3, 5, size)), jnp.float32) for size in (40, 24))
    with eqsparse.kernels.use_pallas(interpret=True):
        found = eqx.filter_jit(eqx.filter_vmap(products))(stack, x, y)
    check(stack, mask, weight, x, y, found)


# When they run.


def lowered(function, *args, platform):
    with abstract_gpu():
        return jax.jit(lambda *args: function(*args)).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_compile_for_a_gpu_where_there_is_none(dtype):
    """As far as Triton's language, which refuses much that interpretation allows."""
    layout, _, _ = make(np.random.default_rng(0), (100, 300), (32, 64), dtype)
    args = layout, jnp.ones((50, 300), dtype), jnp.ones((50, 100), dtype)
    assert "triton" not in lowered(products, *args, platform="cuda")
    with eqsparse.kernels.use_pallas():
        assert lowered(products, *args, platform="cuda").count("custom_call @__gpu$xla.gpu.triton") == 3
        assert "triton" not in lowered(products, *args, platform="cpu")
        with operations_of_jax():  # for files that run elsewhere
            assert "triton" not in lowered(products, *args, platform="cuda")
    assert "triton" not in lowered(products, *args, platform="cuda")


def test_they_run_by_default_where_they_were_measured(monkeypatch):
    """In programs for one device, unless a user says otherwise."""
    layout, _, _ = make(np.random.default_rng(0), (100, 300), (32, 64))
    run = lambda layout, x: layout.product(x)
    x = jnp.ones((48, 300))
    assert "triton" not in lowered(run, layout, x, platform="cuda")
    monkeypatch.setattr(switch, "_is_measured", lambda: True)
    assert "triton" in lowered(run, layout, x, platform="cuda")
    assert "triton" not in lowered(run, layout, x, platform="cpu")
    with eqsparse.kernels.use_pallas(False):
        assert "triton" not in lowered(run, layout, x, platform="cuda")
    divided = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(abstract_gpus(("data", 8)), P("data")))
    assert "triton" not in lowered(run, layout, divided, platform="cuda")
    with eqsparse.kernels.use_pallas():
        assert "triton" in lowered(run, layout, divided, platform="cuda")


def test_what_they_do_not_take():
    """Other dtypes and empty arrays run as before."""
    layout, _, _ = make(np.random.default_rng(0), (20, 32), (4, 8))
    with eqsparse.kernels.use_pallas(), jax.enable_x64(True):
        double = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, layout)
        text = lowered(lambda layout, x: layout.product(x), double, jnp.ones((3, 32), jnp.float64), platform="cuda")
        assert "triton" not in text
    with eqsparse.kernels.use_pallas(interpret=True):
        assert layout.product(jnp.ones((0, 32))).shape == (0, 20)


def test_functions_compiled_before_are_compiled_anew():
    layout, _, _ = make(np.random.default_rng(0), (32, 32), (16, 16))
    traced = []

    @jax.jit
    def run(layout, x):
        traced.append(0)
        return layout.product(x)

    x = jnp.ones((2, 32))
    outside = run(layout, x)
    with eqsparse.kernels.use_pallas(interpret=True):
        within = run(layout, x)
    np.testing.assert_allclose(within, outside, atol=1e-5)
    run(layout, x)
    assert len(traced) == 2
