"""An ablation's runs on a cluster: a row with a seed is a task, its files are those of one machine.

The folder of the ablation is one that all machines see; journals, checkpoints and weights are
written there as `refimpl ablate` writes them, so either goes on with what the other began. Where
there is no such folder, runs are cut into legs: a worker trains in a folder of its own until a
checkpoint is due, that comes back as the result of its task, and the next leg, on whatever worker,
begins with it. The client alone writes the CSV.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Client, Future, get_worker

from refimpl import ops
from refimpl.cluster import tasks, workers
from refimpl.conventions import ClusterError, ConfigError, require_choice
from refimpl.data import datasets, segmentation
from refimpl.data.image_folder import FolderArray
from refimpl.data.preprocessing import Preprocessing
from refimpl.disk import write_atomically
from refimpl.models import files
from refimpl.models.summary import summarise
from refimpl.training import ablation
from refimpl.training.ablation import UNFINISHED, Ablation, Images, Result, Run
from refimpl.training.ablation_table import Results
from refimpl.training.history import EpochResult
from refimpl.training.journal import fingerprint
from refimpl.training.watch import Watch

BACKENDS = ("kernels", "numpy")
COPIES = 4  # of the parameters: they, their gradients, and two moments of the optimizer
SUFFIXES = (".safetensors", ".json", ".checkpoint")  # of a run's files

Tell = Callable[[str], object]


def ablate(
    client: Client,
    recipe: str | Path,
    data: str | Path,
    folder: str | Path,
    *,
    split: str = ablation.TEST,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    backend: str = "kernels",
    threads: int = 1,
    ship_checkpoints: int | None = None,
    tell: Tell = lambda text: None,
) -> Results:
    """Carry out the runs of an ablation that its folder does not have yet; see `refimpl ablate`.

    recipe: the ablation's file. data: the data set, at a path that all machines see. folder: what
    `refimpl ablate -o` names, seen by all machines too; with ship_checkpoints only by this one, and
    a checkpoint comes back at the end of the epoch in which so many steps are over. split: "test"
    or "held-out". rows, seeds: only these. backend: "kernels" or "numpy". threads: of a run. tell:
    called with a line whenever something is new. Errors as there, and ClusterError where a worker
    lacks something, or the scheduler is lost.

    >>> ablate(None, "missing.toml", "cifar10.tar.xz", "runs")
    Traceback (most recent call last):
        ...
    refimpl.conventions.ConfigError: missing.toml: cannot be read: No such file or directory
    """
    asked, folder, data = ablation.read(recipe), Path(folder), Path(data)
    results = Results(folder, asked, split)
    chosen = ablation.choose(asked.runs(), rows, seeds)
    missing = [run for run in chosen if not results.has(run)]
    if missing:
        images = ablation.read_images(
            asked, split, lambda name, plain: _load(data, name, plain, asked.task, False)
        )
        results.require_like(images)
        how = How(backend, threads, ship_checkpoints)
        carry_out(client, missing, images, results, data=data, how=how, tell=tell)
    return results


class How(NamedTuple):
    """How runs are computed."""

    backend: str  # one of BACKENDS
    threads: int  # of a run
    ship_checkpoints: int | None  # steps after which a checkpoint comes back; None: shared folder


def carry_out(
    client: Client,
    runs: Sequence[Run],
    images: Images,
    results: Results,
    *,
    data: Path,
    how: How,
    tell: Tell = lambda text: None,
) -> None:
    """Carry out runs, and add each to `results` when it is over; errors as in `ablate`.

    images: those of `data`, as this machine has read them.
    """
    require_choice("ablation", "backend", how.backend, BACKENDS)
    folder = results.path.parent.absolute()
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        seen = [workers.Seen.of(data), *_teachers(runs)]
        if how.ship_checkpoints is None:
            seen.append(stack.enter_context(_mark(folder / UNFINISHED)))
        needs = workers.Needs(
            work="the ablation",
            memory=_memory(runs, images),
            numba=how.backend == "kernels",
            seen=tuple(seen),
            versions=workers.versions(),
        )
        workers.require(client, needs)
        board = stack.enter_context(_Board.on(client, runs, tell))
        # a task that makes it, and no scattered data: it is made again where a worker is lost
        given = client.submit(Asked, *_asked(images, results.ablation, data), needs, pure=False)
        stack.callback(given.release)
        legs = _Legs(runs, folder, ablation.fingerprints(images), how, given, board.topic)
        given_out = iter(legs.next, legs)  # legs that go on come to it while others are under way
        loop = tasks.results(client, given_out, ahead=1, told=board.show)
        for number, found in stack.enter_context(contextlib.closing(loop)):
            if found.files is not None:
                legs.write(number, found.files)
            if found.result is None:
                legs.go_on(number)
            else:
                results.add(found.result)
                board.over(number, found.result)


class Asked:
    """The images of an ablation: they are read once a worker, when its first run begins."""

    def __init__(
        self,
        asked: Ablation,
        split: str,
        data: Path,
        on_demand: bool,
        sha256: list[str],  # fingerprints of the images
        needs: workers.Needs,
    ):
        self.ablation, self.split, self.data = asked, split, data
        self.on_demand, self.sha256, self.needs = on_demand, sha256, needs
        self._lock = threading.Lock()
        self._images: Images | None = None

    def __reduce__(self) -> tuple:
        state = (self.ablation, self.split, self.data, self.on_demand, self.sha256, self.needs)
        return Asked, state

    @property
    def images(self) -> Images:
        """Equal to the client's; ClusterError where this worker cannot have them."""
        with self._lock:
            if self._images is None:
                workers.require_here(self.needs)
                self._images = self._read()
            return self._images

    def _read(self) -> Images:
        def load(split: str, plain: Preprocessing) -> Any:
            return _load(self.data, split, plain, self.ablation.task, self.on_demand)

        images = ablation.read_images(self.ablation, self.split, load)
        if _fingerprints(images) != self.sha256:
            raise ClusterError(
                f"worker {get_worker().address}: {self.data}: found other images than the client"
            )
        return images


