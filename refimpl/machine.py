"""The machine: what of it this process may use, and whose the process is."""

import contextlib
import math
import os
from collections.abc import Iterator

own_process = False  # of the command, and nobody else's, so that short cuts may be taken in it


def memory() -> float:
    """Read how many bytes of memory the machine has; infinity where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def cpus() -> int:
    """Count the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
