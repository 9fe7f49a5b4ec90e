"""Where machine code is kept between processes, and how it stays whole. Imports no Numba.

One folder for all that its code depends on: the sources of the kernels, the versions of Python,
Numba and llvmlite. A changed line or another environment means another folder, and never old
machine code. It lies in the user's cache folder (`platformdirs`); NUMBA_CACHE_DIR moves it.

A file begins with the digest of what follows, and is written whole or not at all. So processes that
compile at once only write the same file twice, and one that was cut or damaged is as good as none:
what it held is compiled anew and takes its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import time
from pathlib import Path

import platformdirs

from refimpl.conventions import write_atomically

UNUSED = 30 * 24 * 3600  # seconds after which a folder is removed
_FOLDERS = re.compile("kernels-[0-9a-f]{16}")  # nothing else is ever removed
_ROOMS = ("kernels", "kernels/twins", "engine")  # all that is compiled
_PACKAGE = Path(__file__).parent.parent


@functools.cache
def folder() -> Path:
    """The folder of this environment's machine code, whether or not it is there."""
    return _base() / f"kernels-{_digest()[:16]}"


def _base() -> Path:
    # a user without home keeps the ~
    moved = os.path.expanduser(os.environ.get("NUMBA_CACHE_DIR", ""))
    return Path(moved) if moved else platformdirs.user_cache_path("refimpl", appauthor=False)


def _digest() -> str:
    found = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    texts = [sys.version, *found, *map(str, _sources())]
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _sources() -> list[tuple[str, str]]:
    """Name and digest of each source; of its byte code where that alone is installed."""
    files = [
        file
        for room in _ROOMS
        for file in sorted((_PACKAGE / room).iterdir())
        if file.suffix in (".py", ".pyc")
    ]
    return [(f.stem, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def read(name: str) -> bytes | None:
    """What was kept under a name; None where there is nothing, or nothing whole."""
    try:
        content = (folder() / name).read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if digest == hashlib.sha256(data).digest() else None


def write(name: str, data: bytes) -> None:
    """Keep data under a name. OSError where that is impossible; nothing is left behind then."""
    if folder().parts[0].startswith("~"):  # not a folder of that name below this one
        raise FileNotFoundError(2, "no home folder", str(folder()))
    folder().mkdir(parents=True, exist_ok=True)
    write_atomically(folder() / name, hashlib.sha256(data).digest() + data)


def has(name: str) -> bool:
    """Whether something is kept under a name; it may be damaged."""
    return (folder() / name).is_file()


def refresh() -> None:
    """Mark the folder as used, and remove those that were not for UNUSED seconds."""
    with contextlib.suppress(OSError):  # it may be somebody else's
        os.utime(folder())
    with contextlib.suppress(OSError):
        _remove_unused(time.time() - UNUSED)


def _remove_unused(since: float) -> None:
    for other in _base().iterdir():
        if _FOLDERS.fullmatch(other.name) and other != folder() and not other.is_symlink():
            if other.stat().st_mtime < since:
                shutil.rmtree(other, ignore_errors=True)
    for file in folder().iterdir():  # what a process that was killed had begun
        if file.name.startswith(".") and file.stat().st_mtime < since:
            file.unlink()
