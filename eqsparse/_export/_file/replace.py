"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is complete and on disk.

    Until then it has a name of its own in the same folder. If anything fails, it is removed, and what was at
    `path` stays as it was.
    """
    target = Path(os.path.realpath(path))  # behind a symbolic link: the link stays
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def checked_path(path: Any, argument: str) -> Path:
    """The path that a user gave."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"`{argument}` must be the path of a file. Got {type(path).__name__} {path!r}.")
    return Path(path)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on disk too, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
