"""Times side by side: in every round each contender has its turn, A B C A B C …

What else happens on the machine then meets all of them alike. A turn is one call that is not
counted, since the others have filled the caches meanwhile, and then as many calls as take about
TURN seconds. The figure of a turn is its mean, that of a contender the median of its turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

TURN = 0.02  # seconds
OURS = "refimpl"


class Contender(NamedTuple):
    """Somebody who does a work, and how to take the time of it."""

    who: str
    run: Callable[[int], float]  # number of calls -> seconds that they took
    answer: Callable[[], np.ndarray] | None  # what it is that takes the time; None: no result
    macs: int  # multiply-accumulates of one call
    threads: int


class Row(NamedTuple):
    """One contender's times for one work; the fields are those of its JSON object."""

    work: str
    who: str
    median_ms: float
    min_ms: float
    max_ms: float
    gmacs: float  # 10^9 multiply-accumulates a second
    threads: int


def timed(function: Callable[[], Any]) -> Callable[[int], float]:
    """number of calls of `function` -> seconds that they took."""

    def run(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - start

    return run


def compare(
    entries: Iterable[tuple[str, Contender]],
    rounds: int,
    turn: float = TURN,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Names of works with their contenders -> a row for each, in order.

    `turn` is in seconds; `progress` is called after each round.
    """
    entries = list(entries)
    calls = [_calls(contender, turn) for _, contender in entries]
    times: list[list[float]] = [[] for _ in entries]
    for _ in range(rounds):
        for (_, contender), count, found in zip(entries, calls, times, strict=True):
            contender.run(1)
            found.append(contender.run(count) / count)
        progress()
    return [
        _row(work, contender, found)
        for (work, contender), found in zip(entries, times, strict=True)
    ]


def _calls(contender: Contender, turn: float) -> int:
    """How many calls fill a turn; the first call of all may compile and is not counted."""
    contender.run(1)
    return max(1, math.ceil(turn / contender.run(1)))


def _row(work: str, contender: Contender, seconds: list[float]) -> Row:
    median = statistics.median(seconds)
    milliseconds = (1000 * median, 1000 * min(seconds), 1000 * max(seconds))
    rate = contender.macs / median / 1e9
    return Row(work, contender.who, *milliseconds, rate, contender.threads)
