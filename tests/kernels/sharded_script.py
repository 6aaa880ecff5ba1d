"""Runs on 8 virtual devices (started by `test_transforms.py`)."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import dataclasses  # noqa: E402
import sys  # noqa: E402

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from abstract_gpu import abstract_gpus  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P  # noqa: E402

import eqsparse  # noqa: E402
from eqsparse._kernels import operations_of_jax  # noqa: E402

OUT, IN, BATCH = 24, 40, 32


def main():
    assert jax.device_count() == 8 and eqsparse.kernels.available()
    assert not any(name.startswith("jax.experimental.pallas") for name in sys.modules)  # imported where it is used
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((OUT, IN)) < 0.3, rng.standard_normal((OUT, IN)), 0).astype(np.float32)
    layout = eqsparse.BCSRLayout.from_dense(weight, weight != 0)
    blocks = eqsparse.BlockLayout.from_dense(jnp.ones((OUT, IN)), jnp.tile(jnp.arange(IN) < 8, (OUT, 1)))
    x, y = (jnp.asarray(rng.standard_normal((BATCH, size)), jnp.float32) for size in (IN, OUT))

    def gradients(values, x, y):
        run = lambda values, x: jax.vmap(lambda x: dataclasses.replace(layout, values=values) @ x)(x)
        out, pull_back = jax.vjp(run, values, x)
        return out, *pull_back(y)

    expected = (x @ weight.T, (y.T @ x)[weight != 0], y @ weight)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            shards = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y)]
            mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P(), P("data")))  # fmt: skip
            for name, run in {"shard_map": mapped, "compiler": gradients}.items():
                lowered = jax.jit(run).lower(layout.values, *shards)
                assert lowered.as_text().count("custom_call @eqsparse_csr") == 3, name
                gathers = lowered.compile().as_text().count(" all-gather(")
                assert gathers == 0 or (name, kind) == ("compiler", AxisType.Auto), (name, kind, gathers)
                for found, wanted in zip(jax.jit(run)(layout.values, *shards), expected, strict=True):
                    np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
            check_convolution(mesh)
            check_specs(layout, kind, x, y)
            if kind == AxisType.Explicit:
                check_without_ours(mesh)
    check_pallas(blocks)


def check_specs(layout, kind, x, y):
    """Examples on two axes of a mesh, features on one."""
    dense = layout.to_dense()

    def gradients(values, x, y):
        out, pull_back = jax.vjp(lambda values, x: dataclasses.replace(layout, values=values).product(x), values, x)
        return out, *pull_back(y)

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    for spec in (P(("data", "model")), P("data", "model"), P(None, "model")):
        with jax.set_mesh(mesh):
            shards = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, y)]
            out, of_values, of_x = jax.jit(gradients)(layout.values, *shards)
        np.testing.assert_allclose(out, x @ dense.T, atol=1e-4)
        np.testing.assert_allclose(of_x, y @ dense, atol=1e-4)
        of_weight = dataclasses.replace(layout, values=np.asarray(of_values)).to_dense()
        np.testing.assert_allclose(of_weight, jnp.where(dense != 0, y.T @ x, 0), atol=1e-4)


def check_convolution(mesh):
    """Of images on several devices."""
    layer = eqx.nn.Conv2d(2, 6, 3, padding=1, key=jax.random.key(0))
    exported = eqsparse.export(eqsparse.MagnitudePruning(distribution=0.9).prune(layer), "bcsr")
    images = jax.random.normal(jax.random.key(1), (BATCH, 2, 5, 5))
    run = jax.jit(lambda weight, images: jax.vmap(eqx.tree_at(lambda m: m.weight, exported, weight))(images))
    found = run(exported.weight, jax.device_put(images, NamedSharding(mesh, P("data"))))
    np.testing.assert_allclose(found, jax.vmap(exported)(images), atol=1e-5)


def check_without_ours(mesh):
    """JAX's own operations: on explicit axes, which do not take all of them as they are."""
    mask = jnp.tile(jnp.arange(IN) % 8 < 4, (OUT, 1)) & (jnp.arange(OUT)[:, None] % 8 < 4)
    weight = jax.random.normal(jax.random.key(0), (OUT, IN))
    x, y = (jax.random.normal(jax.random.key(size), (BATCH, size)) for size in (IN, OUT))
    shards = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y)]
    for kind in (eqsparse.BitmaskLayout, eqsparse.BlockLayout):
        layout = kind.from_dense(jnp.where(mask, weight, 0), mask)

        def gradients(values, x, y, layout=layout):
            out, pull_back = jax.vjp(lambda values, x: dataclasses.replace(layout, values=values).product(x), values, x)
            return out, *pull_back(y)

        with operations_of_jax():
            out, of_values, of_x = jax.jit(gradients)(layout.values, *shards)
        np.testing.assert_allclose(out, x @ layout.to_dense().T, atol=1e-4)
        np.testing.assert_allclose(of_x, y @ layout.to_dense(), atol=1e-4)
        of_weight = dataclasses.replace(layout, values=of_values).to_dense()
        np.testing.assert_allclose(of_weight, jnp.where(mask, y.T @ x, 0), atol=1e-4)


def check_pallas(layout):
    """In `shard_map` the kernels compile for GPUs; JAX cannot interpret them there."""

    def gradients(values, x, y):
        out, pull_back = jax.vjp(lambda values, x: dataclasses.replace(layout, values=values).product(x), values, x)
        return out, *pull_back(y)

    mesh = abstract_gpus(("data", 8))
    run = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P(), P("data")))  # fmt: skip
    shaped = lambda size: jax.ShapeDtypeStruct((BATCH, size), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    with eqsparse.kernels.use_pallas():
        lowered = jax.jit(run).trace(layout.values, shaped(IN), shaped(OUT)).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 3


if __name__ == "__main__":
    main()
