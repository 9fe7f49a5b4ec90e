"""The engine: what a user calls, and its threads."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from refimpl.conventions import ConfigError, DtypeError, NonFiniteError, ShapeError, require_shape
from refimpl.engine import clock, run
from refimpl.engine.plan import Plan, Work, build, work
from refimpl.engine.taps import Listener
from refimpl.kernels.compile import bound
from refimpl.machine import cpus
from refimpl.models import VisionTransformer, binary, files, packing, structure
from refimpl.models.config import Config
from refimpl.models.params import Params


def compile(model: VisionTransformer, params: Params, *, threads: int | None = None) -> Engine:
    """Make an engine of latent parameters.

    threads: as of `Engine`. ConfigError where it cannot run the network, NonFiniteError where
    scores, or the scale of a weight, may be beyond float32.

    >>> model, params = files.load("didb_micro_mnist")
    >>> images = np.zeros((2, 1, 28, 28), np.float32)
    >>> bool(np.allclose(compile(model, params)(images), model.predict(params, images), atol=1e-3))
    True
    """
    _require_able(model.config)
    return Engine(model.config, packing.pack(model.config, params), threads=threads)


def load(name_or_path: str | os.PathLike, *, threads: int | None = None) -> Engine:
    """Make an engine of a model's file, packed or latent, or of a shipped name.

    threads: as of `Engine`. Errors as `files.read`, and as `compile`.

    >>> load("didb_micro_mnist", threads=1)(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    return of_file(files.read_any(name_or_path), threads=threads)


def of_file(file: files.ModelFile | files.PackedFile, *, threads: int | None = None) -> Engine:
    """Make an engine of a file that is already read; see `load`.

    >>> of_file(files.read("didb_micro_mnist"), threads=1)
    Engine(28 x 28 x 1 -> 10 classes, 158,904 bytes, threads=1)
    """
    if isinstance(file, files.ModelFile):
        return compile(file.model, file.params, threads=threads)
    _require_able(file.model.config)
    return Engine(file.model.config, file.arrays, threads=threads)


class Engine:
    """A compiled network: images float32 (B, channels, H, W) -> logits float32 (B, classes).

    With a decoder (B, classes, H, W). The answer for an image does not depend on the others of its
    batch, nor on the number of threads. May be called from several threads at once: each has
    buffers of its own. May be copied, pickled, and used on both sides of a fork.

    threads: how many images of a batch are computed side by side; None: one a CPU.

    >>> run = load("didb_micro_mnist", threads=1)
    >>> taps = run.taps(np.zeros((1, 1, 28, 28), np.float32))
    >>> taps["blocks.0.attn.prob.bit"].dtype, taps["logits"].shape
    (dtype('bool'), (1, 10))
    """

    def __init__(
        self, config: Config, arrays: Mapping[str, np.ndarray], *, threads: int | None = None
    ):
        if threads is not None and threads < 1:
            raise ConfigError(f"engine: threads is {threads}; expected at least 1")
        self.config = config
        self.threads = threads or cpus()
        self._arrays = arrays
        self._shape = config.logits_shape  # of an image
        self._network = structure.find(binary.network(config))
        self._plan: Plan = build(self._network, arrays)
        self._own = threading.local()
        # by the process: a forked child has the object, but none of the threads
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __repr__(self) -> str:
        size = " x ".join(map(str, (*self.config.image_size, self.config.channels)))
        held = sum(array.nbytes for array in self._arrays.values())
        classes = self.config.num_classes
        return f"Engine({size} -> {classes} classes, {held:,} bytes, threads={self.threads})"

    def __reduce__(self) -> tuple:
        """What a copy is made of: plan, buffers and threads are its own."""
        return functools.partial(Engine, threads=self.threads), (self.config, self._arrays)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """ShapeError, DtypeError, and NonFiniteError with the name of the layer."""
        self._check(images)
        computed = np.empty((len(images), math.prod(self._shape)), np.float32)
        self._compute(images, computed)
        return computed.reshape(-1, *self._shape)

    def _compute(self, images: np.ndarray, computed: np.ndarray) -> None:
        threads = min(self.threads, len(images))
        if threads == 1:
            self._run(images, computed)
            return
        # several parts a thread, since one may be held up
        step = -(-len(images) // (4 * threads))
        parts = [slice(first, first + step) for first in range(0, len(images), step)]
        list(self._pool().map(lambda part: self._run(images[part], computed[part]), parts))

    def taps(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every value on the way under the name of the model's tap [SPEC 8.1], logits at the end.

        bool for bits, int32 for whole numbers, float32. The same kernels, one after the other: many
        times slower. Errors as in a call.
        """
        self._check(images)
        seen = []
        for image in images:
            listener = Listener(self._network, self._plan, self._arrays)
            computed = np.empty(math.prod(self._shape), np.float32)
            self._raise(run.forward(listener, self._plan, self._work(), _plain(image), computed))
            logits = computed.reshape(1, *self._shape)
            seen.append({**listener.taps(), self._network.network.output: logits})
        return {
            name: value if name in listener.shared else np.concatenate([t[name] for t in seen])
            for name, value in seen[0].items()
        }

    def laps(self, image: np.ndarray) -> dict[str, float]:
        """Seconds of each kind of work, by `clock.KINDS`, for one image (channels, H, W).

        The same kernels with a clock between them, compiled on first use. Errors as in a call.
        """
        self._check(image[None])
        computed = np.empty(math.prod(self._shape), np.float32)
        arguments = self._plan, self._work(), _plain(image), computed
        laps, begin = clock.started(), time.perf_counter()
        start = laps[-1]
        self._raise(run.COMPILED[self._plan.extras](laps, *arguments))
        tick = (time.perf_counter() - begin) / (laps[-1] - start)
        return {kind: tick * ticks for kind, ticks in zip(clock.KINDS, laps, strict=False)}

    def _run(self, images: np.ndarray, computed: np.ndarray) -> None:
        own = self._own
        for image, row in zip(images, computed, strict=True):
            arguments = None, self._plan, self._work(), _plain(image), row
            if not hasattr(own, "forward"):
                own.forward = bound(run.COMPILED[self._plan.extras], arguments)
            self._raise(own.forward(*arguments))

    def _pool(self) -> ThreadPoolExecutor:
        process = os.getpid()
        if process not in self._pools:
            self._pools.setdefault(process, ThreadPoolExecutor(self.threads))
        return self._pools[process]

    def _work(self) -> Work:
        """The buffers of this thread."""
        if not hasattr(self._own, "work"):
            self._own.work = work(self._plan)
        return self._own.work

    def _check(self, images: np.ndarray) -> None:
        config = self.config
        require_shape("engine", "images", images, (None, config.channels, *config.image_size))
        if len(images) == 0:
            raise ShapeError(f"engine: images has shape {images.shape}; expected at least one")
        found = getattr(images, "dtype", type(images).__name__)  # a list has none
        if found != np.float32:
            expected = "float32, as model.prepare makes of pixels"
            raise DtypeError(f"engine: images is {found}; expected {expected}")

    def _raise(self, status: int) -> None:
        if status == run.FINE:
            return
        where = self._network.rows[status].product.where
        raise NonFiniteError("NaN or infinity entered a sign", where)


def _plain(image: np.ndarray) -> np.ndarray:
    """The image as the one type of array for which the kernels are compiled: read-only, in order.

    For Numba a writable array, a read-only one and one at an odd address are three types.
    """
    image = image.view(np.ndarray)
    if not (image.flags.c_contiguous and image.flags.aligned):
        image = image.copy()
    image.flags.writeable = False
    return image


def _require_able(config: Config) -> None:
    if not packing.for_engine(config):
        kind = "real blocks" if config.block == "real" else f"binarize={config.binarize!r}"
        for name in packing.imported_fields(config) if packing.binary_matrices(config) else ():
            kind = f"{name}={getattr(config, name)!r}"
        raise ConfigError(f"engine: found {kind}; expected a binary network, binarize='full'")
