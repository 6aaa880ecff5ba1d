"""The folder for compiled kernels: the user's alone, as what lies in it is run."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .compiler import CannotCompile


def private_folder() -> Path:
    """`$XDG_CACHE_HOME/eqsparse/kernels`, or the same in `~/.cache`; made if it is not there.

    **Raises:** `CannotCompile` if somebody else could write to it.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        shared, folder = base / "eqsparse", base / "eqsparse" / "kernels"
        base.mkdir(parents=True, exist_ok=True)
        for path in (shared, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        _check(shared, "folder", stat.S_IWGRP | stat.S_IWOTH)  # figures lie there too, made with the user's umask
        _check(folder, "folder", stat.S_IRWXG | stat.S_IRWXO)
    except (OSError, RuntimeError) as error:
        if isinstance(error, CannotCompile):
            raise
        raise CannotCompile(f"there is no cache folder to keep them in ({error})") from None
    return folder


def is_trusted(path: Path) -> bool:
    """Whether the file is there.

    **Raises:** `CannotCompile` if it is there but may be somebody else's work.
    """
    try:
        _check(path, "file", stat.S_IWGRP | stat.S_IWOTH)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time compiles; others wait, rather than do the same work. Without it nothing goes wrong."""
    import fcntl  # not on Windows, where nothing is compiled

    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(path: Path, kind: str, forbidden: int) -> None:
    found = os.lstat(path)
    is_kind = stat.S_ISDIR(found.st_mode) if kind == "folder" else stat.S_ISREG(found.st_mode)
    if not is_kind:
        raise CannotCompile(f"{path} must be a {kind}, not a link or anything else")
    if found.st_uid != os.getuid():
        raise CannotCompile(f"{path} belongs to another user")
    if found.st_mode & forbidden:
        raise CannotCompile(f"others have access to {path}; take it from them with `chmod go-rwx`")
