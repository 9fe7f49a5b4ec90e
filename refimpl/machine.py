"""The machine: what of it this process may use, and whose the process is."""

import contextlib
import math
import os
from collections.abc import Iterator

own_process = False  # of the command, and nobody else's, so that short cuts may be taken in it


_GROUP = "/proc/self/cgroup"  # of Linux: the groups of processes that this one belongs to
_LIMITS = "/sys/fs/cgroup"  # and what a container, or an administrator, leaves to each of them


def memory() -> float:
    """Read how many bytes of memory this process may use: of the machine's, or of its container's.

    Infinity where neither says.
    """
    try:
        most = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        most = math.inf
    limits = (*_limits("", "memory.max"), *_limits("memory", "memory.limit_in_bytes"))
    return min([most, *limits])


def cpus() -> int:
    """Count the CPUs that this process may use: by its mask, and by the time its container has."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = _shares(_limits("", "cpu.max", 0), _limits("", "cpu.max", 1))
    shares += _shares(_limits("cpu", "cpu.cfs_quota_us"), _limits("cpu", "cpu.cfs_period_us"))
    return min([count or 1, *map(math.ceil, shares)])


def _shares(quotas: list[float], periods: list[float]) -> list[float]:
    """Of the CPUs, microseconds in so many; -1 is no limit."""
    both = zip(quotas, periods, strict=False)
    return [quota / period for quota, period in both if 0 < quota < math.inf and period > 0]


def _limits(controller: str, file: str, word: int = 0) -> list[float]:
    """A number of the file of each group, from this process's outwards; infinity for "max".

    controller: "" of the groups that control all, else that of the older ones. Empty where the
    system has no such file.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _lines(_GROUP):
            _, controllers, path = line.split(":", 2)
            if controller not in controllers.split(","):
                continue
            places = [part for part in path.split("/") if part]
            for depth in range(len(places), -1, -1):
                name = "/".join((_LIMITS, *filter(None, [controller]), *places[:depth], file))
                if os.path.isfile(name):  # the outermost has none
                    found.append(float(_lines(name)[0].split()[word].replace("max", "inf")))
    return found


def _lines(name: str) -> list[str]:
    with open(name, encoding="utf-8") as file:
        return file.read().splitlines()


_held = 0  # how many blocks no interrupt may come into
_waiting = False


def interrupt() -> None:
    """Raise KeyboardInterrupt for a signal, or when `undisturbed` is left where that is entered."""
    global _waiting
    if _held:
        _waiting = True
    else:
        raise KeyboardInterrupt


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the interrupts of the command out of the block: they come at its end.

    Of other signals than its own, such as the ones of a program that uses the library, it knows
    nothing.
    """
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _waiting and not _held:  # whatever else has failed, perhaps of the same signal
            _waiting = False
            raise KeyboardInterrupt
