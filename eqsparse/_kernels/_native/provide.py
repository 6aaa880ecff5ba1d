"""The compiled library, from the cache or from the compiler."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .compiler import CannotCompile, check_system, find_compiler, flags, machine_key
from .folder import alone, is_trusted, private_folder

FORBIDDEN = "EQSPARSE_NO_COMPILE"
_FORBIDS = f"the environment variable `{FORBIDDEN}` forbids compiling"


class Built(NamedTuple):
    """What `eqsparse.kernels.build` has built."""

    path: Path
    """The library."""
    compiler: str
    """The compiler's command and its flags; empty where the compiler is gone."""
    seconds: float
    """What compiling took; 0 where the library was in the cache."""


class Forbidden(RuntimeError):
    """The user does not want it."""


def provide() -> Built:
    """The library for this machine, compiled if it is not in the cache.

    **Raises:** `RuntimeError` that says why there is none: what the compiler wrote, or that the environment variable
    `EQSPARSE_NO_COMPILE` forbids compiling.
    """
    check_system()
    forbidden = os.environ.get(FORBIDDEN, "0") not in ("", "0")
    try:
        compiler = find_compiler()
    except CannotCompile as error:
        left = sorted(private_folder().glob(f"kernels-{machine_key()}-*.so"))
        if left and is_trusted(left[0]):  # compiled here, by one that is gone
            return Built(left[0], "", 0.0)
        raise Forbidden(_FORBIDS) if forbidden else error from None
    target = private_folder() / f"kernels-{machine_key()}-{compiler.key()}.so"
    command = shlex.join((*compiler.command, *flags()))
    if is_trusted(target):
        return Built(target, command, 0.0)
    if forbidden:
        raise Forbidden(_FORBIDS)
    start = time.perf_counter()
    try:
        with alone(target.parent):
            if is_trusted(target):  # another process has made it meanwhile
                return Built(target, command, 0.0)
            print(
                f"eqsparse: compiling its CPU kernels with `{shlex.join(compiler.command)}`, once for this machine "
                f"(some seconds; kept in {target.parent})",
                file=sys.stderr,
                flush=True,
            )
            compiler.compile(target)
    except OSError as error:
        raise CannotCompile(f"the library could not be written ({error})") from None
    is_trusted(target)
    return Built(target, command, time.perf_counter() - start)
