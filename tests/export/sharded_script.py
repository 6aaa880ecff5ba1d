"""Saves and loads on 8 virtual devices (started by `test_save.py`)."""

import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding  # noqa: E402

import eqsparse  # noqa: E402


def same_places(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim) and a.committed == b.committed, (a.sharding, b.sharding)
        data = jax.random.key_data if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else lambda x: x
        np.testing.assert_array_equal(np.asarray(data(a)), np.asarray(data(b)))
        for shard in a.addressable_shards if data(a) is a else ():
            np.testing.assert_array_equal(shard.data, np.asarray(a)[shard.index])


def main(path):
    assert jax.device_count() == 8
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
        put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
        mask = np.random.default_rng(0).random((8, 16)) < 0.5
        layer = eqsparse.MaskedLinear(16, 8, mask=mask, key=jax.random.key(0))
        spread = jax.tree.map(lambda x: put(x, *("a", "b")[: x.ndim]), layer)
        tree = {
            "layer": spread,
            "keys": put(jax.random.split(jax.random.key(1), 8), "b"),
            "there": jax.device_put(jnp.arange(3), jax.devices()[5]),
            "anywhere": jnp.arange(4.0),
            "half": put(jnp.ones((8, 3), jnp.bfloat16), ("a", "b")),
        }
        eqsparse.save(path, tree)
        same_places(eqsparse.load(path, tree), tree)
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        loaded = eqsparse.load(path, structs)
        same_places(loaded, {**tree, "anywhere": jax.device_put(tree["anywhere"], tree["anywhere"].sharding)})
        eqx.filter_jit(lambda x: jax.tree.map(lambda a: a * 2 if eqx.is_inexact_array(a) else a, x), donate="all")(
            {"layer": loaded["layer"]}
        )
        assert loaded["layer"].weight.is_deleted()
        same_places(eqsparse.load(path, {**tree, "layer": loaded["layer"]}), tree)  # only where it was is read

        elsewhere = {**tree, "layer": jax.tree.map(lambda x: put(x), layer)}
        same_places(eqsparse.load(path, elsewhere), elsewhere)
        nowhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        for leaf in jax.tree.leaves(eqsparse.load(path, nowhere)):
            assert leaf.sharding == SingleDeviceSharding(jax.devices()[0]) and not leaf.committed
        with jax.set_mesh(mesh):
            traced = eqx.filter_eval_shape(lambda: {"x": spread.weight * 2})
            eqsparse.save(path, {"x": spread.weight})
        assert not eqsparse.load(path, traced)["x"].committed  # a mesh without devices, or none

        exported = eqsparse.to_bcoo({"layer": spread, "other": spread.bias})
        eqsparse.save(path, exported)
        loaded = eqsparse.load(path, {"layer": spread, "other": spread.bias})
        assert loaded["other"].sharding == spread.bias.sharding and not loaded["layer"].layer.weight.values.committed
        run = jax.jit(lambda layer, x: jax.vmap(layer)(x))
        x = put(np.ones((8, 16), np.float32), "a") if kind is AxisType.Auto else jnp.ones((8, 16))
        plain = eqx.tree_at(lambda m: m.layer.layer.bias, loaded["layer"], jnp.asarray(np.asarray(layer.bias)))
        np.testing.assert_allclose(run(plain, x), jax.vmap(layer)(jnp.ones((8, 16))), rtol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1])
