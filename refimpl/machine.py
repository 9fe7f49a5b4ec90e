"""The machine: what of it this process may use, and whose the process is."""

import math
import os

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
