"""`refimpl bench cluster`: what a cluster costs beside one process, and where it ends.

The same folder of images is read, decoded and classified by one process with so many threads and by
as many workers of one thread, in turn. What a call costs whatever the images (versions, the model's
way to the workers, its opening) is measured with one image and told apart from the time an image.
Processor time is that of all processes that take part; a busy machine changes it less.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from PIL import Image

import refimpl
from refimpl import cluster
from refimpl.bench.measure import OURS
from refimpl.cluster import tasks
from refimpl.conventions import ConfigError
from refimpl.data import datasets

WORKERS = (1, 2)
EMPTY = 200  # tasks that do nothing
MANY = 50  # of them a thread under way, so that client and scheduler are the ones who are busy
AT_SCALE = 1000  # workers of one thread
PROCESS, CLUSTER = "one process", "cluster"


class Row(NamedTuple):
    """One way to evaluate; the fields are those of its JSON object."""

    who: str
    threads: int  # of the process, or workers with one
    images_per_second: float  # median of the rounds, without `fixed_ms`
    fixed_ms: float  # of a call, whatever the images; median
    of_one_process: float | None  # its images a second by the process's; median. None: it itself
    cpu_ms: float  # processor time an image, of all processes together; median
    cpu_of_one_process: float | None  # the process's divided by it; median


class Spent(NamedTuple):
    """Seconds of a call."""

    wall: float
    cpu: float  # of all processes


Way = tuple[str, int]  # PROCESS or CLUSTER, and its threads
Times = dict[Way, list[tuple[Spent, Spent]]]  # of one image and of all, a round each
Evaluate = Callable[[int | None], Spent]  # called with a number of images; None: all


class Limits(NamedTuple):
    """What a cluster of AT_SCALE workers would meet first, from what was measured here."""

    worker_ms: float  # processor time that a task costs its worker beside its images
    client_ms: float  # and client and scheduler together, which are one process here
    names_per_second: float  # listing of the folder, by processor time
    images_per_second: float  # of one worker
    smallest_task: float  # images, with which the scheduler keeps AT_SCALE workers busy
    workers_of_listing: float  # with so many, listing takes as long as evaluating


def run(
    model: str,
    *,
    images: int = 10_000,
    rounds: int = 5,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[Row], Limits]:
    """Measure a shipped classifier, or that in a file, on noise of its own size as PNG files.

    A row for one process and one for the cluster, for each number of WORKERS. `progress` is called
    after each round. ConfigError for fewer images than classes, or too few to be measured, and for
    a class that no folder can be called; else errors as in `cluster.evaluate`.
    """
    classifier = refimpl.classifier(model)
    names = classifier.class_names  # every class has a folder
    least = max(2, len(names))
    if images < least:
        raise ConfigError(f"bench: images is {images}; expected at least {least} for {model}")
    for name in names:
        if Path(name).name != name:
            raise ConfigError(f"bench: {model} has a class {name}; expected the name of a folder")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write(folder, classifier, images)
        clients = {
            n: stack.enter_context(cluster.connected(f"{cluster.connection.LOCAL}:{n}"))
            for n in WORKERS
        }
        backend = cluster.evaluate(clients[1], model, folder).choice.backend
        ways = {
            **{(PROCESS, n): _process(model, backend, folder, n) for n in WORKERS},
            **{(CLUSTER, n): _cluster(clients[n], model, folder) for n in WORKERS},
        }
        times: Times = {way: [] for way in ways}
        overheads = []
        for evaluate in ways.values():
            evaluate(None)  # whatever starts once
        for _ in range(rounds):
            for way, evaluate in ways.items():
                times[way].append((evaluate(1), evaluate(None)))
            overheads.append(_overheads(clients[max(WORKERS)], folder))
            progress()
        rows = [_row(way, times, images) for way in ways]
    return rows, _limits(rows, overheads, images)


def _write(folder: Path, classifier: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    names = classifier.class_names
    for name in names:
        (folder / name).mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, classifier.preprocessing.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names[number % len(names)] / f"{number}.png")


def _process(model: str, backend: str, folder: Path, threads: int) -> Evaluate:
    """In this process, from the names of the files to the figures."""
    classifier = refimpl.classifier(model, backend=backend)
    if classifier.engine is not None:
        classifier.engine.threads = threads

    def evaluate(limit: int | None) -> Spent:
        wall, cpu = time.perf_counter(), time.process_time()
        data = datasets.load(folder, "test", classifier.preprocessing, limit=limit)
        classifier.evaluate(data.images, data.labels, ready=True)
        return Spent(time.perf_counter() - wall, time.process_time() - cpu)

    return evaluate


def _cluster(client: Client, model: str, folder: Path) -> Evaluate:
    """On the workers of a client, whose scheduler is in this process."""

    def processor_time() -> float:
        return time.process_time() + _on_workers(client)

    def evaluate(limit: int | None) -> Spent:
        cpu, wall = processor_time(), time.perf_counter()
        cluster.evaluate(client, model, folder, limit=limit)
        return Spent(time.perf_counter() - wall, processor_time() - cpu)

    return evaluate


def _row(way: Way, times: Times, images: int) -> Row:
    who, threads = way
    wall, cpu = _an_image(times[way], images)
    beside = None if who == PROCESS else _of_one_process(times, threads, images)
    return Row(
        who=OURS if who == CLUSTER else who,
        threads=threads,
        images_per_second=1 / wall,
        fixed_ms=1000 * statistics.median(one.wall for one, _ in times[way]),
        of_one_process=beside and beside.wall,
        cpu_ms=1000 * cpu,
        cpu_of_one_process=beside and beside.cpu,
    )


def _of_one_process(times: Times, threads: int, images: int) -> Spent:
    """The process's seconds divided by the cluster's, medians of the rounds: what else the machine
    does in a round is met by both.
    """
    process, ours = (_each_round(times[who, threads], images) for who in (PROCESS, CLUSTER))
    return Spent(*np.median(process / ours, axis=0).tolist())


def _an_image(times: Sequence[tuple[Spent, Spent]], images: int) -> Spent:
    """Seconds an image, medians of the rounds; ConfigError where there are too few to be seen."""
    spent = Spent(*np.median(_each_round(times, images), axis=0).tolist())
    if min(spent) <= 0:
        raise ConfigError(f"bench: {images:,} images took no longer than one; expected more images")
    return spent


def _each_round(times: Sequence[tuple[Spent, Spent]], images: int) -> np.ndarray:
    """Seconds an image (rounds, 2); what a call with one image takes is off."""
    return np.array([np.subtract(every, one) for one, every in times]) / (images - 1)


def _overheads(client: Client, folder: Path) -> tuple[float, float, float]:
    """Processor time in seconds: a task on its worker and here, and the listing of the folder."""
    empty = (tasks.Task(i, f"task {i}", int, ()) for i in range(EMPTY))
    there, here = _on_workers(client), time.process_time()
    for _ in tasks.results(client, empty, MANY):
        pass
    here, there = time.process_time() - here, _on_workers(client) - there
    listing = time.process_time()
    datasets.listed(folder, "test")
    return there / EMPTY, here / EMPTY, time.process_time() - listing


def _on_workers(client: Client) -> float:
    """Processor time of all workers so far."""
    return sum(client.run(time.process_time).values())


def _limits(
    rows: Sequence[Row], overheads: Sequence[tuple[float, float, float]], images: int
) -> Limits:
    there, here, listing = np.median(overheads, axis=0).tolist()
    rate = next(r.images_per_second for r in rows if r.who == OURS and r.threads == 1)
    return Limits(
        worker_ms=1000 * there,
        client_ms=1000 * here,
        names_per_second=images / listing,
        images_per_second=rate,
        smallest_task=AT_SCALE * rate * here,
        workers_of_listing=images / listing / rate,
    )
