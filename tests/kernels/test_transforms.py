"""What JAX does with products on our own kernels: the kernel is in the text, and the numbers are those of dense."""

import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._export._layout import LAYOUTS

HERE = Path(__file__).parent
OUT, IN = 12, 16
CALLS = {"bcsr": "csr", "bitmask": "bitmask", "fixed_fanin": "fan_in", "nm": "nm", "block": "block"}


@pytest.fixture(autouse=True)
def need_kernels(kernels):
    if not kernels:
        pytest.skip("there are no kernels")


def make(name, key, stack=()):
    """A layout whose mask all of them hold, and its weight."""
    scores = jax.random.uniform(key, (*stack, OUT // 2, IN // 4))
    mask = jnp.repeat(jnp.repeat(eqsparse.NM(1, 2).mask(scores, 0.5), 2, -2), 4, -1)
    weight = jnp.where(mask, jax.random.normal(key, mask.shape), 0)
    return LAYOUTS[name].from_dense(weight, mask), weight


def custom_calls(function, *args):
    text = jax.jit(function).lower(*args).as_text()
    return [part.split("(")[0] for part in text.split("custom_call @eqsparse_")[1:]]


@pytest.mark.parametrize("name", CALLS)
def test_nested_vmap_is_one_call_and_gradients_two(getkey, name):
    layout, weight = make(name, getkey())
    x = jax.random.normal(getkey(), (3, 2, IN))

    def loss(apply, layout, x):
        return jnp.sum(jnp.sin(jax.vmap(jax.vmap(lambda x: apply(layout, x)))(x)))

    sparse = lambda layout, x: loss(lambda layout, x: layout @ x, layout, x)
    dense = lambda weight, x: loss(lambda weight, x: weight @ x, weight, x)
    forward = [] if name == "fixed_fanin" else [CALLS[name]]  # XLA's is as fast
    assert custom_calls(sparse, layout, x) == forward
    gradients = lambda layout, x: jax.grad(sparse, (0, 1), allow_int=True)(layout, x)
    assert sorted(custom_calls(gradients, layout, x)) == forward + [
        CALLS[name] + part for part in ("_sampled", "_transposed")
    ]
    np.testing.assert_allclose(sparse(layout, x), dense(weight, x), rtol=1e-5)
    of_layout, of_x = jax.jit(gradients)(layout, x)
    of_weight, expected_of_x = jax.grad(dense, (0, 1))(weight, x)
    np.testing.assert_allclose(of_x, expected_of_x, atol=1e-5)
    samples = eqx.tree_at(lambda layout: layout.values, layout, of_layout.values).to_dense()
    np.testing.assert_allclose(samples, jnp.where(weight != 0, of_weight, 0), atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_scan_over_a_stack_and_an_ensemble(getkey, name):
    stack, weights = make(name, getkey(), (3,))
    x = jax.random.normal(getkey(), (5, IN))
    widen = lambda y: jnp.pad(y, ((0, 0), (0, IN - OUT)))
    step = lambda x, layout: (widen(jax.vmap(lambda x: layout @ x)(x)), None)
    dense_step = lambda x, weight: (widen(x @ weight.T), None)
    found, expected = jax.lax.scan(step, x, stack)[0], jax.lax.scan(dense_step, x, weights)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    ensemble = eqx.filter_vmap(lambda layout: jax.vmap(lambda x: layout @ x)(x))
    np.testing.assert_allclose(eqx.filter_jit(ensemble)(stack), x @ weights.mT, atol=1e-5)


def test_forward_mode_and_hessian(getkey):
    layout, weight = make("bcsr", getkey())
    x, v = jax.random.normal(getkey(), (2, 4, IN))
    run = lambda x: jnp.sum(jnp.tanh(jax.vmap(lambda x: layout @ x)(x)))
    dense = lambda x: jnp.sum(jnp.tanh(x @ weight.T))
    found, expected = (jax.jvp(jax.grad(f), (x,), (v,)) for f in (run, dense))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_other_dtypes_are_for_jax(getkey):
    layout, _ = make("bcsr", getkey())
    half = jax.tree.map(lambda a: a.astype(jnp.float16) if a.dtype == jnp.float32 else a, layout)
    assert custom_calls(lambda layout, x: layout @ x, half, jnp.ones(IN, jnp.float16)) == []


@pytest.mark.parametrize("name", CALLS)
def test_deployed_files_hold_none_of_them(getkey, name, tmp_path):
    """They run where there is no eqsparse."""
    layout = make(name, getkey())[0]
    x = jax.random.normal(getkey(), (5, IN))
    run = jax.vmap(lambda x: layout @ x)
    found = run(x)  # compiled with ours before
    for portable in (False, True):
        eqsparse.deploy(tmp_path / "file", run, x, portable=portable)
        exported = jax.export.deserialize(bytearray((tmp_path / "file").read_bytes()))
        assert "custom_call @eqsparse" not in exported.mlir_module()
        np.testing.assert_allclose(exported.call(x), found, atol=1e-5)
    assert len(custom_calls(run, x)) == (name != "fixed_fanin")  # and ours again after


def test_on_eight_devices():
    """A batch that is sharded: over a mesh axis in `jax.shard_map`, and by the compiler."""
    done = subprocess.run(
        [sys.executable, str(HERE / "sharded_script.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
