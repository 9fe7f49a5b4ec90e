"""How kernels are compiled: once a machine, kept on disk, and said aloud while it happens.

Numba's own cache looks at the file of a function and at the kind of CPU, not at what the function
calls. So the kernels lie in a folder whose name is a digest of all their sources: a changed line
anywhere means a new folder, and never old machine code. NUMBA_CACHE_DIR moves the folder. Where
nothing can be written they are compiled anew in every process.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numba
from numba import types
from numba.core import config, event
from numba.extending import intrinsic

_ROOMS = ("kernels", "kernels/twins", "engine")  # all that is compiled
_PACKAGE = Path(__file__).parent.parent


def _folder() -> Path:
    sources = sorted(file for room in _ROOMS for file in (_PACKAGE / room).glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "refimpl")
    # a user without home keeps the ~
    return Path(os.path.expanduser(config.CACHE_DIR or default)) / f"kernels-{digest[:16]}"


def _writable(folder: Path) -> bool:
    if folder.parts[0].startswith("~"):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{os.getpid()}").touch()
        (folder / f".{os.getpid()}").unlink()
    except OSError:
        return False
    return True


class _Announcement(event.Listener):
    """One line on stderr when the first kernel is compiled, since that takes a while."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        module = event.data["dispatcher"].py_func.__module__
        if self.said or not module.startswith("refimpl."):
            return
        self.said = True
        how_often = "once" if _CACHED else "in every process, since none can be kept"
        print(f"refimpl: compiling the kernels for this CPU, {how_often}", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        pass


_FOLDER = _folder()
_CACHED = not config.DISABLE_JIT and _writable(_FOLDER)
event.register("numba:compile", _Announcement())


def jit(function: Callable) -> Callable:
    """Compile on first use: no fast-math, the GIL released, the machine code kept on disk.

    A division by zero is NumPy's infinity or NaN; a check of it would keep loops from vectors.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_FOLDER)
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=_CACHED)(function)
    finally:
        config.CACHE_DIR = before


def inlined(function: Callable) -> Callable:
    """Pasted into the kernels that call it: for what is shorter than a call."""
    return numba.njit(inline="always")(function)


def _borrowed(typing, arrays):
    def generate(context, builder, signature, values):
        (found,) = values
        for i, member in enumerate(arrays.types):
            if isinstance(member, types.Array):
                array = context.make_array(member)(
                    context, builder, builder.extract_value(found, i)
                )
                array.meminfo = array.meminfo.type(None)
                found = builder.insert_value(found, array._getvalue(), i)
        return found

    return arrays(arrays), generate


def _borrow(arrays: NamedTuple) -> NamedTuple:
    """The same arrays without their counts of references, which whoever calls keeps for us.

    A count is changed atomically, by every kernel that gets an array, and takes as long as some of
    them.
    """
    return arrays


borrow = _borrow if config.DISABLE_JIT else intrinsic(_borrowed)