class Leg(NamedTuple):
    """A part of a run, for a worker."""

    number: int  # of the run
    begun: int  # legs of the run before it
    run: Run
    stem: str  # of its files
    how: How
    folder: Path | None  # that all machines see; None: the files travel
    files: dict[str, bytes]  # suffix -> content, where they travel
    topic: str  # of the events that tell how it goes


class Found(NamedTuple):
    """What comes back of a leg."""

    result: Result | None  # None: the run goes on
    files: dict[str, bytes] | None  # None: they lie in the shared folder


class _Stop(Exception):
    """Ends a run at its last checkpoint."""


class _Watch(Watch):
    """On a worker: tells the client how a run goes, ends a leg, and a run that nobody wants."""

    def __init__(self, leg: Leg):
        self.leg, self.worker, self.steps = leg, get_worker(), 0
        self.key = self.worker.get_current_task()
        self._log(event="began", worker=self.worker.address, leg=leg.begun)

    def batch(self) -> None:
        task = self.worker.state.tasks.get(self.key)
        leaving = self.worker.status.name not in ("running", "paused")
        if leaving or task is None or task.state == "cancelled":
            raise _Stop

    def epoch(self, result: EpochResult, steps: int) -> None:
        self._log(event="epoch", text=str(result), rate=float(result.images_per_second))
        self.steps += steps
        if self.leg.folder is None and self.steps >= self.leg.how.ship_checkpoints:
            raise _Stop

    def tell(self, text: str) -> None:
        self._log(event="told", text=text)

    def _log(self, **fields: Any) -> None:
        self.worker.log_event(self.leg.topic, {"run": self.leg.number, **fields})


