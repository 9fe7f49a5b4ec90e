"""The kernels' machine code on disk, and the kernels without any; each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl.kernels import cache

ROOT = Path(__file__).parent.parent
COMPILING = (
    "refimpl: compiling the kernels for this CPU, once; `refimpl compile` does so beforehand\n"
)
EVERY_TIME = "refimpl: compiling the kernels for this CPU, in every process, since none can be kept"
PACK = """
import numpy as np
from refimpl.kernels import backend, bits

x = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)
a = bits.pack(x)
print(a.words.tolist())
"""
# rows of 200 channels are summed in halves
MORE = """
print(bits.binary_product(a, a).tolist(), bits.boolean_product(a, a).tolist())
print(backend.layer_norm.forward(x, x[0], x[1], 1e-5)[0].tolist())
"""


def start(*command: str, **variables: object) -> subprocess.Popen:
    """A Python process with other environment variables."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    )


def run(*command: str, **variables: object) -> subprocess.CompletedProcess:
    """The same, ended."""
    return ended(start(*command, **variables))


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return subprocess.CompletedProcess(process.args, 0, out, err)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The cache folder, and the process that filled it."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, run("-c", PACK + MORE, NUMBA_CACHE_DIR=folder)


@pytest.fixture
def filled(first, tmp_path):
    """A copy of the folder with machine code, to damage."""
    (kept,) = first[0].iterdir()
    return Path(shutil.copytree(kept, tmp_path / kept.name))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """That of this process, in a base of its own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return cache.folder()


def test_the_first_process_says_that_it_compiles(first):
    base, process = first
    assert process.stderr == COMPILING
    (kept,) = base.iterdir()
    assert kept.name.startswith("kernels-")
    names = sorted(file.name.rpartition("-")[0] for file in kept.iterdir())
    assert names == [
        "refimpl.kernels.bits._pack",
        "refimpl.kernels.popcount.binary_rows",
        "refimpl.kernels.popcount.boolean_rows",
        "refimpl.kernels.twins.layer_norm._forward",
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_process_starts_at_once(first, threads):
    base, process = first
    before = {file: file.stat().st_mtime_ns for file in base.rglob("*-*-*")}
    again = run("-c", PACK + MORE, NUMBA_CACHE_DIR=base, NUMBA_NUM_THREADS=threads)
    assert again.stderr == ""
    assert again.stdout == process.stdout
    assert {file: file.stat().st_mtime_ns for file in base.rglob("*-*-*")} == before


def test_without_compilation(first, tmp_path):
    _, process = first
    plain = run("-c", PACK + MORE, NUMBA_DISABLE_JIT=1, NUMBA_CACHE_DIR=tmp_path)
    assert plain.stderr == ""
    assert plain.stdout == process.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "folder"])
def test_what_is_damaged_is_compiled_anew(first, filled, damage):
    (file,) = filled.glob("*bits._pack*")
    whole = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        middle = len(whole) // 2
        turned = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        file.write_bytes({"empty": b"", "cut": whole[:5000], "one bit": turned}[damage])
    again = run("-c", PACK, NUMBA_CACHE_DIR=filled.parent)
    assert again.stderr.startswith(COMPILING)
    assert first[1].stdout.startswith(again.stdout)
    if damage == "folder":
        assert "a kernel cannot be kept" in again.stderr
        return
    assert run("-c", PACK, NUMBA_CACHE_DIR=filled.parent).stderr == ""


FULL = """
import errno, os
from refimpl.kernels import cache

def full(path, data):
    if data[32:]:  # but for the probe
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

