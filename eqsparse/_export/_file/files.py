"""Saving a model or a whole training state, and loading it again."""

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding
from jaxtyping import PyTree

from ..._pruner import AbstractPruner
from ..._sites import join, leaves_by_path, path_of
from .container import FORMAT, read_array, read_header, write
from .fit import differ, fit, Stored, unmasked
from .outline import on_host, outline
from .rebuild import check_stored, holds_rebuilt
from .replace import checked_path, replacing

_Tree = TypeVar("_Tree")


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Writes a model, or any PyTree, to one file: `save("run.eqs", (model, state))`.

    Arrays are stored bit for bit, with random keys and Python numbers; functions are not. What was at `path`
    is replaced once the new file is whole and on disk, so a crash leaves the one or the other.

    **Arguments:**

    - `path`: The file. Its name is taken as it is.
    - `tree`: A plain, masked or exported model, a pruner's or optimiser's state, a pruner, or a container of these.

    **Raises:** `ValueError` if an array is traced or does not hold numbers.
    """
    target = checked_path(path, "save(path=...)")
    record, entries, arrays = outline(tree)
    check_stored(record)
    header = {"format": FORMAT, "eqsparse": _version(), "tree": record, "arrays": entries}
    with replacing(target) as file:
        write(file, header, lambda i: on_host(arrays[i]))


def load(path: str | os.PathLike[str], like: _Tree) -> _Tree:
    """What `eqsparse.save` has written, in the form of `like`.

    ```python
    make = lambda: pruner.init(eqx.nn.MLP(8, 1, 64, depth=2, key=key))
    model, state = eqsparse.load("run.eqs", like=eqx.filter_eval_shape(make))
    ```

    Nothing in the file is ever run: it holds numbers and names, the code comes from `like`.

    **Arguments:**

    - `path`: The file.
    - `like`: The same as what was saved, with other numbers, or with `jax.ShapeDtypeStruct`s in place of the
        arrays. For an exported model, the plain or masked one it was made from: sparse layers take the place
        of those they stand for. A pruner in `like` must be the one that was saved: its numbers are compared.

    **Returns:** `like` with the arrays and numbers of the file. NumPy arrays where `like` has them, JAX arrays
    elsewhere, on the devices and in the shards of `like` where it says so (an array that was put somewhere, or a
    `jax.ShapeDtypeStruct` with a sharding). Functions and static fields are those of `like`.

    **Raises:** `ValueError` if the file is another kind, truncated or corrupted, or `like` does not fit; the
    message names the first place where it does not.
    """
    source = checked_path(path, "load(path=...)")
    with open(source, "rb") as file:
        header = read_header(file, source)
        record = header["tree"]
        fitted = fit(record, unmasked(record, like) if holds_rebuilt(record) else like)

        def read(leaf: Any) -> Any:
            if not isinstance(leaf, Stored):
                return leaf
            return _as_like(leaf, read_array(file, source, header, leaf.record["array"]))

        _same_pruners(fitted, like, read)
        return jax.tree.map(read, fitted)


def _same_pruners(fitted: PyTree, like: PyTree, read: Callable[[Stored], Any]) -> None:
    """Raises if a number of a pruner is another than in the file: a run goes on as it has begun, or not at all.

    Before anything else is read; shapes in the place of numbers take what is in the file.
    """
    is_pruner = lambda x: isinstance(x, AbstractPruner)
    pruners = lambda tree: [(k, x) for k, x in jtu.tree_leaves_with_path(tree, is_leaf=is_pruner) if is_pruner(x)]
    for (keys, pruner), (_, own) in zip(pruners(fitted), pruners(like), strict=True):
        plain = dict(leaves_by_path(own))
        for path, leaf in leaves_by_path(pruner):
            if isinstance(leaf, int | float) and leaf != plain[path]:
                differ(join(path_of(keys), path), str(leaf), str(plain[path]))
            if isinstance(leaf, Stored) and not isinstance(leaf.like, jax.ShapeDtypeStruct):
                there, here = on_host(read(leaf)), on_host(leaf.like)
                if not np.array_equal(there, here):
                    differ(join(path_of(keys), path), _numbers(there), _numbers(here))


def _numbers(array: np.ndarray) -> str:
    """Seven digits are what float32 holds: 0.9 rather than 0.8999999761581421."""
    return np.array2string(array, formatter={"float_kind": lambda x: f"{x:.7g}"})


def _as_like(stored: Stored, array: np.ndarray) -> Any:
    if isinstance(stored.like, np.ndarray):
        return array
    if isinstance(stored.like, np.generic):
        return array[()]
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"`load(path=...)` must hold arrays that JAX can, too: set `jax_enable_x64`, or have NumPy arrays in "
            f"`like`. Got {array.dtype}."
        )
    place = _place_of(stored.like)
    if "key" in stored.record:
        keys = jax.random.wrap_key_data(jnp.array(array), impl=stored.record["key"])
        return keys if place is None else jax.device_put(keys, place)
    if place is None:
        return jnp.array(array)  # a buffer of its own, so that it can be donated
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _place_of(like: Any) -> jax.sharding.Sharding | None:
    """Where `like` says that its array goes; `None` if it says nothing."""
    place = getattr(like, "sharding", None)
    if isinstance(like, jax.Array) and not like.committed:
        return None
    # On no device, as `eqx.filter_eval_shape` makes them under a mesh of explicit axes.
    is_abstract = isinstance(place, NamedSharding) and isinstance(place.mesh, AbstractMesh)
    return None if is_abstract else place


def _version() -> str:
    try:
        return importlib.metadata.version("eqsparse")
    except importlib.metadata.PackageNotFoundError:  # run from a clone
        return "unknown"
