"""What the files of a folder hold, read when it is asked for: memory is bounded by the batch.

Reading runs in processes of its own where there are any, and `in_batches` lets them work on the
next batch while the caller computes with this one. What they are asked for is what they give, in
that order, whatever the timing: training on them ends in the same bits as on an array.
"""

import contextlib
import functools
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from refimpl import machine
from refimpl.conventions import ConfigError, DataError
from refimpl.data.archives import read_file
from refimpl.data.images import decode
from refimpl.data.preprocessing import Preprocessing

PART = 8  # files that a process reads at a time
MOST = 1000  # processes: beyond it a system has no room for what they tell one another

Given, Made = TypeVar("Given"), TypeVar("Made")
Index = slice | np.ndarray
Progress = Callable[[int], object]


class Reader(Protocol):
    """What makes the entry of an array of an item, such as the name of a file, in any process."""

    @property
    def folder(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an entry."""

    @property
    def settings(self) -> str:
        """All that an entry depends on beside its file."""

    def file(self, item: Any) -> str:
        """The path of an item's file, relative to `folder`."""

    def read(self, item: Any) -> np.ndarray:
        """uint8 of `shape`; DataError names the file where it is broken."""


class Pictures(NamedTuple):
    """The Reader of images as a model wants them before they are normalised; items are paths."""

    folder: Path
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, ...]:
        return self.preprocessing.shape

    @property
    def settings(self) -> str:
        return str(self.preprocessing)

    def file(self, name: str) -> str:
        return name

    def read(self, name: str) -> np.ndarray:
        return self.preprocessing.pixels(
            decode(read_file(self.folder / name), f"{self.folder}: {name}")
        )


class FolderArray:
    """An entry a file, as an array of them would be, uint8 (n, *shape), but read on demand.

    `array[chosen]` with a slice, indices or one index is an array, newly read; `subset` keeps some
    without reading any. A broken file is a DataError that names it, when it is asked for.
    """

    def __init__(self, reader: Reader, items: Iterable[Any], workers: "Workers"):
        self.reader = reader
        self.items = np.fromiter(items, dtype=object)
        self.workers = workers

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.reader.shape)

    def __getitem__(self, chosen: int | Index) -> np.ndarray:
        if isinstance(chosen, (int, np.integer)):
            return self[np.array([chosen])][0]
        return next(self.batches([chosen]))

    def subset(self, chosen: Index) -> "FolderArray":
        """Some of the entries, read by the same processes."""
        return FolderArray(self.reader, self.items[chosen], self.workers)

    def batches(self, chosen: Iterable[Index]) -> Iterator[np.ndarray]:
        """The entries of each index in turn; the next batch is read meanwhile."""
        batches = [self.items[some] for some in chosen]
        parts = (part for items in batches for part in _parts(items))
        largest = max(map(len, batches), default=0)
        read = functools.partial(_read, self.reader)
        made = self.workers.map(read, parts, ahead=math.ceil(largest / PART))
        for items in batches:
            entries = np.empty((len(items), *self.reader.shape), np.uint8)
            for first, some in zip(range(0, len(items), PART), made):
                entries[first : first + PART] = some
            yield entries

    def listing(self) -> np.ndarray:
        """Names and sizes of the files, and how they are read, as bytes.

        It tells this array from others without reading it. DataError where a file is gone.
        """
        reader = self.reader
        names = map(reader.file, self.items)
        try:
            lines = [f"{name}\0{(reader.folder / name).stat().st_size}\n" for name in names]
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{error.filename}: cannot be read: {reason}") from None
        text = f"{reader.settings}\n{''.join(lines)}"
        return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)


Array = np.ndarray | FolderArray


def require_array(what: str, given: Any) -> None:
    """DataError, which names it, for what is neither an array in memory nor one of a folder."""
    if not isinstance(given, Array):
        raise DataError(f"{what}: found {type(given).__name__}, expected an array")


def subset(array: Array, chosen: Index) -> Array:
    """Some of the entries, of a folder without reading them."""
    return array.subset(chosen) if isinstance(array, FolderArray) else array[chosen]


