"""Compiling, and the folder for what was compiled."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqsparse
from eqsparse._kernels._native import library
from eqsparse._kernels._native.provide import provide

# Stands for a compiler: writes down that it was called, and "links" a copy of a library. It is quick.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo 1.0 && exit 0
echo "$@" >> {folder}/calls
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "eqsparse" / "kernels"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A file of the calls of a compiler that is chosen by `$CXX`."""
    (tmp_path / "lib").write_bytes(b"a library")
    script(monkeypatch, tmp_path, COMPILER.format(folder=tmp_path, library=tmp_path / "lib"))
    return tmp_path / "calls"


def script(monkeypatch, folder, text):
    (folder / "cxx").write_text(text)
    (folder / "cxx").chmod(0o755)
    monkeypatch.setenv("CXX", str(folder / "cxx"))


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not asked for the kernels yet; restored after."""
    monkeypatch.setattr(library, "_state", None)


def test_built_once_and_private(cache, compiler, capfd):
    built = provide()
    assert built.path.parent == cache and built.path.read_bytes() == b"a library" and built.seconds > 0
    assert built.compiler.split()[1] == "-O3"
    assert cache.stat().st_mode & 0o777 == 0o700 and built.path.stat().st_mode & 0o077 == 0
    assert capfd.readouterr().err.count("eqsparse: compiling its CPU kernels") == 1
    calls = compiler.read_text()
    assert provide() == (built.path, built.compiler, 0.0)
    assert compiler.read_text() == calls and capfd.readouterr().err == ""
    assert sorted(path.name for path in cache.iterdir()) == sorted([built.path.name, "lock"])  # no leftovers


def test_another_compiler_is_another_file(cache, compiler, monkeypatch, tmp_path):
    first = provide().path
    text = (tmp_path / "cxx").read_text()
    script(monkeypatch, tmp_path, text.replace("1.0", "1.1"))
    assert provide().path != first
    script(monkeypatch, tmp_path, text)
    assert provide().path == first


def test_umask_does_not_matter(cache, compiler):
    old = os.umask(0)
    try:
        path = provide().path
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("what", ["file", "folder", "shared folder"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_not_loaded(cache, compiler, what, mode):
    path = provide().path
    loose = {"file": path, "folder": path.parent, "shared folder": path.parents[1]}[what]
    loose.chmod(loose.stat().st_mode | mode)
    with pytest.raises(RuntimeError, match=f"others have access to {loose};"):
        provide()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_are_not_followed(cache, compiler, tmp_path, what):
    path = provide().path
    linked = path if what == "file" else path.parent
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=f"{linked} must be a {what}, not a link"):
        provide()


def test_others_files_are_not_loaded(cache, compiler, monkeypatch):
    path = provide().path
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(RuntimeError, match="belongs to another user"):
        provide()


def test_no_folder(compiler, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="there is no cache folder to keep them in"):
        provide()


def test_two_processes_at_once(cache, compiler, tmp_path):
    command = [sys.executable, "-c", "from eqsparse._kernels._native.provide import provide; print(*provide())"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({out.split()[0] for out, _ in said}) == 1
    assert compiler.read_text().count("-shared") == 1  # one has waited for the other


FAILING = """#!/bin/sh
[ "$1" = --version ] && echo 1.0 && exit 0
echo "source.h:1: error: no such luck"
exit 3
"""


def test_a_failing_compiler_is_told_once(cache, monkeypatch, tmp_path, fresh):
    script(monkeypatch, tmp_path, FAILING)
    with pytest.warns(
        RuntimeWarning, match=r"(?s)kernels for CPUs are not used: the compiler failed \(3\).*no such luck"
    ):
        assert not eqsparse.kernels.available()
    layout = eqsparse.BCSRLayout.from_dense(jnp.eye(3), jnp.eye(3) > 0)
    run = jax.jit(lambda x: layout @ x)
    assert "eqsparse" not in run.lower(jnp.ones(3)).as_text().split("custom_call")[-1]
    np.testing.assert_array_equal(run(jnp.arange(3.0)), jnp.arange(3.0))  # no second warning
    with pytest.raises(RuntimeError, match="no such luck"):
        eqsparse.kernels.build()
    assert list(cache.iterdir()) == [cache / "lock"]


@pytest.mark.parametrize("text", [None, "#!/bin/sh\nexit 1\n"])
def test_no_compiler(cache, monkeypatch, tmp_path, fresh, text):
    if text:
        script(monkeypatch, tmp_path, text)
    else:
        monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(RuntimeError, match="--version` failed" if text else "found no C\\+\\+ compiler"):
        eqsparse.kernels.build()
    with pytest.warns(RuntimeWarning, match="kernels for CPUs are not used"):
        assert not eqsparse.kernels.available()


def test_compiling_can_be_forbidden(cache, compiler, monkeypatch, fresh):
    """No warning: it is what the user wants. What is there already is used."""
    monkeypatch.setenv("EQSPARSE_NO_COMPILE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not eqsparse.kernels.available()
    with pytest.raises(RuntimeError, match="`EQSPARSE_NO_COMPILE` forbids compiling"):
        eqsparse.kernels.build()
    assert not compiler.exists()
    monkeypatch.setenv("EQSPARSE_NO_COMPILE", "0")
    path = provide().path
    monkeypatch.setenv("EQSPARSE_NO_COMPILE", "1")
    assert provide().path == path


def test_the_compiler_may_go(cache, compiler, monkeypatch, fresh):
    """An image may compile, and drop its compiler."""
    path = provide().path
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert provide() == (path, "", 0.0)
    path.unlink()
    with pytest.raises(RuntimeError, match="found no C"):
        provide()
    monkeypatch.setenv("EQSPARSE_NO_COMPILE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not eqsparse.kernels.available()


def test_figures_leave_the_folder_private(cache, compiler):
    """Those of `export(objective="latency")`, which may be there first, whatever the umask."""
    from eqsparse._export.latency import _read, _write

    old = os.umask(0o002)
    try:
        _write("key", {"dense": 1.0})
    finally:
        os.umask(old)
    assert _read("key", {"dense"}) == {"dense": 1.0}
    assert provide().path.parent == cache


def test_figures_without_a_home(monkeypatch):
    from eqsparse._export import latency

    def cache_folder():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(latency, "cache_folder", cache_folder)
    latency._write("key", {"dense": 1.0})
    assert latency._read("key", {"dense"}) is None


def test_what_does_not_load(cache, compiler, fresh):
    with pytest.raises(RuntimeError, match="the library does not load"):
        eqsparse.kernels.build()


def test_figures_are_those_of_the_kernels(kernels, monkeypatch):
    """What was measured with some kernels says nothing of others."""
    from eqsparse._export.latency import _key

    layouts = {"dense": eqsparse.DenseLayout.from_dense(jnp.eye(3), jnp.eye(3) > 0)}
    keys = set()
    for state in (library._state, library.Missing("")):
        monkeypatch.setattr(library, "_state", state)
        keys.add(_key(layouts, 4))
    assert len(keys) == (2 if kernels else 1)
