"""`refimpl bench train`: speed and memory of a training step, ours beside the PyTorch mirror.

Each contender runs in a fresh process, so that its memory is its own, and all of them run in every
round, so that what else happens on the machine meets all of them alike.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from refimpl.bench import launch, peers
from refimpl.bench.train_step import TRAINERS, Result, Task
from refimpl.bench.work import require_batch
from refimpl.conventions import RefimplError, require_choice
from refimpl.models import architectures

PEERS = tuple(trainer for trainer in TRAINERS.values() if trainer.requires)
MODELS = ("didb_cifar",)
STEPS = 10  # that are timed in a process
AGREEMENT = 1e-3  # of the first loss, relative: signs next to 0 fall either way
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Row(NamedTuple):
    """Processes of one contender; the fields are those of its JSON object."""

    work: str
    who: str
    images_per_second: float
    median_ms: float  # a step
    min_ms: float
    max_ms: float
    peak_mb: float  # 10^6 bytes, the largest of all runs
    over_imports_mb: float  # of them, what was not there yet when all imports were done
    threads: int


class Run(NamedTuple):
    """What one process told, and what was seen of it from outside."""

    result: Result
    peak: int  # bytes


def run(
    names: Sequence[str] = MODELS,
    *,
    batch: int = 100,
    threads: int = 1,
    rounds: int = 5,
    steps: int = STEPS,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Rows for each architecture, with random parameters, images and labels; ours is the first.

    One process of each is not counted: it fills the caches. The time of a process is the median of
    its steps, that of a contender the median of its processes. `progress` is called after each
    round. ConfigError for another name, RefimplError where a process fails or where two contenders
    do not find the same loss.
    """
    for name in names:
        require_choice("bench", "model", name, architectures.CLASSIFIERS)
        require_batch(architectures.named(name), batch)
    rows = []
    for name in names:
        tasks = [
            Task(who, name, batch, threads, steps)
            for who, trainer in TRAINERS.items()
            if not peers.absent(trainer.requires)
        ]
        _require_agreement(tasks, [_run(task) for task in tasks])
        progress()
        runs: list[list[Run]] = [[] for _ in tasks]
        for _ in range(rounds):
            for task, found in zip(tasks, runs, strict=True):
                found.append(_run(task))
            progress()
        rows += [_row(task, found) for task, found in zip(tasks, runs, strict=True)]
    return rows


def _run(task: Task) -> Run:
    module = ["-m", "refimpl.bench.train_step", json.dumps(task._asdict())]
    finished = launch.python(module, dict.fromkeys(VARIABLES, str(task.threads)))
    return Run(Result(**json.loads(finished.out)), finished.peak)


def _require_agreement(tasks: Sequence[Task], runs: Sequence[Run]) -> None:
    """The same loss of the first step, since all start from the same parameters and images."""
    ours, expected = tasks[0], runs[0].result.loss
    for task, found in zip(tasks, runs, strict=True):
        loss = found.result.loss
        if not math.isclose(loss, expected, rel_tol=AGREEMENT):
            raise RefimplError(
                f"bench: {task.model}: the first step has the loss {loss:.6g} in {task.who}; "
                f"expected {expected:.6g}, that of {ours.who}, to {AGREEMENT:g}"
            )


def _row(task: Task, runs: Sequence[Run]) -> Row:
    seconds = [found.result.seconds for found in runs]
    median = statistics.median(seconds)
    return Row(
        work=f"{task.model}, batch {task.batch}",
        who=task.who,
        images_per_second=task.batch / median,
        median_ms=1000 * median,
        min_ms=1000 * min(seconds),
        max_ms=1000 * max(seconds),
        peak_mb=max(found.peak for found in runs) / 1e6,
        over_imports_mb=max(found.peak - found.result.imported for found in runs) / 1e6,
        threads=task.threads,
    )
