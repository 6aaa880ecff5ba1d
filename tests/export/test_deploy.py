"""`deploy`: a file that runs where there is no eqsparse."""

import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse

KEY = jax.random.key(0)
KERNEL = "cpu_csr_sparse_dense_ffi"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jax"


@pytest.fixture(scope="module")
def models():
    masked = eqsparse.sparsify(eqx.nn.MLP(8, 4, 64, 1, key=KEY))
    draw = np.random.default_rng(0).random
    masks = {path: draw(m.shape) < 0.1 for path, m in eqsparse.get_masks(masked).items()}
    masked = eqsparse.set_masks(masked, masks)
    return {"masked": masked, "exported": eqsparse.to_bcoo(masked)}


def read(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))


def custom_calls(exported):
    return set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))


def any_batch(*shape):
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {', '.join(map(str, shape))}"), jnp.float32)


@pytest.mark.parametrize("kind", ["masked", "exported"])
@pytest.mark.parametrize("portable", [False, True])
def test_same_outputs_for_one_size_and_for_any(path, models, kind, portable):
    run = jax.vmap(models[kind])
    for struct in (jax.ShapeDtypeStruct((5, 8), jnp.float32), any_batch(8)):
        eqsparse.deploy(path, run, struct, portable=portable)
        exported = read(path)
        for batch in (5,) if struct.shape[0] == 5 else (1, 5, 17):
            x = jax.random.normal(KEY, (batch, 8))
            np.testing.assert_allclose(exported.call(x), run(x), atol=1e-6)


def test_custom_calls_only_where_not_portable(path, models):
    """In this order too: what one has lowered does not serve the other."""
    run, x = jax.vmap(models["exported"]), jnp.ones((5, 8))
    for portable in (False, True, False):
        eqsparse.deploy(path, run, x, portable=portable)
        assert custom_calls(read(path)) == (set() if portable else {KERNEL})
        assert read(path).platforms == (("cpu", "cuda", "rocm", "tpu") if portable else (jax.default_backend(),))


def test_portable_in_small_pieces(path, monkeypatch):
    """A product of gathers never has the size of kept weights × batch."""
    mask = np.random.default_rng(0).random((96, 200)) < 0.3
    layer = eqsparse.to_bcoo(eqsparse.MaskedLinear(200, 96, mask=mask, key=KEY))
    x = jax.random.normal(KEY, (16, 200))
    monkeypatch.setattr("eqsparse._kernels.csr._CHUNK", 16 * 500)
    eqsparse.deploy(path, jax.vmap(layer), x, portable=True)
    assert "stablehlo.while" in read(path).mlir_module()
    np.testing.assert_allclose(read(path).call(x), jax.vmap(layer)(x), atol=1e-5)


RUNNER = """
import sys
for name in ("eqsparse", "equinox", "optax", "jaxtyping"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
import jax
import numpy as np
portable, fast, inputs = (Path(name).read_bytes() for name in sys.argv[1:4])
x = np.frombuffer(inputs, np.float32).reshape(-1, 8)
outputs = [jax.export.deserialize(bytearray(portable)).call(x)]
import jax.experimental.sparse
outputs.append(jax.export.deserialize(bytearray(fast)).call(x))
Path(sys.argv[4]).write_bytes(np.stack(outputs).tobytes())
"""


