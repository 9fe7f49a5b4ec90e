"""What a worker must have before it works: our versions, our files in its sight, enough memory.

All workers that are there are asked before any work. One that comes later asks itself, before its
first batch or run.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import threadpoolctl
from distributed import Client, Worker, get_worker
from distributed.versions import get_versions

from refimpl.conventions import ClusterError, DataError

PACKAGES = ("refimpl", "numpy", "numba")  # and Python itself
NUMBA = 128 * 2**20  # bytes that Numba takes with the kernels of the smallest network
# Of glibc's mallopt: which setting, and the bytes up to which freed memory is kept for what comes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 2**30), (-3, 2**25)
PATIENCE = 30  # seconds that a cluster may take to have a first worker


class Seen(NamedTuple):
    """A path that a worker must see as we do."""

    path: Path
    size: int | None  # bytes of a file; None: a folder
    sha256: str | None = None  # of a file; None: its size is enough

    @classmethod
    def of(cls, path: Path, hashed: bool = False) -> Seen:
        """Look at a path of this machine; DataError where nothing is there."""
        path = path.absolute()  # a worker has a working directory of its own
        if path.is_dir():
            return cls(path, None)
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        return cls(path, path.stat().st_size, _sha256(path) if hashed else None)

    def fault(self) -> str | None:
        """Say what is wrong with the path in this process; None: nothing."""
        kind = "folder" if self.size is None else f"file of {self.size:,} bytes"
        if self.size is None and self.path.is_dir():
            return None
        if self.size is not None and self.path.is_file():
            found = self.path.stat().st_size
            if found != self.size:
                return f"{self.path}: found {found:,} bytes, expected the client's {kind}"
            if self.sha256 not in (None, _sha256(self.path)):
                return f"{self.path}: is another {kind} than the client's"
            return None
        return f"{self.path}: no such {kind}, expected a path that all machines see"


class Needs(NamedTuple):
    """What a worker needs for a work; it travels to the workers with it."""

    work: str  # what it is called in an error
    memory: int  # bytes, at the least, without Numba
    numba: bool  # whether kernels compute
    seen: tuple[Seen, ...]
    versions: dict[str, str | None]  # by name, those of the client

    def require(self, worker: Worker) -> None:
        """Raise ClusterError, which names the worker, where it lacks something.

        From then on BLAS has one thread in the worker's process, since Dask's threads work side by
        side, and what is freed there stays with it.
        """
        found = versions()
        fault = difference(found, self.versions) or self._lack_of_memory(worker)
        fault = fault or next(filter(None, (seen.fault() for seen in self.seen)), None)
        if fault is not None:
            raise ClusterError(f"worker {worker.address}: {fault}")
        hold_blas()
        keep_memory()

    def _lack_of_memory(self, worker: Worker) -> str | None:
        limit = worker.memory_manager.memory_limit
        if not limit:
            return None
        free = limit - worker.monitor.get_process_memory()
        needed = self.memory + NUMBA * (self.numba and "numba" not in sys.modules)
        if free >= needed:
            return None
        return (
            f"{free / 1e6:,.0f} of its {limit / 1e6:,.0f} MB of memory are free, expected at least "
            f"{needed / 1e6:,.0f} MB for {self.work}"
        )


def require(client: Client, needs: Needs) -> None:
    """Ask all workers; ClusterError of the first that lacks something, or where there is none."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise ClusterError(
            f"{client.scheduler.address}: the scheduler has no worker, expected one within "
            f"{PATIENCE} seconds"
        ) from None
    # Dask's own message first: a worker without refimpl cannot read ours
    for address, found in client.get_versions(packages=PACKAGES)["workers"].items():
        if fault := difference(found["packages"], needs.versions):
            raise ClusterError(f"worker {address}: {fault}")
    for answer in client.run(_asked, needs, on_error="return").values():
        if isinstance(answer, ClusterError):
            raise answer
        if isinstance(answer, Exception):
            what = " ".join(f"{type(answer).__name__}: {answer}".split())
            raise ClusterError(f"{needs.work}: a worker cannot start: {what}")


def require_here(needs: Needs) -> None:
    """In a task: ClusterError where this worker lacks something."""
    needs.require(get_worker())


def versions() -> dict[str, str | None]:
    """Return the versions in this process by name; None of a package that is missing."""
    found = get_versions(PACKAGES)["packages"]
    return {name: found[name] for name in (*PACKAGES, "python")}


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Say in words which versions differ; None: none."""
    names = [name for name in expected if found.get(name) != expected[name]]
    if not names:
        return None
    has = ", ".join(f"{name} {found[name]}" if found.get(name) else f"no {name}" for name in names)
    wanted = ", ".join(f"{name} {expected[name]}" for name in names)
    return f"has {has}; expected {wanted}, as the client has"


def scratch() -> str | None:
    """Return a folder for temporary files: a worker's own, which Dask tidies up, or None: any."""
    try:
        return get_worker().local_directory
    except ValueError:  # no worker: the client reads images that it sends
        return None


@functools.cache
def hold_blas() -> None:
    """Hold the linear algebra of this process to one thread, once and for all.

    A limit that each task sets and takes back would be taken back under the tasks beside it.
    """
    threadpoolctl.threadpool_limits(1)


@functools.cache
def keep_memory() -> None:
    """Let glibc keep what this process frees, once and for all; other systems' libraries decide.

    Dask has it given back from 64 kB on. A training step asks for as much again at once, and most
    of the time the kernel would clear pages.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc, no C library at all
        mallopt = ctypes.CDLL(None).mallopt
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(*setting)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _asked(needs: Needs, dask_worker: Worker) -> None:
    needs.require(dask_worker)
