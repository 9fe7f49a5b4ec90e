"""What times depend on: the processor, the versions, the number of threads."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata

from llvmlite import binding
from threadpoolctl import threadpool_limits

from refimpl.bench import peers
from refimpl.training import processor

# Those that a binary product can gain from, by LLVM's names.
FEATURES = ("avx2", "avx512f", "avx512vnni", "avx512vpopcntdq", "neon", "sve")
PACKAGES = ("numpy", "numba", "llvmlite", *peers.PACKAGES)


def describe(threads: int | None = None) -> list[str]:
    """Lines about the machine, the installed versions and, where given, the number of threads."""
    features = binding.get_host_cpu_features()
    found = [name for name in FEATURES if features.get(name)]
    versions = [f"{name} {v}" for name in PACKAGES if (v := _version(name)) is not None]
    return [
        f"{processor.name()}, {os.cpu_count()} logical processors",
        f"features: {' '.join(found) or 'none of ' + ' '.join(FEATURES)}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        *([] if threads is None else [f"threads: {threads}"]),
    ]


def warnings() -> list[str]:
    """What in the environment makes a comparison unfair."""
    core = os.environ.get("OPENBLAS_CORETYPE")
    if not core:
        return []
    return [f"OPENBLAS_CORETYPE is {core}: NumPy may be slower than it is by itself; unset it"]


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """BLAS and torch on that many threads; the others are told one by one."""
    with threadpool_limits(threads), contextlib.ExitStack() as stack:
        if not peers.absent(("torch",)):
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
