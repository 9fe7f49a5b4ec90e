"""Tasks on the workers: no more than a few a thread are under way, their results in any order.

A task is a function of refimpl with its arguments. Dask gives the tasks of a worker that is lost to
another; one that loses several workers is given up. Whatever ends the loop cancels what it began.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from refimpl.conventions import ClusterError, RefimplError

POLL = 0.5  # seconds until the connection is looked at
COUNTING = 5  # seconds after which workers are counted anew
PATIENCE = 300  # seconds without any worker


class Task(NamedTuple):
    """A function to call on some worker."""

    number: int  # how results and errors are told apart
    name: str  # what an error calls it
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def results(
    client: Client,
    tasks: Iterable[Task | None],
    ahead: int,
    told: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """Yield number and result of each task as they come; `told` is called now and then.

    ahead: tasks a thread that are under way. tasks: those to do; None among them: none for now.
    Of errors that the tasks raise, that of the smallest number is raised when all before it are
    over: the same one whatever the timing. ClusterError where scheduler or workers are lost.
    """
    yield from _Loop(client, tasks, ahead, told).results()


class _Loop:
    def __init__(
        self, client: Client, tasks: Iterable[Task | None], ahead: int, told: Callable[[], object]
    ):
        self.client = client
        self.address = client.scheduler.address  # which a client that is closed has forgotten
        self.waiting = iter(tasks)
        self.ahead = ahead
        self.told = told
        self.done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.under_way: dict[Future, Task] = {}
        self.failed: dict[int, RefimplError] = {}
        self.threads = 0  # of all workers, when they were last counted
        self.counted = self.staffed = -float("inf")  # when that was, and when there were any

    def results(self) -> Iterator[tuple[int, Any]]:
        try:
            self._fill()
            while self.under_way:
                if (future := self._next()) is None:
                    continue
                task = self.under_way.pop(future)
                try:
                    result = self._result(future, task)
                except RefimplError as error:
                    self.failed[task.number] = error
                    continue
                finally:
                    future.release()
                yield task.number, result
                self._fill()
        finally:
            self._cancel()
        if self.failed:
            raise self.failed[min(self.failed)]

    def _fill(self) -> None:
        """Give tasks out while there are threads for them, and none has failed."""
        self._count()
        room = self.ahead * max(1, self.threads)
        while not self.failed and len(self.under_way) < room:
            task = next(self.waiting, None)
            if task is None:
                return
            future = self.client.submit(task.function, *task.arguments, pure=False, retries=0)
            self.under_way[future] = task
            future.add_done_callback(self.done.put)

    def _next(self) -> Future | None:
        self.told()
        try:
            future = self.done.get(timeout=POLL)
        except queue.Empty:
            self._require_scheduler()
            self._count()
            self._fill()  # for workers that came meanwhile
            return None
        return future

    def _count(self) -> None:
        """Count the workers' threads, at most every few seconds."""
        now = time.monotonic()
        if now < self.counted + COUNTING:
            return
        try:
            self.threads = sum(self.client.nthreads().values())
        except OSError:
            self._require_scheduler()
        self.counted = now
        if self.threads or self.staffed < 0:
            self.staffed = now
        if now > self.staffed + PATIENCE:
            raise ClusterError(
                f"{self.address}: the scheduler has had no worker for {PATIENCE} seconds"
            )

    def _cancel(self) -> None:
        """End what this loop began and nothing else; a lost scheduler has let go of it already."""
        if self.under_way and self.client.status == "running":
            with contextlib.suppress(OSError):
                self.client.cancel(list(self.under_way))

    def _result(self, future: Future, task: Task) -> Any:
        try:
            return future.result()
        except RefimplError:
            raise
        except OSError as error:
            if future.status != "error":  # it was not raised by the task: nobody answers any more
                raise self._lost() from None
            raise _failed(task, error) from None
        except CancelledError as error:
            self._require_scheduler()
            raise ClusterError(f"{task.name}: cancelled by somebody else ({error})") from None
        except KilledWorker as error:
            raise ClusterError(
                f"{task.name}: as many workers died of it as Dask allows "
                f"({error.allowed_failures + 1}), the last one {error.last_worker.address}; their "
                "memory may be too small"
            ) from None
        except Exception as error:  # whatever a worker's environment is able to raise
            raise _failed(task, error) from None

    def _require_scheduler(self) -> None:
        if self.client.status != "running":
            raise self._lost()

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"{self.address}: the connection to the scheduler is lost; the same command, "
            "with a scheduler that runs, goes on or starts again"
        )


def _failed(task: Task, error: Exception) -> ClusterError:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return ClusterError(f"{task.name}: failed on a worker: {what}")
