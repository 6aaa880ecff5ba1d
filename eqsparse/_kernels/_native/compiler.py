"""The C++ compiler of this machine, and what it makes of the kernels' source."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import final, NamedTuple

import jax

SOURCE = Path(__file__).parent / "src"
_FLAGS = ("-O3", "-std=c++17", "-fPIC")
_SECONDS = 300  # a compiler that takes longer hangs


@final
class CannotCompile(RuntimeError):
    """Why there are no kernels of our own on this machine."""


class Compiler(NamedTuple):
    """How to call it, and what it says of itself."""

    command: tuple[str, ...]
    says: str

    def key(self) -> str:
        """Another one for another compiler."""
        return _hash([*self.command, self.says])

    def compile(self, target: Path) -> None:
        """Writes the library to `target`, a path in a folder that nobody else can write to.

        **Raises:** `CannotCompile`, with what the compiler said.
        """
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
            units = [path for path in sources() if path.suffix == ".cc"]
            objects = [Path(folder, f"{path.stem}.o") for path in units]
            headers = ("-isystem", jax.ffi.include_dir())
            in_out = zip(units, objects, strict=True)
            self._run_all([(*flags(), *headers, "-c", str(unit), "-o", str(made)) for unit, made in in_out])
            library = Path(folder, "library")
            self._run_all([("-shared", *map(str, objects), "-o", str(library))])
            library.chmod(0o700)  # whatever the umask
            os.replace(library, target)

    def _run_all(self, arguments: Sequence[Sequence[str]]) -> None:
        """All at once."""
        running: list[subprocess.Popen[str]] = []
        try:
            for part in arguments:
                process = subprocess.Popen(
                    (*self.command, *part), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace",
                )  # fmt: skip
                running.append(process)
            said = [process.communicate(timeout=_SECONDS)[0] for process in running]
        except subprocess.TimeoutExpired:
            raise CannotCompile(f"`{shlex.join(self.command)}` took more than {_SECONDS} s") from None
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
        for process, part, text in zip(running, arguments, said, strict=True):
            if process.returncode:
                command = shlex.join((*self.command, *part))
                raise CannotCompile(f"the compiler failed ({process.returncode}):\n$ {command}\n{text.strip()}")


def flags() -> tuple[str, ...]:
    # Clang fuses multiplication and addition only when told to; GCC does not in ISO C++. On ARM, compilers of
    # some years ago take the processor from `-mcpu` only.
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return (*_FLAGS, native, "-ffp-contract=fast")


def machine_key() -> str:
    """Another one for all but the compiler that could make the library differ, or not run here."""
    source = [part for path in sources() for part in (path.name, path.read_text(encoding="utf-8"))]
    return _hash([*flags(), _processor(), version("jaxlib"), *source])


def check_system() -> None:
    """**Raises:** `CannotCompile`"""
    if platform.system() not in ("Linux", "Darwin"):
        raise CannotCompile(f"they are made for Linux and macOS. This is {platform.system()}")


def find_compiler() -> Compiler:
    """`$CXX` if it is set, else the first of `c++`, `g++` and `clang++`.

    **Raises:** `CannotCompile`
    """
    chosen = os.environ.get("CXX")
    candidates = [tuple(shlex.split(chosen))] if chosen else [("c++",), ("g++",), ("clang++",)]
    for command in candidates:
        if command and shutil.which(command[0]):
            return Compiler(command, _says(command))
    raise CannotCompile(f"found no C++ compiler ({', '.join(shlex.join(c) for c in candidates)})")


def sources() -> list[Path]:
    return sorted(path for path in SOURCE.iterdir() if path.suffix in (".cc", ".h"))


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _says(command: Sequence[str]) -> str:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotCompile(f"`{shlex.join(command)} --version` failed: {error}") from None


def _processor() -> str:
    """The CPU's model and what it can do, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    told = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(told.get(key, "") for key in ("model name", "flags", "CPU part", "Features"))
