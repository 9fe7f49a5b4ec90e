"""The elements of one tap that differ most, with where they are: `refimpl golden diff`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refimpl.golden import places, text
from refimpl.golden.compare import Verdict


class Element(NamedTuple):
    """One element that differs; JSON values."""

    index: list[int]
    place: str  # in coordinates of the grid
    golden: bool | int | float  # in mode replay what follows from the candidate's own taps
    candidate: bool | int | float
    margin: float | None  # of a bit: |z - threshold|
    tolerance: float | None
    failed: bool


def worst(verdict: Verdict, count: int) -> list[Element]:
    """The `count` elements that are furthest off: those that fail first, then by how much."""
    if verdict.differs is None:
        return []
    flat = np.flatnonzero(verdict.differs)
    badness = _badness(verdict).reshape(-1)[flat]
    fails = np.zeros(flat.shape, bool) if verdict.flips is None else verdict.flips.ravel()[flat]
    order = np.lexsort((-badness, ~fails))
    return [_element(verdict, flat[i]) for i in order[:count]]


def _badness(verdict: Verdict) -> np.ndarray:
    """Of a bit its margin, else the difference, in tolerances where there are some."""
    if verdict.kind == "bit":
        return np.abs(verdict.z - verdict.threshold)
    difference = np.abs(verdict.candidate.astype(np.float64) - verdict.expected)
    return difference / verdict.tolerance if verdict.kind == "real" else difference


def _element(verdict: Verdict, flat: int) -> Element:
    shape = verdict.candidate.shape
    index = tuple(int(i) for i in np.unravel_index(flat, shape))
    margin = None
    if verdict.z is not None:
        margin = float(abs(verdict.z[index] - verdict.threshold))
    return Element(
        list(index),
        places.coordinates(verdict.places, index, shape),
        verdict.expected[index].item(),
        verdict.candidate[index].item(),
        margin,
        None if verdict.tolerance is None else float(verdict.tolerance[index]),
        bool(verdict.flips is not None and verdict.flips[index]),
    )


def lines(verdict: Verdict, count: int) -> Iterator[str]:
    """What is known of the tap, then a line each element."""
    yield verdict.name
    for label, value in text.facts(verdict, None):
        if label not in ("index", "golden", "candidate", "z", "margin", "tolerance"):
            yield f"  {label:<13} {value}"
    found = worst(verdict, count)
    if not found:
        return
    yield f"\nthe worst {len(found)} of {verdict.differing:,} that differ"
    header = ("index", "golden", "candidate", "margin", "tolerance", "", "where")
    table = [header, *(tuple(_cells(element)) for element in found)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _cells(element: Element) -> Iterator[str]:
    yield " ".join(map(str, element.index))
    yield text.number(element.golden)
    yield text.number(element.candidate)
    yield "-" if element.margin is None else f"{element.margin:.3g}"
    yield "-" if element.tolerance is None else f"{element.tolerance:.3g}"
    yield "hard" if element.failed else "near"
    yield element.place


def to_json(verdict: Verdict, count: int) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "name": verdict.name,
        "class": verdict.kind,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "differing": verdict.differing,
        "count": verdict.count,
        "elements": [
            {key: text.finite(value) for key, value in element._asdict().items()}
            for element in worst(verdict, count)
        ],
    }