cache.write_atomically = full
cache.require_writable = lambda: None
"""


def test_a_disk_that_is_full(first, tmp_path):
    unkept = run("-c", FULL + PACK, NUMBA_CACHE_DIR=tmp_path)
    assert unkept.stderr.startswith(f"{COMPILING}refimpl: warning: a kernel cannot be kept: ")
    assert unkept.stderr.endswith("No space left on device\n")
    assert first[1].stdout.startswith(unkept.stdout)
    assert not list(tmp_path.rglob("*-*-*"))


def test_a_cache_that_cannot_be_written(first, tmp_path):
    (tmp_path / "file").write_text("no folder\n")
    for _ in range(2):
        unkept = run("-c", PACK, NUMBA_CACHE_DIR=tmp_path / "file" / "cache")
        assert unkept.stderr.startswith(EVERY_TIME)
        assert unkept.stderr.endswith(": Not a directory\n")
        assert first[1].stdout.startswith(unkept.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_at_once(first, tmp_path):
    both = [start("-c", PACK, NUMBA_CACHE_DIR=tmp_path) for _ in range(2)]
    for process in map(ended, both):
        assert process.stderr == COMPILING
        assert first[1].stdout.startswith(process.stdout)
    (kept,) = tmp_path.iterdir()
    assert [file.name.rpartition("-")[0] for file in kept.iterdir()] == [
        "refimpl.kernels.bits._pack"
    ]
    assert run("-c", PACK, NUMBA_CACHE_DIR=tmp_path).stderr == ""


def test_only_what_is_whole_is_read(folder):
    cache.write("name", b"machine code")
    assert cache.read("name") == b"machine code"
    content = (folder / "name").read_bytes()
    for damaged in (b"", content[:32], content[:-1], content + b"\0", content[1:]):
        (folder / "name").write_bytes(damaged)
        assert cache.read("name") is None
    assert cache.read("other") is None


def test_what_is_there(folder):
    assert not cache.has("forward-")
    cache.write("forward_with_extras-01", b"")
    assert not cache.has("forward-")
    assert cache.has("forward_with_extras-")


def test_nothing_is_left_of_what_could_not_be_written(folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.write("name", b"machine code")
    assert not list(folder.iterdir())


def test_a_folder_without_permission_is_not_writable(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    cache.require_writable()
    assert not list(cache.folder().iterdir())
    cache.folder().chmod(0o555)
    if os.access(cache.folder(), os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(PermissionError):
        cache.require_writable()


def test_a_user_without_home(monkeypatch, tmp_path):
    def unknown(user):
        raise KeyError(user)

    pwd = pytest.importorskip("pwd")
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(FileNotFoundError, match="the user has no home"):
        cache.require_writable()
    assert cache.read("name") is None and not cache.has("name")
    cache.mark_used()
    cache.remove_unused()
    assert not list(tmp_path.iterdir())


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache.folder().parent == tmp_path / "refimpl"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert cache.folder().parent == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "source", ["kernels/vector.py", "kernels/twins/rprelu.py", "engine/run.py"]
)
@pytest.mark.parametrize("suffix", [".py", ".pyc"])
def test_a_changed_source_has_another_folder(monkeypatch, tmp_path, source, suffix):
    for room in ("kernels", "engine"):
        shutil.copytree(ROOT / "refimpl" / room, tmp_path / room)
    if suffix == ".pyc":  # an installation without sources
        for file in tmp_path.rglob("*.py"):
            file.rename(file.with_suffix(suffix))
    monkeypatch.setattr(cache, "_PACKAGE", tmp_path)
    before = cache._digest.__wrapped__()
    assert cache._digest.__wrapped__() == before
    with open((tmp_path / source).with_suffix(suffix), "a") as file:
        file.write("\n")
    assert cache._digest.__wrapped__() != before


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_another_version_has_another_folder(monkeypatch, package):
    """Two environments that share a cache: neither compiles what the other had."""
    version = cache.importlib.metadata.version
    before = cache._digest.__wrapped__()
    monkeypatch.setattr(
        cache.importlib.metadata, "version", lambda name: version(name) + (name == package) * ".1"
    )
    assert cache._digest.__wrapped__() != before


def test_another_python_has_another_folder(monkeypatch):
    before = cache._digest.__wrapped__()
    monkeypatch.setattr(sys, "version", "3.99.0")
    assert cache._digest.__wrapped__() != before


@pytest.mark.parametrize(
    "variable",
    ["CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "DEBUGINFO"],
)
def test_what_is_asked_of_numba_has_another_folder(monkeypatch, variable):
    """Code without optimisation, for a debugger, is not what the next process runs."""
    monkeypatch.delenv(f"NUMBA_{variable}", raising=False)
    before = cache._digest.__wrapped__()
    monkeypatch.setenv(f"NUMBA_{variable}", "0")
    assert cache._digest.__wrapped__() != before


@pytest.mark.parametrize(
    "asked", [{"NUMBA_ENABLE_AVX": 0}, {"NUMBA_CPU_FEATURES": "-avx512f"}], ids=str
)
def test_a_cpu_of_which_something_is_taken_away(first, tmp_path, asked):
    """LLVM ends the process at an instruction that the CPU has not."""
    paths = {"REFIMPL_PATH": "avx2", "NUMBA_CACHE_DIR": tmp_path}
    found = run("-c", PACK + MORE, **asked, **paths)
    assert found.stdout == first[1].stdout


def test_what_nobody_uses_is_removed(folder):
    base, month = folder.parent, time.time() - cache.UNUSED
    other, recent = base / f"kernels-{'a' * 16}", base / f"kernels-{'b' * 16}"
    foreign, elsewhere = base / "kernels-of-others", base.parent / "elsewhere"
    link = base / f"kernels-{'c' * 16}"
    for made in (folder, other, recent, foreign, elsewhere):
        made.mkdir(parents=True)
        (made / "file").write_bytes(b"")
    link.symlink_to(elsewhere)
    begun, going_on = folder / ".begun", folder / ".going_on"
    begun.write_bytes(b"")
    going_on.write_bytes(b"")
    for old in (folder, other, foreign, elsewhere, begun):
        os.utime(old, (month - 10, month - 10))
    os.utime(recent, (month + 1000, month + 1000))
    cache.remove_unused()
    assert sorted(base.iterdir()) == sorted([folder, recent, foreign, link])
    assert (elsewhere / "file").exists()
    assert sorted(file.name for file in folder.iterdir()) == [".going_on", "file"]


def test_a_look_into_the_cache_counts_as_use(filled):
    os.utime(filled, (0, 0))
    run("-c", PACK, NUMBA_CACHE_DIR=filled.parent)
    assert filled.stat().st_mtime > time.time() - 3600


@pytest.mark.parametrize("room", ["kernels", "engine"])
def test_every_folder_of_kernels_counts(room):
    counted = {cache._PACKAGE / room for room in cache._ROOMS}
    assert {file.parent for file in (cache._PACKAGE / room).rglob("*.py")} <= counted


def test_a_look_at_the_cache_needs_no_numba():
    look = "from refimpl.kernels import cache; cache.folder()"
    assert run("-c", f"{look}; import sys; print('numba' in sys.modules)").stdout == "False\n"


def test_the_kernels_pass_their_tests_without_compilation():
    names = ("bits", "levels", "tiles", "twins", "vector")
    files = [f"tests/test_kernels_{name}.py" for name in names]
    process = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, NUMBA_DISABLE_JIT=1)
    assert " passed" in process.stdout
    assert " failed" not in process.stdout
