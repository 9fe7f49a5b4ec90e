"""Compile before the first answer needs it: the engine's kernels, and those of training.

A task is what one run compiles. Tasks have nothing to do with each other, so each has a process of
its own where there are CPUs for it. How far they are is told by the functions that are done.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.conventions import RefimplError
from refimpl.engine import engine, parts, run
from refimpl.kernels import backend, cache, compile, progress
from refimpl.models import create_model, packing
from refimpl.models.config import Config

Progress = Callable[[int], object]


class Task(NamedTuple):
    """What is compiled by one run."""

    what: str
    carry_out: Callable[[], object]
    shares: Callable[[], dict[Callable, int]]  # see kernels.progress


class Result(NamedTuple):
    what: str
    compiled: int  # functions; 0: their machine code was there


def names(config: Config | None = None) -> list[str]:
    """The tasks for a network's answers, none where NumPy gives them; without one all there are."""
    if config is None:
        return list(TASKS)
    return [_ENGINE[packing.extras(config)]] if packing.for_engine(config) else []


def total(chosen: Sequence[str]) -> int:
    """What `progress` adds up to in `compile_all`."""
    return sum(sum(TASKS[name].shares().values()) for name in chosen)


def compile_all(chosen: Sequence[str], processes: int, progress: Progress) -> list[Result]:
    """Carry out tasks by their names, in so many processes at once.

    OSError where machine code cannot be kept: it would be lost. RefimplError if a process dies.
    """
    cache.require_writable()
    if min(processes, len(chosen)) <= 1:
        return [_carry_out(name, progress) for name in chosen]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    told = context.Queue()
    waiting, running, results = list(chosen), {}, {}
    try:
        while len(results) < len(chosen):
            while waiting and len(running) < processes:
                name = waiting.pop(0)
                running[name] = context.Process(target=_work, args=(name, told), daemon=True)
                _start(running[name])
            _listen(told, running, results, progress)
    finally:
        for process in running.values():
            process.terminate()
    return [results[name] for name in chosen]


def _start(process: multiprocessing.Process) -> None:
    """Ctrl-C reaches the whole group; what is started here is ended here, and never hears of it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a new process takes over
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(told, running: dict, results: dict, progress: Progress) -> None:
    """Take what one process tells next, or look after them."""
    try:
        news = told.get(timeout=0.2)
    except queue.Empty:
        for name, process in running.items():
            if process.exitcode:
                raise RefimplError(
                    f"{name}: the process that compiles has died, status {process.exitcode}; "
                    "its memory may have run out"
                ) from None
        return
    if isinstance(news, int):
        progress(news)
        return
    results[news.what] = news
    running.pop(news.what).join()


def _work(name: str, told) -> None:
    """What a process does."""
    told.put(_carry_out(name, told.put))


def _carry_out(name: str, tell: Progress) -> Result:
    compile.ANNOUNCEMENT.said = True  # whoever asks for it knows
    task = TASKS[name]
    with progress.Count(task.shares(), tell) as count:
        task.carry_out()
    return Result(name, count.compiled)


def _answer(name: str, **fields: object) -> None:
    model = create_model(name, **fields)
    config = model.config
    ready = engine.compile(model, model.init(np.random.default_rng(0)))
    ready(np.zeros((1, config.channels, *config.image_size), np.float32))


def _answer_plain() -> None:
    _answer("didb_micro", depth=1)


def _answer_with_extras() -> None:
    _answer("didb_swin_micro", depth=[1, 1])


def _train() -> None:
    """A step of networks that have every twin between them."""
    stage_1 = {"binarize": "activations"}
    for name, fields in (("didb_micro", {}), ("didb_micro", stage_1), ("deit_micro", {})):
        model = create_model(name, depth=1, **fields)
        config = model.config
        images = np.zeros((2, config.channels, *config.image_size), np.float32)
        params = model.init(np.random.default_rng(0))
        logits, kept = model.forward(params, images, backend=backend)
        model.backward(np.ones_like(logits), kept)


def _shares_plain() -> dict[Callable, int]:
    return progress.shares([run.forward], left_out=parts.is_extra)


def _shares_with_extras() -> dict[Callable, int]:
    return progress.shares([run.forward])


def _shares_of_training() -> dict[Callable, int]:
    twins = [getattr(backend, name) for name in backend.__all__]
    found = [value for twin in twins for value in vars(twin).values()]
    return progress.shares(filter(compile.is_kernel, found))


_ENGINE = {False: "engine", True: "engine, windows and decoders"}
# The longest first: the others fit in beside it.
TASKS = {
    task.what: task
    for task in (
        Task(_ENGINE[True], _answer_with_extras, _shares_with_extras),
        Task("training", _train, _shares_of_training),
        Task(_ENGINE[False], _answer_plain, _shares_plain),
    )
}
