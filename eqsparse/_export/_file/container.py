"""The bytes of a saved file: what it begins with, its header, its arrays, and checksums over all of them.

| bytes | content |
|---|---|
| 8 | `MAGIC`; like PNG's, it shows when a transfer has changed line ends or the eighth bit |
| 8 | length of the header, unsigned, little-endian |
| 32 | SHA-256 of the header |
| | the header: JSON, spaces at its end so that the arrays begin at a multiple of 64 |
| | the arrays, little-endian, rows first, zeros after each up to a multiple of 64 |

The header's `arrays` lists for each its path, dtype, shape, offset (from the end of the header) and the SHA-256 of
its bytes with the zeros that follow. Nothing in the file is outside a checksum.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from .outline import Record
from .schema import check, Malformed

MAGIC = b"\x89EQS\r\n\x1a\n"
FORMAT = 1
_PRELUDE = struct.Struct("<8sQ32s")
_ALIGN = 64
_PIECE = 2**24  # bytes hashed and written at a time


def write(file: BinaryIO, header: Record, read: Callable[[int], np.ndarray]) -> None:
    """Writes header and arrays; `read(i)` gives the i-th, so that only one at a time is on the host."""
    offset = 0
    for one in header["arrays"]:
        one["offset"] = offset
        offset += _aligned(_nbytes(one))
    file.write(_encode(header))
    for i, one in enumerate(header["arrays"]):
        one["sha256"] = _write_array(file, read(i))
    file.seek(0)
    file.write(_encode(header))  # as long as before: checksums have a fixed length


def read_header(file: BinaryIO, path: Path) -> Record:
    """The header, once it is sure that all of the file is there."""
    size = os.fstat(file.fileno()).st_size
    prelude = file.read(_PRELUDE.size)
    if prelude[: len(MAGIC)] != MAGIC[: len(prelude)]:
        raise ValueError(f"`load(path=...)` must be a file that `eqsparse.save` has written. Got another kind: {path}.")
    if len(prelude) < _PRELUDE.size:
        raise _damaged(path, f"is truncated: it ends after {size} bytes")
    _, length, checksum = _PRELUDE.unpack(prelude)
    if length > size - _PRELUDE.size:
        raise _damaged(path, f"is truncated or corrupted: its {size} bytes do not hold its header")
    text = file.read(length)
    if hashlib.sha256(text).digest() != checksum:
        raise _damaged(path, "is corrupted: its header does not match its checksum")
    header = _parsed(text, path)
    expected = _PRELUDE.size + length
    for i, one in enumerate(header["arrays"]):
        if one["offset"] != expected - _PRELUDE.size - length:
            raise _damaged(path, f"has a header that `save` does not write: offset {one['offset']} of array {i}")
        expected += _aligned(_nbytes(one))
    if size != expected:
        what = "is truncated" if size < expected else "is corrupted"
        raise _damaged(path, f"{what}: it has {size} bytes where its header says {expected}")
    return header


def _parsed(text: bytes, path: Path) -> Record:
    """The header, once it is sure that it is one."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"has a header that is no JSON ({error})") from None
    try:
        if isinstance(header, dict) and header.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"`load(path=...)` must be a file of format {FORMAT}. Got format {header['format']}, written by "
                f"eqsparse {header.get('eqsparse')}: {path}."
            )
        check(header)
    except (Malformed, RecursionError) as error:
        raise _damaged(path, f"has a header that `save` does not write: {error}") from None
    return header


def read_array(file: BinaryIO, path: Path, header: Record, i: int) -> np.ndarray:
    """The i-th array, once it is sure that it is the one that was written. The file stands after the header."""
    one = header["arrays"][i]
    array = np.empty(one["shape"], _dtype(one))
    view = _bytes_of(array)
    digest = hashlib.sha256()
    file.seek(_end_of_header(file) + one["offset"])
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        file.readinto(piece)  # type: ignore[attr-defined]
        digest.update(piece)
    digest.update(file.read(_aligned(len(view)) - len(view)))
    if digest.hexdigest() != one["sha256"]:
        raise _damaged(path, f"is corrupted: the array at `{one['path']}` does not match its checksum")
    return array


def _write_array(file: BinaryIO, array: np.ndarray) -> str:
    digest = hashlib.sha256()
    view = _bytes_of(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    padding = bytes(_aligned(len(view)) - len(view))
    for piece in (*(view[start : start + _PIECE] for start in range(0, len(view), _PIECE)), padding):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def _encode(header: Record) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_PRELUDE.size + len(text)) % _ALIGN)
    return _PRELUDE.pack(MAGIC, len(text), hashlib.sha256(text).digest()) + text


def _end_of_header(file: BinaryIO) -> int:
    file.seek(0)
    return _PRELUDE.size + _PRELUDE.unpack(file.read(_PRELUDE.size))[1]


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _dtype(one: Record) -> np.dtype:
    return jnp.dtype(one["dtype"])  # JAX's: NumPy alone does not know bfloat16


def _nbytes(one: Record) -> int:
    return math.prod(one["shape"]) * _dtype(one).itemsize


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"`load(path=...)` must be a whole file. Got one that {what}: {path}.")
