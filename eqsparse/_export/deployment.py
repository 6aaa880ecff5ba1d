"""A compiled form of a model that runs where eqsparse is not installed."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
from jax import export
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .._kernels import CUSTOM_CALLS, operations_of_jax, plain_operations
from .._model import nbytes
from ._file import checked_path, replacing

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_LARGEST = 2**31 - 2**20  # bytes: what a flatbuffer's signed offsets reach, less the code


def deploy(path: str | os.PathLike[str], function: Callable[..., Any], *args: Any, portable: bool = False) -> None:
    """Writes a function with all its arrays to a file that JAX runs without eqsparse or Equinox.

    ```python
    eqsparse.deploy("digits.jax", jax.vmap(sparse_model), jax.ShapeDtypeStruct((128, 64), jnp.float32))
    ```

    In the other process, which needs `jax` and `flatbuffers`:

    ```python
    model = jax.export.deserialize(bytearray(Path("digits.jax").read_bytes()))
    model.call(x)
    ```

    The arrays that the function closes over (those of the model) are stored once each, as they are. When the
    file is compiled they stay so: a sparse weight is not expanded.

    **Arguments:**

    - `path`: The file, written as a whole or not at all.
    - `function`: What to run: a model, `jax.vmap(model)`, or any function of arrays.
    - `args`: Arrays, or PyTrees of arrays, of the shapes and dtypes that the function will be called with;
        `jax.ShapeDtypeStruct`s serve as well. With `jax.export.symbolic_shape("batch, 64")` as its shape, the
        file takes batches of any size.
    - `portable`: Write for CPUs, GPUs and TPUs alike, with operations that all of them have. Otherwise for
        the platform JAX runs on now, with its sparse kernels: faster, but JAX does not promise that other
        versions of it have the same ones, and the process that runs the file must
        `import jax.experimental.sparse`, which registers them.

    **Raises:** `ValueError` if the arrays take 2 GiB or more, or the function needs a custom call of another
    library; `ImportError` without `flatbuffers`.
    """
    target = checked_path(path, "deploy(path=...)")
    if not callable(function):
        raise ValueError(f"`deploy(function=...)` must be a model or function. Got {type(function).__name__}.")
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError('`deploy` needs flatbuffers: pip install "eqsparse[deploy]"')
    with plain_operations() if portable else operations_of_jax():
        exported = _export(function, args, _PLATFORMS if portable else None, () if portable else CUSTOM_CALLS)
    data = exported.serialize()
    with replacing(target) as file:
        file.write(data)


def _export(function: Callable, args: tuple, platforms: Any, custom_calls: tuple[str, ...]) -> export.Exported:
    # A function of its own: those that are compiled already would not be traced anew.
    traced, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    if nbytes(traced.consts) > _LARGEST:
        raise ValueError(
            f"`deploy(function=...)` must hold arrays of less than 2 GiB. Got {nbytes(traced.consts)} bytes."
        )
    structure = jax.tree.structure(shapes)

    def run(*args: Any) -> Any:
        # Past this barrier XLA does not compute with them when it compiles: it would write zeros back in.
        arrays = list(jax.lax.optimization_barrier(tuple(traced.consts)))
        outputs = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, arrays))(*jax.tree.leaves(args))
        return structure.unflatten(outputs)

    checks = [export.DisabledSafetyCheck.custom_call(name) for name in custom_calls]
    return export.export(jax.jit(run), platforms=platforms, disabled_checks=checks)(*args)