def test_fresh_process_without_eqsparse(models, tmp_path):
    run, x = jax.vmap(models["exported"]), np.array(jax.random.normal(KEY, (3, 8)))
    eqsparse.deploy(tmp_path / "portable", run, any_batch(8), portable=True)
    eqsparse.deploy(tmp_path / "fast", run, any_batch(8))
    (tmp_path / "x").write_bytes(x.tobytes())
    command = [sys.executable, "-c", RUNNER, "portable", "fast", "x", "y"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outputs = np.frombuffer((tmp_path / "y").read_bytes(), np.float32).reshape(2, 3, 4)
    np.testing.assert_allclose(outputs, np.stack([run(x)] * 2), atol=1e-6)


def test_the_file_is_as_large_as_the_arrays_and_some_code(path):
    mask = np.random.default_rng(0).random((512, 512)) < 0.1
    layer = eqsparse.to_bcoo(eqsparse.MaskedLinear(512, 512, mask=mask, key=KEY))
    for run in (layer, lambda x: layer(layer(x))):  # an array that is used twice is stored once
        eqsparse.deploy(path, run, jax.ShapeDtypeStruct((512,), jnp.float32))
        assert eqsparse.nbytes(layer) < path.stat().st_size < eqsparse.nbytes(layer) + 10_000


def test_sparse_weights_stay_sparse_when_the_file_is_compiled(path, planned):
    """XLA computes with constants when it compiles, and would write the zeros back in."""
    mask = np.random.default_rng(0).random((512, 512)) < 0.1
    masked = eqsparse.MaskedLinear(512, 512, mask=mask, packed=True, key=KEY)
    eqsparse.deploy(path, masked, jax.ShapeDtypeStruct((512,), jnp.float32))
    lowered = jax.jit(read(path).call).lower(jnp.ones(512))
    text = lowered.compile(compiler_options=planned).as_text()
    constants = re.findall(r"(\w+\[[\d,]*\])\S* constant\(\{\.\.\.\}\)", text)
    assert "u8[512,64]" in constants  # packed, as it is stored
    assert [c for c in constants if c.startswith(("pred[512", "u32[512"))] == []


def test_keys_trees_and_no_arrays(path):
    def run(x, more):
        noise = jax.random.normal(jax.random.key(3), x.shape)
        return {"sum": x + more["y"], "noise": (noise, None)}

    x, more = jnp.ones(3), {"y": jnp.arange(3.0)}
    eqsparse.deploy(path, run, x, more)
    assert jax.tree.structure(read(path).call(x, more)) == jax.tree.structure(run(x, more))
    for a, b in zip(jax.tree.leaves(read(path).call(x, more)), jax.tree.leaves(run(x, more)), strict=True):
        np.testing.assert_array_equal(a, b)
    key = jax.random.key(5)  # closed over
    eqsparse.deploy(path, lambda x: x + jax.random.normal(key, x.shape), x)
    np.testing.assert_allclose(read(path).call(x), x + jax.random.normal(key, (3,)), atol=1e-6)


def test_compiled_functions_inside_are_traced_anew(path, models):
    run, x = jax.jit(jax.vmap(models["exported"])), jnp.ones((5, 8))
    expected = run(x)  # compiled with the custom call
    eqsparse.deploy(path, run, x, portable=True)
    assert custom_calls(read(path)) == set()
    np.testing.assert_allclose(read(path).call(x), expected, atol=1e-6)


def test_other_custom_calls_are_refused_by_name(path):
    call = jax.ffi.ffi_call("somebody_elses", jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(ValueError, match="custom calls(.|\n)*somebody_elses"):
        eqsparse.deploy(path, lambda x: call(x), jnp.ones(3))
    assert not path.exists()


def test_the_old_file_stays_when_it_fails(path, models, monkeypatch):
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        eqsparse.deploy(path, models["masked"], jnp.ones(8))
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["model.jax"]


@pytest.mark.own_message
def test_bad_arguments(path, models, monkeypatch):
    with pytest.raises(ValueError, match=r"`deploy\(path=...\)` must be the path"):
        eqsparse.deploy(3, models["masked"], jnp.ones(8))
    with pytest.raises(ValueError, match=r"`deploy\(function=...\)` must be a model or function. Got int"):
        eqsparse.deploy(path, 3, jnp.ones(8))
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"eqsparse\[deploy\]"):
            eqsparse.deploy(path, models["masked"], jnp.ones(8))
    monkeypatch.setattr("eqsparse._export.deployment._LARGEST", 100)
    with pytest.raises(ValueError, match=r"less than 2 GiB. Got \d+ bytes"):
        eqsparse.deploy(path, models["masked"], jnp.ones(8))
