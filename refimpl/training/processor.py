"""The kind of CPU that computes: the last bits of a sum of floats depend on it."""

from __future__ import annotations

import platform
from pathlib import Path


def name() -> str:
    """Return what the system calls this machine's processor, such as its maker's name of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
