"""Batches of a split: what goes out to workers, what they do with it, and how many go at a time.

A batch is what one machine computes at a time. A task is one batch or several: Dask takes some
milliseconds of the client's time for each, so tasks are to last as long as keeps the client idle
most of the time, with any number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from distributed import Client, Future

from refimpl.cluster import tasks, workers
from refimpl.cluster.sources import Listed, Source
from refimpl.conventions import DataError
from refimpl.data.image_folder import Progress, slices
from refimpl.data.image_folder import Workers as Readers

AHEAD = 2  # tasks a thread: while one is computed the next is there
SECONDS = 1.0  # of a task, at the least where many batches are left
SMALLEST = 0.1  # seconds of a task, of those at the end, too
SECONDS_A_THREAD = 0.015  # of a task, for each thread that the client has to keep busy
SHARES = 4  # tasks that a thread is to have of what is left, so that all end together


class Batch(NamedTuple):
    """Some items of a split."""

    items: Sequence[Any]
    labels: np.ndarray | None  # int64, one an item; None: an item has labels of its own
    contents: list[Any] | None = None  # of the items, where the client has read them


class Done(NamedTuple):
    """What comes back of a task."""

    found: list[Any]  # of each batch
    seconds: float


class Work:
    """Has the workers call a function of (asked, batch) for all batches of a split.

    asked: the future of an Asked. shipped: what reads the items here; None: the workers do.
    """

    def __init__(self, client: Client, asked: Future, shipped: Source | None):
        self.client, self.asked, self.shipped = client, asked, shipped

    def __call__(
        self, function: Callable[..., Any], batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[int, Any]]:
        """Yield the place of a batch and its result, in any order.

        progress: called with a number of items that are done.
        """
        pace = _Pace(sum(self.client.nthreads().values()))
        given = self._tasks(function, batches, pace)
        with contextlib.closing(tasks.results(self.client, given, AHEAD)) as results:
            for first, done in results:
                pace.saw(len(done.found), done.seconds)
                for place, found in enumerate(done.found, start=first):
                    progress(len(batches[place].items))
                    yield place, found

    def _tasks(
        self, function: Callable[..., Any], batches: Sequence[Batch], pace: _Pace
    ) -> Iterator[tasks.Task]:
        first = 0
        while first < len(batches):
            # what is shipped is in memory here, twice a thread
            count = 1 if self.shipped else pace.batches(len(batches) - first)
            some = [self._filled(batch) for batch in batches[first : first + count]]
            name = f"batch {first + 1} of {len(batches)}"
            yield tasks.Task(first, name, _each, (self.asked, function, some))
            first += count

    def _filled(self, batch: Batch) -> Batch:
        if self.shipped is None:
            return batch
        return batch._replace(contents=[_content(self.shipped, item) for item in batch.items])


class _Pace:
    """How many batches a task has, by the time that the last ones took."""

    def __init__(self, threads: int):
        self.threads = max(1, threads)
        self.seconds: float | None = None  # a batch, of late

    def saw(self, batches: int, seconds: float) -> None:
        now = seconds / batches
        self.seconds = now if self.seconds is None else (self.seconds + now) / 2

    def batches(self, left: int) -> int:
        if not self.seconds:
            return 1
        wanted = max(SECONDS, SECONDS_A_THREAD * self.threads) / self.seconds
        share = max(left // (SHARES * self.threads), int(SMALLEST / self.seconds))
        return max(1, min(int(wanted), share, left))


def cut(listed: Listed, size: int) -> list[Batch]:
    """Cut a split into batches, in order, as one machine does."""
    labels = listed.labels
    parts = slices(len(listed.items), size)
    return [Batch(listed.items[p], None if labels is None else labels[p]) for p in parts]


def count(asked: Any, batch: Batch) -> np.ndarray:
    """On a worker: the hits of a batch (classes, 3), or the confusion matrix of some images."""
    model, read = asked.model, functools.partial(_read, asked.source, batch)
    places = range(len(batch.items))
    if batch.labels is None:
        name = [str(pair.image) for pair in batch.items]
        return sum(model.confusion(*read(place), name[place]) for place in places)
    pixels = np.stack([read(place) for place in places])
    return model.hits(model.preprocessing.normalise(pixels), batch.labels)


def faults(asked: Any, batch: Batch) -> dict[int, str]:
    """On a worker: place in the batch -> what is wrong, of the items that are broken."""
    workers.require_here(asked.needs)
    read = functools.partial(_read, asked.source, batch)
    return Readers(0).faults(read, range(len(batch.items)), lambda count: None)


def _each(asked: Any, function: Callable[..., Any], batches: Sequence[Batch]) -> Done:
    start = time.perf_counter()
    found = [function(asked, batch) for batch in batches]
    return Done(found, time.perf_counter() - start)


def _read(source: Source, batch: Batch, place: int) -> Any:
    item = batch.items[place]
    if batch.contents is None:
        return source.read(item)
    content = batch.contents[place]
    if isinstance(content, DataError):  # which the client met when it read the file
        raise content
    return source.decode(item, content)


def _content(source: Source, item: Any) -> Any:
    """What is sent of an item; the error where its file cannot be read, which is met over there."""
    try:
        return source.content(item)
    except DataError as error:
        return error
