"""`refimpl bench process`: what a fresh process costs, in time and memory, to classify an image."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.bench import launch
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
        runs: dict[str, list[launch.Finished]] = {work: [] for work in commands}
        for turn in range(rounds + 1):
            for work, command in commands.items():
                found = launch.python(command)
                if turn > 0:
                    runs[work].append(found)
            progress()
    return [_row(work, found) for work, found in runs.items()]


def _save(name: str, path: Path) -> None:
    model = create_model(name)
    config = model.config
    preprocessing = Preprocessing.plain(config.image_size, config.channels).to_json()
    params = model.init(np.random.default_rng(0))
    files.save_packed(path, model, params, preprocessing=preprocessing)


def _row(work: str, found: list[launch.Finished]) -> Row:
    milliseconds = [1000 * finished.seconds for finished in found]
    median = statistics.median(milliseconds)
    peak = max(finished.peak for finished in found) / 1e6
    return Row(work, median, min(milliseconds), max(milliseconds), peak)
