"""Which backend answers: the rule of backend="auto", in one place.

A packed file runs on the engine, a network that the engine cannot run on NumPy. Any other runs on
NumPy as long as that takes no longer than to start the engine, which is to import Numba and, where
that was not done before, to compile the kernels; from then on it runs on the engine. What is known
beforehand, such as the size of a data set, is taken into account at once.

The seconds are those of one machine. Only their ratios count, and these only roughly: where the
rule changes its mind, both ways take equally long.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refimpl import machine
from refimpl.conventions import ConfigError, ModelFileError, NonFiniteError
from refimpl.kernels import cache
from refimpl.models import files, packing
from refimpl.models.config import Config
from refimpl.models.summary import summarise

if TYPE_CHECKING:  # it imports Numba, which takes longer than a small network
    from refimpl.engine import Engine

BACKENDS = ("auto", "numpy", "engine")
_CHOOSING = threading.Lock()  # images side by side may all find that the engine should start

# Seconds of NumPy: for each block a call and an image of it, and 10^9 multiply-adds.
CALL, IMAGE, GIGA_MACS = 1e-3, 0.5e-3, 0.08
START = 0.3  # of the engine: import Numba and load machine code
COMPILE = {False: 8.0, True: 12.0}  # by `packing.extras`
SPEED_UP = 20  # of the engine over NumPy, at least


class Work(NamedTuple):
    """What is asked of a network: images, and in how many calls; NumPy's threads share them."""

    images: int
    calls: int
    threads: int = 1


class Choice(NamedTuple):
    """A backend, "numpy" or "engine", and in words why it is that one."""

    backend: str
    why: str


def choose(config: Config, work: Work) -> Choice:
    """The rule, for a latent file of a network that the engine can run."""
    numpy = numpy_seconds(config, work)
    engine = START + numpy * work.threads / SPEED_UP
    if numpy <= engine:
        return Choice("numpy", "quicker than to start the engine")
    if cache.has(cache.FORWARD[packing.extras(config)]):
        return Choice("engine", "its kernels are compiled, and there is enough to do")
    if numpy <= engine + COMPILE[packing.extras(config)]:
        return Choice("numpy", "quicker than to compile the engine's kernels")
    return Choice("engine", "there is enough to do to compile its kernels")


def numpy_seconds(config: Config, work: Work) -> float:
    """Roughly, for all of the work."""
    total = summarise(config).total
    macs = total.macs_1bit + total.macs_32bit
    calls = config.num_blocks * (CALL * work.calls + IMAGE * work.images)
    return (calls + GIGA_MACS * work.images * macs / 1e9) / work.threads


def start_numba() -> None:
    """Start Numba before the first kernel, in a process of our own without what no kernel needs.

    Numba imports SciPy's linear algebra when it starts, in case compiled code calls it, which takes
    as long as all the rest. ConfigError where it does not start.
    """
    hidden = "scipy.linalg.cython_blas"
    if hidden in sys.modules:
        return
    if machine.own_process:  # others in this process might want it
        sys.modules[hidden] = None  # type: ignore[assignment]
    try:
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()
    except ValueError as error:  # of a variable that Numba reads
        given = ", ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("NUMBA_"))
        raise ConfigError(f"Numba does not start: {error} The environment has {given}") from None
    finally:
        if machine.own_process:
            del sys.modules[hidden]


class Backend:
    """What computes the logits of a file's network, as the work goes on."""

    def __init__(self, file: files.ModelFile | files.PackedFile, asked: str):
        """asked: of BACKENDS. ConfigError or ModelFileError for one that cannot run the file."""
        self._file = file
        self._expected = self._done = Work(0, 0)
        self.engine: Engine | None = None  # None: the NumPy reference
        self.choice = self._fixed(asked) or choose(file.model.config, self._done)
        self._open = self._fixed(asked) is None
        if self.choice.backend == "engine":
            self._start()

    def __repr__(self) -> str:
        return f"Backend({self.choice.backend!r}: {self.choice.why})"

    def _fixed(self, asked: str) -> Choice | None:
        """The choice where there is none; None where the work decides."""
        latent, config = isinstance(self._file, files.ModelFile), self._file.model.config
        if asked == "numpy" and not latent:
            raise ModelFileError(
                f"{self._file.path}: packed, so only the engine can run it; "
                "expected a latent file for NumPy"
            )
        if asked != "auto":
            return Choice(asked, "asked for")
        if not latent:
            return Choice("engine", "the file is packed")
        if not packing.for_engine(config):
            return Choice("numpy", "the engine does not run such a network")
        return None

    def _start(self) -> None:
        start_numba()
        from refimpl import engine

        try:
            self.engine = engine.of_file(self._file)
        except ConfigError as error:
            raise ConfigError(f"{self._file.path}: {error}") from None

    def expect(self, work: Work) -> None:
        """Say what is going to be asked, so that the choice is made once for all of it."""
        done = self._done
        expected = Work(done.images + work.images, done.calls + work.calls, work.threads)
        if expected.images > self._expected.images:
            self._expected = expected
            self._choose()

    def warm(self) -> None:
        """Compile or load now what is needed, before the time of an image is taken."""
        if self.engine is not None:
            config = self._file.model.config
            with contextlib.suppress(NonFiniteError):  # absurd weights: told of the images
                self.engine(np.zeros((1, config.channels, *config.image_size), np.float32))

    def count(self, images: int) -> Engine | None:
        """What computes the next call, of so many images: an engine, or None for NumPy."""
        self._done = Work(self._done.images + images, self._done.calls + 1)
        if self._done.images > self._expected.images:
            self._expected = self._done
            self._choose()
        return self.engine

    def _choose(self) -> None:
        with _CHOOSING:
            if self._open and self.engine is None:
                self.choice = choose(self._file.model.config, self._expected)
                if self.choice.backend == "engine":
                    self._start()
