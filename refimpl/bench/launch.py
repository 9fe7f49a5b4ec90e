"""A command in a fresh process: what it prints, how long it takes, its memory at the most.

A small process starts each command and measures it: one that is started from a big process begins
with that one's memory, as far as the system counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from refimpl.conventions import RefimplError

_LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak_bytes = peak if sys.platform == "darwin" else 1024 * peak
print(json.dumps([done.returncode, done.stdout, done.stderr, seconds, peak_bytes]))
"""


class Finished(NamedTuple):
    """A process that ended well."""

    out: str
    seconds: float
    peak: int  # bytes


def python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run this interpreter with the arguments, and with `environment` on top of our own.

    RefimplError names the arguments and what was complained of where it fails.
    """
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(launcher, capture_output=True, text=True, env=variables)
    if done.returncode:  # the launcher's own: a system without getrusage, or somebody killed it
        why = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise RefimplError(f"bench: {why}")
    status, out, complaint, seconds, peak = json.loads(done.stdout)
    if status:
        command = " ".join([sys.executable, *arguments])
        raise RefimplError(f"bench: {command}: exit status {status}: {complaint.strip()}")
    return Finished(out, seconds, peak)
