"""Where machine code is kept between processes, and how it stays whole. Imports no Numba.

One folder for all that the code depends on: the sources of the kernels, the versions of Python,
Numba and llvmlite, the CPU, what the user tells Numba. A changed line or another environment has
another folder, and never meets old machine code. It lies in the user's cache folder;
NUMBA_CACHE_DIR moves it.

A file begins with the digest of what follows, and is written whole or not at all. So processes that
compile at once only write the same file twice, and one that is cut or damaged is as good as none:
what it held is compiled anew and takes its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

import platformdirs

from refimpl.disk import write_atomically

# Names of the engine's machine code, by whether it has windows and decoders (`packing.extras`).
FORWARD = {False: "forward-", True: "forward_with_extras-"}
TOLD = "told"  # that there is something to compile
UNUSED = 30 * 24 * 3600  # seconds after which a folder is removed
ABANDONED = 3600  # seconds after which a file that is half written is removed

_FOLDER = re.compile("kernels-[0-9a-f]{16}")  # nothing else is ever removed
_ROOMS = ("kernels", "kernels/twins", "engine")  # all that is compiled
# What of Numba's variables changes machine code.
_VARIABLES = (
    *("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE"),
    *("BOUNDSCHECK", "DEBUGINFO", "ENABLE_PROFILING", "EXTEND_VARIABLE_LIFETIMES"),
    *("DISABLE_INTEL_SVML", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS"),
)
_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """The folder of this environment's machine code, whether or not it is there.

    FileNotFoundError for a user without home: there is none.
    """
    return _base() / f"kernels-{_digest()[:16]}"


def read(name: str) -> bytes | None:
    """What is kept under a name; None where there is nothing, or nothing whole."""
    try:
        content = (folder() / name).read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if digest == hashlib.sha256(data).digest() else None


def write(name: str, data: bytes) -> None:
    """Keep data under a name; OSError where it cannot be, and then nothing is left behind."""
    folder().mkdir(parents=True, exist_ok=True)
    write_atomically(folder() / name, hashlib.sha256(data).digest() + data)


def has(begin: str) -> bool:
    """Whether anything is kept under a name that begins so; it may be damaged."""
    try:
        return any(file.name.startswith(begin) for file in folder().iterdir())
    except OSError:
        return False


def require_writable() -> None:
    """OSError, with the reason, where nothing can be kept."""
    name = f"probe.{os.getpid()}"
    write(name, b"")
    (folder() / name).unlink()


def mark_used() -> None:
    """The folder is in use, and is not removed for UNUSED seconds."""
    with contextlib.suppress(OSError):  # it may be another user's, or not be there yet
        os.utime(folder())


def remove_unused() -> None:
    """Folders that nobody used for UNUSED seconds, and what killed processes had begun to write."""
    now = time.time()
    with contextlib.suppress(OSError):
        for other in _base().iterdir():
            old = other.stat().st_mtime < now - UNUSED
            if old and _FOLDER.fullmatch(other.name) and other != folder():
                shutil.rmtree(other, ignore_errors=True)  # not through a link
    with contextlib.suppress(OSError):
        for file in folder().iterdir():
            if file.name.startswith(".") and file.stat().st_mtime < now - ABANDONED:
                file.unlink()


def _base() -> Path:
    base = os.environ.get("NUMBA_CACHE_DIR")
    if not base:
        with contextlib.suppress(RuntimeError):  # a user without home
            base = platformdirs.user_cache_dir("refimpl", appauthor=False)
    base = os.path.expanduser(base or "~")
    if base.startswith("~"):  # else a folder of this name would be made, or trusted, here
        raise FileNotFoundError(2, "the user has no home", base)
    return Path(base)


@functools.cache
def _digest() -> str:
    versions = [_version(name) for name in ("numba", "llvmlite")]
    asked = [os.environ.get(f"NUMBA_{name}", "") for name in _VARIABLES]
    parts = [sys.version, *versions, *asked, _cpu(), *_sources()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # packed into one program, without metadata
        return "unknown"


def _sources() -> list[str]:
    """Name and digest of each source; of its byte code where that alone is installed."""
    files = [
        file
        for room in _ROOMS
        for file in sorted((_PACKAGE / room).iterdir())
        if file.suffix in (".py", ".pyc")
    ]
    return [f"{file.stem} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]


def _cpu() -> str:
    """What a CPU can do, for a home that several machines share."""
    features = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        # of the first CPU: a line for each of hundreds takes long
        features = next((line for line in lines if line.lower().startswith(("flags", "feat"))), "")
    return f"{platform.machine()} {features}"
