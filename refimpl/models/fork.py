"""The output of a stage has two readers where a pyramid decodes it: its gradient is their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.models.run import Tap


class Fork(NamedTuple):
    """What the second reader sends back."""

    gradient: np.ndarray
    op: Callable[..., np.ndarray]  # of the tap of this gradient, if it had one of its own
    reads: Sequence[str]


def joined(dx: np.ndarray, fork: Fork | None) -> np.ndarray:
    """dx of the first reader -> the whole gradient."""
    return dx if fork is None else dx + fork.gradient


def listener(tap: Tap | None, source: str, fork: Fork | None) -> Tap | None:
    """`tap`, which hears the whole gradient of `source` where the first reader names its own."""
    if tap is None or fork is None:
        return tap

    def listen(name, value, op, inputs):
        if name != f"grads/{source}":
            tap(name, value, op, inputs)
            return

        def whole(*read):
            return op(*read[: len(inputs)]) + fork.op(*read[len(inputs) :])

        tap(name, joined(value, fork), whole, [*inputs, *fork.reads])

    return listen
