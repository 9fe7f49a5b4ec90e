"""A clock in compiled code: how long each kind of work takes in its place.

It stands where a listener stands when the functions of a run are not compiled. An int64 array:
ticks of each of KINDS, and behind them the time of the last lap.
"""

from __future__ import annotations

import time

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import overload

from refimpl.kernels.compile import jit
from refimpl.kernels.vector import X86, compiled_as

KINDS = (
    "embedding", "layer norm", "bands", "pack", "product", "norm and RPReLU", "values", "scores",
    "softmax", "context", "neighbours", "windows", "head",
)  # fmt: skip
EMBEDDING, NORM, BANDS, PACK, PRODUCT, FINISH, VALUES, SCORES, SOFTMAX, CONTEXT = range(10)
NEIGHBOURS, WINDOWS, HEAD = range(10, len(KINDS))


def _counter(typing):
    name = "llvm.readcyclecounter" if X86 else "llvm.readsteadycounter"

    def generate(context, builder, signature, values):
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(get_or_insert_function(builder.module, kind, name), [])

    return types.int64(), generate


@compiled_as(_counter)
def _ticks() -> int:
    """The processor's own time, in units that are alike but have no name."""
    return time.perf_counter_ns()


@jit
def started() -> np.ndarray:
    """A clock of which no lap is over yet."""
    clock = np.zeros(len(KINDS) + 1, np.int64)
    clock[-1] = _ticks()
    return clock


def lap(clock: object, kind: int) -> None:
    """Add what has passed since the last lap to a kind of work; nothing where there is no clock."""


@overload(lap)
def _lap(clock, kind):
    return _add if isinstance(clock, types.Array) else lambda clock, kind: None


def _add(clock, kind):
    now = _ticks()
    clock[kind] += now - clock[-1]
    clock[-1] = now
