"""Images of a folder, decoded when they are asked for: memory is bounded by the batch.

Decoding runs in processes of its own where there are any, and `in_batches` lets them work on the
next batch while the caller computes with this one. What they are asked for is what they give, in
that order, whatever the timing: training on them ends in the same bits as on an array.
"""

import contextlib
import functools
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from refimpl.conventions import DataError
from refimpl.data.archives import read_file
from refimpl.data.images import decode
from refimpl.data.preprocessing import Preprocessing

PART = 8  # images that a process decodes at a time

Given, Made = TypeVar("Given"), TypeVar("Made")
Index = slice | np.ndarray


class FolderImages:
    """Images as an array of them would be, uint8 (n, H, W) or (n, H, W, 3), but read on demand.

    `images[chosen]` with a slice, indices or one index is an array, newly decoded; `subset` keeps
    some without decoding any. A file that cannot be decoded is a DataError that names it, when it
    is asked for.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], preprocessing: Preprocessing, workers: int = 0
    ):
        """names: paths relative to `folder`. workers: processes that decode; 0: this one does."""
        self.folder = folder
        self.names = np.array(names, dtype=object)
        self.preprocessing = preprocessing
        self._workers = _Workers(workers)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.preprocessing.shape)

    @property
    def nbytes(self) -> int:
        """What all of them would take in memory."""
        return math.prod(self.shape)

    def __getitem__(self, chosen: int | Index) -> np.ndarray:
        if isinstance(chosen, (int, np.integer)):
            return self[np.array([chosen])][0]
        return next(self.batches([chosen]))

    def subset(self, chosen: Index) -> "FolderImages":
        """Some of the images, decoded by the same processes."""
        part = FolderImages(self.folder, self.names[chosen], self.preprocessing)
        part._workers = self._workers
        return part

    def batches(self, chosen: Iterable[Index]) -> Iterator[np.ndarray]:
        """The images of each index in turn; the next batch is decoded meanwhile."""
        batches = [self.names[some] for some in chosen]
        parts = (part for names in batches for part in _parts(names))
        largest = max(map(len, batches), default=0)
        decoded = self._map(_decode, parts, ahead=math.ceil(largest / PART))
        for names in batches:
            pixels = np.empty((len(names), *self.preprocessing.shape), np.uint8)
            for first, some in zip(range(0, len(names), PART), decoded):
                pixels[first : first + PART] = some
            yield pixels

    def broken(self, progress: Callable[[int], object] = lambda count: None) -> dict[str, str]:
        """Name -> what is wrong, of every image that cannot be decoded; decodes all to find out."""
        found: dict[str, str] = {}
        for count, faults in self._map(_faults, _parts(self.names), ahead=0):
            found |= faults
            progress(count)
        return found

    def listing(self) -> np.ndarray:
        """Names and sizes of the files, and how they are decoded, as bytes.

        It tells these images from others without reading them.
        """
        lines = [f"{name}\0{(self.folder / name).stat().st_size}\n" for name in self.names]
        text = f"{self.preprocessing}\n{''.join(lines)}"
        return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)

    def _map(
        self,
        function: Callable[[Path, Preprocessing, list[str]], Made],
        parts: Iterable[list[str]],
        ahead: int,
    ) -> Iterator[Made]:
        function = functools.partial(function, self.folder, self.preprocessing)
        return self._workers.map(function, parts, ahead)


Images = np.ndarray | FolderImages


def subset(images: Images, chosen: Index) -> Images:
    """Some of the images, of a folder without decoding them."""
    return images.subset(chosen) if isinstance(images, FolderImages) else images[chosen]


def in_batches(images: Images, chosen: Iterable[Index]) -> Iterator[np.ndarray]:
    """`images[some]` for each index in turn; of a folder the next ones are decoded meanwhile."""
    if isinstance(images, FolderImages):
        return images.batches(chosen)
    return (images[some] for some in chosen)


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


class _Workers:
    """Processes that decode; started by the first call, ended with the last one who holds them."""

    def __init__(self, count: int):
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
        with _interrupts_held():
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


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started inside inherits that they are held, from its first instruction.

    Ctrl-C reaches the whole group, and the process that started the others is to end them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parts(names: np.ndarray) -> Iterator[list[str]]:
    return (names[part].tolist() for part in slices(len(names), PART))


def _decode(folder: Path, preprocessing: Preprocessing, names: list[str]) -> np.ndarray:
    """uint8 (n, H, W) or (n, H, W, 3)."""
    return np.stack([_pixels(folder, preprocessing, name) for name in names])


def _faults(
    folder: Path, preprocessing: Preprocessing, names: list[str]
) -> tuple[int, dict[str, str]]:
    """How many images, and name -> what is wrong of those that cannot be decoded."""
    faults = {}
    for name in names:
        try:
            _pixels(folder, preprocessing, name)
        except DataError as error:
            faults[name] = str(error)
    return len(names), faults


def _pixels(folder: Path, preprocessing: Preprocessing, name: str) -> np.ndarray:
    return preprocessing.pixels(decode(read_file(folder / name), f"{folder}: {name}"))
