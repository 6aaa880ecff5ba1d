"""Strict dtypes and ranks in all tests; warnings are errors (`pyproject.toml`)."""

import atexit
import gc
import os
import shutil
import tempfile
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import install_import_hook

# Compiling is most of the tests' time, and takes less than half of it with little optimisation. XLA reads this once,
# before its first work; flags from outside come last and win.
QUICK = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_llvm_disable_expensive_passes": "true",
}
HAS_EMITTERS = jax.__version_info__ < (0, 11)  # later ones know no other way, and refuse flags that they do not know
if HAS_EMITTERS:
    QUICK["xla_cpu_use_fusion_emitters"] = "false"
os.environ["XLA_FLAGS"] = " ".join(
    [*(f"--{flag}={value}" for flag, value in QUICK.items()), os.environ.get("XLA_FLAGS", "")]
)

# What one test has compiled serves all others that compile the same, in this process and in those it starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="eqsparse-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Lowering writes the calls that led to each operation into the program, which nothing here reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
jax.config.update("jax_traceback_in_locations_limit", int(os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"]))

# Tracing makes many small objects that live for long: Python looks through them less often.
gc.set_threshold(50_000, 20, 50)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# All but the tests of our own messages (marked `own_message`) also run with every annotation checked.
if os.environ.get("EQSPARSE_BEARTYPE"):
    install_import_hook("eqsparse", "beartype.beartype")


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def planned():
    """Options to compile with for tests of what the compiler plans (its text, its memory): as for users, whose
    optimised machine code changes nothing in it."""
    return {"xla_cpu_use_fusion_emitters": True} if HAS_EMITTERS else {}


@pytest.fixture(scope="session")
def optimised(planned):
    """Options to compile with as users do, to run on large arrays."""
    return planned | {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@pytest.fixture
def getkey():
    """A function that gives another key at each call."""
    state = [jax.random.key(0)]

    def next_key():
        state[0], key = jax.random.split(state[0])
        return key

    return next_key


@pytest.fixture
def mlp(getkey):
    return eqx.nn.MLP(8, 4, 32, 2, key=getkey())


@pytest.fixture
def batch(getkey):
    return jax.random.normal(getkey(), (16, 8)), jnp.arange(16) % 4


@pytest.fixture(autouse=True, scope="session")
def kernels():
    """Our own kernels, compiled where there is a compiler: tests may change where the cache is. Without, all goes on."""
    import eqsparse  # not before the hook above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eqsparse.kernels.available()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """Compiled functions of one file serve no other, and take gigabytes together."""
    yield
    jax.clear_caches()