def in_batches(array: Array, chosen: Iterable[Index]) -> Iterator[np.ndarray]:
    """`array[some]` for each index in turn; of a folder the next ones are read meanwhile."""
    if isinstance(array, FolderArray):
        return array.batches(chosen)
    return (array[some] for some in chosen)


def in_memory(arrays: Sequence[FolderArray], progress: Progress) -> list[np.ndarray]:
    """All of each array, as many entries in one as in another: the first of all, the second, ...

    progress: called with 1 after each.
    """
    whole = [np.empty(array.shape, np.uint8) for array in arrays]
    for i in range(len(arrays[0])):
        for entries, array in zip(whole, arrays, strict=True):
            entries[i] = array.reader.read(array.items[i])
        progress(1)
    return whole


def left(path: Path, count: int, faults: Mapping[int, str]) -> np.ndarray:
    """Places of `count` images without the broken ones; DataError where there is no other."""
    if len(faults) == count:
        raise DataError(f"{path}: all {count} images are broken; {next(iter(faults.values()))}")
    return np.array([i for i in range(count) if i not in faults])


def slices(count: int, size: int) -> list[slice]:
    """`count` things in order, `size` at a time.

    >>> slices(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def map_ahead(
    pool: Any, function: Callable[[Given], Made], given: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """`pool.map` for what must not be in memory all at once: results in order.

    pool: an Executor, or whatever has its `submit`. The next of `given` is asked for when no more
    than `ahead` results are under way or waiting.
    """
    waiting: deque[Any] = deque()
    try:
        for each in given:
            waiting.append(pool.submit(function, each))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Workers:
    """Processes that read; started by the first call, ended with the last one who holds them."""

    def __init__(self, count: int):
        """count: up to MOST; 0 for none: then whoever asks reads. ConfigError for another."""
        if not 0 <= count <= MOST:
            raise ConfigError(f"workers is {count}, expected 0 to {MOST:,} processes")
        self.count = count

    @functools.cached_property
    def pool(self) -> Executor:
        # here, since what needs no processes need not wait for these imports
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # a fork of a process with threads in it may hang
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.count, mp_context=context)

    def submit(self, function: Callable[..., Made], *args: Any) -> Future:
        """What an Executor does. Here a process may be started: it never hears of Ctrl-C."""
        pool = self.pool  # what it starts would let go of the interrupts
        with interrupts_held():
            return pool.submit(function, *args)

    def map(
        self, function: Callable[[Given], Made], given: Iterable[Given], ahead: int
    ) -> Iterator[Made]:
        """`function` of each of `given`, in order, `ahead` of them and two a process ahead."""
        if self.count == 0:
            yield from map(function, given)
            return
        from concurrent.futures.process import BrokenProcessPool

        try:
            yield from map_ahead(self, function, given, ahead + 2 * self.count)
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes images has died: its memory ran out, or the program that "
                'started it lacks `if __name__ == "__main__":`; with 0 workers there is none'
            ) from None

    def faults(
        self, read: Callable[[Given], object], items: Sequence[Given], progress: Progress
    ) -> dict[int, str]:
        """Place -> what is wrong, of every item that `read` refuses; all are read to find out.

        progress: called with the number of items that were just read.
        """
        found: dict[int, str] = {}
        done = 0
        for some in self.map(functools.partial(_faults, read), _parts(items), ahead=0):
            found |= {done + i: fault for i, fault in enumerate(some) if fault is not None}
            done += len(some)
            progress(len(some))
        return found


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """A process that is started inside inherits that they are held, from its first instruction.

    Ctrl-C and a terminal that is closed reach the whole group, and the process that started the
    others is to end them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    with machine.undisturbed():  # the command has more signals of that kind
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    return (list(items[part]) for part in slices(len(items), PART))


def _read(reader: Reader, items: list[Any]) -> np.ndarray:
    """uint8 (n, *shape)."""
    return np.stack([reader.read(item) for item in items])


def _faults(read: Callable[[Any], object], items: list[Any]) -> list[str | None]:
    """What is wrong with each item; None: nothing."""
    return [_fault(read, item) for item in items]


def _fault(read: Callable[[Any], object], item: Any) -> str | None:
    try:
        read(item)
    except DataError as error:
        return str(error)
    return None
