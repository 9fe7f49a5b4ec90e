"""`refimpl bench process`: what a fresh process costs, in time and memory, to classify an image.

A small process starts each command and measures it: one that is started from a big process begins
with that one's memory, as far as the system counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.conventions import RefimplError
from refimpl.data import bundled
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import create_model, files

FLOOR = "import numba"
CALL = "one call by numba"
MODELS = ("didb_tiny",)

_CACHED_CALL = """
import numba

@numba.njit(cache=True)
def next_to(x):
    return x + 1

next_to(1)
"""

_LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak_bytes = peak if sys.platform == "darwin" else 1024 * peak
print(json.dumps([done.returncode, done.stderr, seconds, peak_bytes]))
"""


class Row(NamedTuple):
    """Fresh processes of one command; the fields are those of its JSON object."""

    work: str
    median_ms: float
    min_ms: float
    max_ms: float
    peak_mb: float  # 10^6 bytes, the largest of all runs


def run(
    models: Sequence[str] = MODELS,
    *,
    rounds: int = 10,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for `import numba`, one for a call of a trivial function from Numba's cache, which all
    compiled code needs, one for `refimpl classify` with the shipped model, and one with each of
    these architectures.

    They have random parameters and are packed files. One run of each is not counted: it fills the
    caches. `progress` is called after each round. RefimplError if a command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "call.py"
        script.write_text(_CACHED_CALL, encoding="utf-8")
        classify = ["-m", "refimpl", "classify", str(bundled.digits()[0])]
        commands = {FLOOR: ["-c", "import numba"], CALL: [str(script)], "classify": classify}
        for name in models:
            path = Path(folder) / f"{name}.safetensors"
            _save(name, path)
            commands[f"classify, {name}"] = [*classify, "--model", str(path)]
        runs: dict[str, list[tuple[float, float]]] = {work: [] for work in commands}
        for counted in [False] + [True] * rounds:
            for work, command in commands.items():
                found = _measure([sys.executable, *command])
                if counted:
                    runs[work].append(found)
            progress()
    return [_row(work, found) for work, found in runs.items()]


def _save(name: str, path: Path) -> None:
    model = create_model(name)
    config = model.config
    preprocessing = Preprocessing.plain(config.image_size, config.channels).to_json()
    params = model.init(np.random.default_rng(0))
    files.save_packed(path, model, params, preprocessing=preprocessing)


def _measure(command: list[str]) -> tuple[float, float]:
    """Seconds, and bytes of memory at the most."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True)
    if done.returncode:  # the launcher's own: a system without getrusage
        raise RefimplError(f"bench: {done.stderr.strip().splitlines()[-1]}")
    status, complaint, seconds, peak = json.loads(done.stdout)
    if status:
        raise RefimplError(f"bench: {' '.join(command)}: exit status {status}: {complaint.strip()}")
    return seconds, peak


def _row(work: str, found: list[tuple[float, float]]) -> Row:
    milliseconds = [1000 * seconds for seconds, _ in found]
    median = statistics.median(milliseconds)
    peak = max(peak for _, peak in found) / 1e6
    return Row(work, median, min(milliseconds), max(milliseconds), peak)
