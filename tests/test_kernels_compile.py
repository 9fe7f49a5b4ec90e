"""The kernels' cache on disk, and the kernels without compilation; each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.kernels import compile as kernels

ROOT = Path(__file__).parent.parent
COMPILING = "refimpl: compiling the kernels for this CPU, once\n"
EVERY_TIME = COMPILING.replace("once", "in every process, since none can be kept")
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


def run(*command: str, **variables: object) -> subprocess.CompletedProcess:
    """A Python process with other environment variables."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    process = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env=environment,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The cache folder, and the process that filled it."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, run("-c", PACK + MORE, NUMBA_CACHE_DIR=folder)


def test_the_first_process_says_that_it_compiles(first):
    folder, process = first
    assert process.stderr == COMPILING
    (kept,) = folder.iterdir()
    assert kept.name.startswith("kernels-")
    assert list(kept.rglob("bits._pack*.nbc"))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_process_starts_at_once(first, threads):
    folder, process = first
    before = sorted(folder.rglob("*"))
    again = run("-c", PACK + MORE, NUMBA_CACHE_DIR=folder, NUMBA_NUM_THREADS=threads)
    assert again.stderr == ""
    assert again.stdout == process.stdout
    assert sorted(folder.rglob("*")) == before


def test_without_compilation(first, tmp_path):
    _, process = first
    plain = run("-c", PACK + MORE, NUMBA_DISABLE_JIT=1, NUMBA_CACHE_DIR=tmp_path)
    assert plain.stderr == ""
    assert plain.stdout == process.stdout
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(first, tmp_path):
    _, process = first
    (tmp_path / "file").write_text("no folder\n")
    for _ in range(2):
        unkept = run("-c", PACK, NUMBA_CACHE_DIR=tmp_path / "file" / "cache")
        assert unkept.stderr == EVERY_TIME
        assert process.stdout.startswith(unkept.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission_is_not_writable(tmp_path):
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert not kernels._writable(tmp_path / "cache")
    assert not kernels._writable(tmp_path)


def test_a_user_without_home(monkeypatch, tmp_path):
    def unknown(user):
        raise KeyError(user)

    pwd = pytest.importorskip("pwd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(kernels.config, "CACHE_DIR", "")
    assert not kernels._writable(kernels._folder())
    assert not list(tmp_path.iterdir())


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels._folder().parent == tmp_path / "refimpl"
    monkeypatch.setattr(kernels.config, "CACHE_DIR", str(tmp_path / "elsewhere"))
    assert kernels._folder().parent == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "source", ["kernels/vector.py", "kernels/twins/rprelu.py", "engine/run.py"]
)
def test_a_changed_source_has_another_folder(monkeypatch, tmp_path, source):
    for room in ("kernels", "engine"):
        shutil.copytree(ROOT / "refimpl" / room, tmp_path / room)
    before = kernels._folder()
    monkeypatch.setattr(kernels, "_PACKAGE", tmp_path)
    assert kernels._folder() == before
    with open(tmp_path / source, "a") as file:
        file.write("\n")
    assert kernels._folder() != before


@pytest.mark.parametrize("room", ["kernels", "engine"])
def test_every_folder_of_kernels_counts(room):
    counted = {kernels._PACKAGE / room for room in kernels._ROOMS}
    assert {file.parent for file in (kernels._PACKAGE / room).rglob("*.py")} <= counted


def test_the_kernels_pass_their_tests_without_compilation():
    names = ("bits", "levels", "tiles", "twins", "vector")
    files = [f"tests/test_kernels_{name}.py" for name in names]
    process = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, NUMBA_DISABLE_JIT=1)
    assert " passed" in process.stdout
    assert " failed" not in process.stdout
