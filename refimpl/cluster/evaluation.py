"""Evaluation: batches of names go out, counts come back, and their sum is that of one machine.

The batches are those that one machine would make, so the same numbers meet in the same products,
and whole counts are added: any number of workers gives the same figures, in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dask
from distributed import Client

import refimpl
from refimpl.choice import Choice, Work
from refimpl.cluster import batches, sources, workers
from refimpl.cluster.sources import Listed, Source
from refimpl.conventions import DataError, ModelFileError
from refimpl.data.datasets import require_classes, require_counts
from refimpl.data.image_folder import Progress, left
from refimpl.machine import cpus
from refimpl.models import files

MAPS_A_TASK = 4  # images of any size with a label a pixel; one machine takes them one by one


@contextlib.contextmanager
def no_bar(title: str, total: int) -> Iterator[Any]:
    """Show nothing; see `evaluate`."""
    yield types.SimpleNamespace(update=lambda count: None)


class Evaluated(NamedTuple):
    """Hold the figures of an evaluation, and what they are of.

    >>> Evaluated(result=None, split="test", broken=(), choice=None).split
    'test'
    """

    result: Any  # an Evaluation, or a SegmentationEvaluation, as one machine has it
    split: str | None  # name of its folder; None: the data set has no splits
    broken: tuple[str, ...]  # of each image that was left out: which it is, what is wrong
    choice: Choice  # the backend of the workers


class Asked:
    """A model, what it needs and where the images lie: once a worker, opened at the first batch.

    It travels as the bytes of the model's file, whose SHA-256 is checked where they arrive.
    """

    def __init__(
        self,
        data: bytes,
        sha256: str,
        options: dict[str, Any],  # backend and image_size
        needs: workers.Needs,
        source: Source,
    ):
        self.data, self.sha256, self.options = data, sha256, options
        self.needs, self.source = needs, source
        self._lock = threading.Lock()
        self._model: Any = None

    def __reduce__(self) -> tuple:
        return Asked, (self.data, self.sha256, self.options, self.needs, self.source)

    @property
    def model(self) -> Any:
        """The Classifier or Segmenter; ClusterError where this worker cannot have it."""
        with self._lock:
            if self._model is None:
                workers.require_here(self.needs)
                self._model = self._open()
            return self._model

    def _open(self) -> Any:
        if (found := hashlib.sha256(self.data).hexdigest()) != self.sha256:
            raise ModelFileError(f"{self.needs.work}: arrived as {found}, expected {self.sha256}")
        with tempfile.TemporaryDirectory(dir=workers.scratch()) as folder:
            path = Path(folder, f"model{files.SUFFIX}")
            path.write_bytes(self.data)
            model = open_model(path, **self.options)
        if model.engine is not None:
            model.engine.threads = 1  # Dask's own threads work side by side
        return model


def open_model(path: str | Path, **options: Any) -> Any:
    """Open a model's file as what it is: a Classifier or a Segmenter."""
    task = files.read_any(path).model.config.task
    return (refimpl.segmenter if task == "segmentation" else refimpl.classifier)(path, **options)


def evaluate(
    client: Client,
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    backend: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 100,
    limit: int | None = None,
    skip_broken: bool = False,
    class_names: str | Path | None = None,
    ship_images: bool = False,
    bar: Callable[[str, int], Any] = no_bar,
) -> Evaluated:
    """Evaluate a classifier or segmenter on a cluster: the figures of `refimpl evaluate`.

    model: a shipped name or a file of this machine. data: a data set at a path that all machines
    see; with ship_images only this one does, and the workers are sent the images as they are
    stored. batch_size: images that are computed at a time, of the NumPy backend in one product.
    bar: makes a bar of a title and a number of images, as `tqdm` does. The other options are those
    of `refimpl evaluate`. Errors as there, and ClusterError where a worker lacks something, or the
    scheduler is lost.

    >>> from refimpl.cluster import connected
    >>> from refimpl.data import bundled
    >>> with connected("local:1") as client:
    ...     digits = bundled.mnist() / "small"
    ...     evaluate(client, "didb_micro_mnist", digits, limit=20, backend="numpy").result.count
    20
    """
    require_counts(limit, batch_size=batch_size)
    data, path = Path(data), files.find(model)
    ours = open_model(path, backend=backend, image_size=image_size)
    maps = ours.model.config.task == "segmentation"
    names = None if class_names is None else Path(class_names)
    listed = sources.find(data, split, ours.preprocessing, maps=maps, limit=limit, names=names)
    require_classes(data, listed.class_names, ours.class_names)
    size = MAPS_A_TASK if maps else batch_size
    ours.expect(Work(len(listed.items), -(-len(listed.items) // size), cpus()))
    # chosen once for all workers, as one machine would: each would choose by its own share
    options = {"backend": ours.backend.choice.backend, "image_size": image_size}
    content = path.read_bytes()
    needs = workers.Needs(
        work=path.name,
        memory=_memory(content, ours, 1 if maps else min(batch_size, len(listed.items))),
        numba=ours.engine is not None,
        seen=() if ship_images else (workers.Seen.of(data),),
        versions=workers.versions(),
    )
    workers.require(client, needs)
    sha256 = hashlib.sha256(content).hexdigest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_given(listed.source, data))
        stack.enter_context(_large_tasks())
        # a task that makes it, and no scattered data: it is made again where a worker is lost
        asked = client.submit(Asked, content, sha256, options, needs, listed.source, pure=False)
        stack.callback(asked.release)
        work = batches.Work(client, asked, listed.source if ship_images else None)
        broken: tuple[str, ...] = ()
        if skip_broken:
            with bar("read", len(listed.items)) as shown:
                listed, broken = _without_broken(work, listed, size, data, shown.update)
        start = time.perf_counter()
        with bar("evaluate", len(listed.items)) as shown:
            found = work(batches.count, batches.cut(listed, size), shown.update)
            counts = sum(of_batch for _, of_batch in found)
        seconds = time.perf_counter() - start
    if maps:
        result = ours.evaluation(counts, len(listed.items), seconds)
    else:
        result = ours.evaluation(counts, seconds)
    return Evaluated(result, listed.split, broken, ours.backend.choice)


def _without_broken(
    work: batches.Work, listed: Listed, size: int, data: Path, progress: Progress
) -> tuple[Listed, tuple[str, ...]]:
    """The items that can be read; all are read to find out, before any is used, as everywhere."""
    faults = {}
    for number, found in work(batches.faults, batches.cut(listed, size), progress):
        faults |= {number * size + place: text for place, text in found.items()}
    faults = {i: _given(faults[i], listed.source, data) for i in sorted(faults)}
    kept = left(data, len(listed.items), faults)
    items = [listed.items[i] for i in kept]
    labels = None if listed.labels is None else listed.labels[kept]
    return listed._replace(items=items, labels=labels), tuple(faults.values())


def _memory(content: bytes, model: Any, batch: int) -> int:
    """Bytes that a worker needs at the least: the file, what is made of it, a batch of input."""
    config = model.model.config
    pixels = batch * config.channels * config.image_size[0] * config.image_size[1]
    return 2 * len(content) + 5 * pixels  # a byte and a float each


@contextlib.contextmanager
def _as_given(source: Source, data: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(_given(str(error), source, data)) from None


def _given(text: str, source: Source, data: Path) -> str:
    """Name the data set as the user did: workers know its absolute path only."""
    return text.replace(str(source.path), str(data))


def _large_tasks() -> Any:
    """No warning of Dask's that a task is large: models and shipped images are."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