def _carry_out(asked: Asked, leg: Leg) -> Found:
    """On a worker: a leg of a run."""
    images, watch = asked.images, _Watch(leg)
    with contextlib.ExitStack() as stack:
        folder = leg.folder
        if folder is None:
            temporary = tempfile.TemporaryDirectory(dir=workers.scratch())
            folder = Path(stack.enter_context(temporary))
            (folder / UNFINISHED).mkdir()
        place = folder / UNFINISHED
        for suffix, content in leg.files.items():
            (place / f"{leg.stem}{suffix}").write_bytes(content)
        result = None
        with contextlib.suppress(_Stop):
            result = ablation.carry_out(
                leg.run,
                images,
                folder,
                backend=_backend(leg.how.backend),
                threads=leg.how.threads,
                watch=watch,
            )
        return Found(result, None if leg.folder else _files(place, leg.stem))


class _Legs:
    """The runs that are to be carried out, and how far each is; one that goes on comes first."""

    def __init__(
        self,
        runs: Sequence[Run],
        folder: Path,
        sha256: tuple[str, str],  # fingerprints of the images
        how: How,
        asked: Future,
        topic: str,
    ):
        self.runs, self.how, self.asked, self.topic = runs, how, asked, topic
        self.shared = folder if how.ship_checkpoints is None else None
        self.place = folder / UNFINISHED
        self.stems = [ablation.stem(run, *sha256) for run in runs]
        self.waiting = deque(range(len(runs)))
        self.begun = [0] * len(runs)

    def next(self) -> tasks.Task | None:
        """The next leg as a task; None: there is none, until another is over."""
        if not self.waiting:
            return None
        number = self.waiting.popleft()
        run, stem = self.runs[number], self.stems[number]
        travelling = {} if self.shared else _files(self.place, stem)
        leg = Leg(
            number, self.begun[number], run, stem, self.how, self.shared, travelling, self.topic
        )
        self.begun[number] += 1
        return tasks.Task(number, _name(run), _carry_out, (self.asked, leg))

    def go_on(self, number: int) -> None:
        """Let a run have its next leg before others begin."""
        self.waiting.appendleft(number)

    def write(self, number: int, found: dict[str, bytes]) -> None:
        """Write the files that came back, as the run would have, whole or not at all each."""
        for suffix in SUFFIXES:
            path = self.place / f"{self.stems[number]}{suffix}"
            if suffix in found:
                write_atomically(path, found[suffix])
            elif suffix == ".checkpoint":
                path.unlink(missing_ok=True)


class _Board:
    """Who runs where; it writes a line whenever something is new."""

    def __init__(self, runs: Sequence[Run], tell: Tell):
        self.runs, self.tell = runs, tell
        self.topic = f"refimpl-{secrets.token_hex(8)}"
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.places: dict[int, str] = {}  # the worker of each run that is under way
        self.rates: dict[int, float] = {}  # their images a second
        self.legs: dict[int, int] = {}  # the leg of each that is known to have begun
        self.done: set[int] = set()
        self.lost = 0

    @classmethod
    @contextlib.contextmanager
    def on(cls, client: Client, runs: Sequence[Run], tell: Tell) -> Iterator[_Board]:
        """Listen to the workers."""
        board = cls(runs, tell)
        client.subscribe_topic(board.topic, lambda event: board.events.put(event[1]))
        try:
            yield board
        finally:
            if client.status == "running":
                client.unsubscribe_topic(board.topic)

    def show(self) -> None:
        """Write a line for each event since the last call."""
        while not self.events.empty():
            event = self.events.get()
            if event["run"] in self.done:  # it came after the result
                continue
            getattr(self, f"_{event['event']}")(event["run"], event)

    def over(self, number: int, result: Result) -> None:
        """Write that a run is over."""
        self.show()
        self.places.pop(number, None)
        self.rates.pop(number, None)
        self.done.add(number)
        measure = "top-1" if result.mean_iou is None else "mIoU"
        self._write(number, f"{measure} {result.score:.2%} on {result.count:,} images")

    def _began(self, number: int, event: dict[str, Any]) -> None:
        before, here = self.places.get(number), event["worker"]
        is_next = event["leg"] != self.legs.get(number)
        self.places[number], self.legs[number] = here, event["leg"]
        if before is None:
            self._write(number, f"runs on {here}")
        elif before != here and is_next:
            self._write(number, f"goes on upon {here}")
        elif before != here:
            self.lost += 1
            self._write(number, f"its worker {before} is lost, goes on upon {here}")

    def _epoch(self, number: int, event: dict[str, Any]) -> None:
        self.rates[number] = event["rate"]
        self._write(number, event["text"])

    def _told(self, number: int, event: dict[str, Any]) -> None:
        self._write(number, event["text"])

    def _write(self, number: int, text: str) -> None:
        running = len(self.places)
        waiting = len(self.runs) - len(self.done) - running
        state = f"{len(self.done)} done, {running} running, {waiting} waiting, {self.lost} lost"
        rate = f", {sum(self.rates.values()):,.0f} images/s" if self.rates else ""
        self.tell(f"{_name(self.runs[number])}: {text}  [{state}{rate}]")


def _name(run: Run) -> str:
    return f"{run.row.name}, seed {run.seed}"


def _load(data: Path, split: str, plain: Preprocessing, task: str, on_demand: bool) -> Any:
    """A Dataset; one that is read on demand is read by whoever asks: no processes of a worker."""
    load = segmentation.load if task == "segmentation" else datasets.load
    return load(data, split, plain, workers=0 if on_demand else None)


def _asked(images: Images, asked: Ablation, data: Path) -> tuple[Any, ...]:
    on_demand = isinstance(images.training[0], FolderArray)
    return asked, images.split, data.absolute(), on_demand, _fingerprints(images)


def _fingerprints(images: Images) -> list[str]:
    return [fingerprint(*arrays) for arrays in _parts(images)]


def _parts(images: Images) -> list[tuple[Any, Any]]:
    """Images and labels of what is trained on, evaluated, and watched after every epoch."""
    return [images.training, images.evaluated, *([images.watched] if images.watched else [])]


def _files(place: Path, stem: str) -> dict[str, bytes]:
    """Suffix -> content of the files of a run that are there."""
    paths = {suffix: place / f"{stem}{suffix}" for suffix in SUFFIXES}
    return {suffix: path.read_bytes() for suffix, path in paths.items() if path.exists()}


def _backend(name: str) -> Any:
    if name == "numpy":
        return ops
    from refimpl.kernels import backend

    return backend


def _teachers(runs: Sequence[Run]) -> list[workers.Seen]:
    """The files of teachers that do not come with refimpl; ConfigError for a relative path."""
    names = {run.recipe.teacher for run in runs} - {None, *files.shipped()}
    for name in names:
        if not Path(name).is_absolute():
            raise ConfigError(
                f"recipe: teacher is {name!r}, expected a shipped model or an absolute path: "
                "workers have other working directories"
            )
    return [workers.Seen.of(Path(name), hashed=True) for name in sorted(names)]


@contextlib.contextmanager
def _mark(place: Path) -> Iterator[workers.Seen]:
    """A new file in the folder: a worker with a folder of that name, but its own, lacks it."""
    path = place / f".cluster-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield workers.Seen.of(path)
    finally:
        path.unlink(missing_ok=True)


def _memory(runs: Sequence[Run], images: Images) -> int:
    """Bytes that a worker needs at the least: the images in memory, and the largest network."""
    arrays = [array for part in _parts(images) for array in part]
    held = sum(array.nbytes for array in arrays if not isinstance(array, FolderArray))
    costs = [
        summarise(run.row.config).total for run in {run.row.name: run for run in runs}.values()
    ]
    largest = max(cost.params_1bit + cost.params_32bit for cost in costs)
    return held + 4 * COPIES * largest
