"""Where in a tap: images, windows, heads, channels, rows and columns of the grid of patches.

describe(places_of(network, steps["blocks.0.attn.high"]), mask)
["tokens: grid rows 0 and 6, columns 0 and 6: the border (of 7 x 7)", "channels: all 48"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.golden import coordinates as coordinates_of
from refimpl.golden.record import Step
from refimpl.models.nodes import Network

LISTED = 8  # indices of an axis that are named
SINGULAR = {"patches": "patch", "queries": "query", "classes": "class"}
ON_GRID = ("tokens", "patches", "queries", "keys")


class Places(NamedTuple):
    """What the axes of one tap are."""

    names: tuple[str, ...]
    grid: tuple[int, int] = (0, 0)  # of its tokens: of a stage, or of one window
    first: int = 0  # tokens in front of the grid's
    windows: int = 1  # of an image, on the axis of images
    heads: int = 1  # into which its channels are cut later

    def has_grid(self, axis: int, size: int) -> bool:
        """Whether this axis has a token for every patch of the grid."""
        return self.names[axis] in ON_GRID and size in (self._patches, self._patches + self.first)

    @property
    def _patches(self) -> int:
        return max(self.grid[0] * self.grid[1], 1)


def places_of(network: Network, step: Step) -> Places:
    """Say what the axes of a tap are."""
    names, stage = coordinates_of.axes(network, step), coordinates_of.stage(network, step)
    if names[:1] != ("images",):
        return Places(names)
    if "heads" in names and stage.window:
        return Places(names, (stage.window, stage.window), 0, stage.num_windows)
    heads = stage.heads if coordinates_of.is_cut(network, step) else 1
    return Places(names, stage.grid, stage.num_prefix_tokens, heads=heads)


def describe(places: Places, mask: np.ndarray) -> Iterator[str]:
    """On which indices of each axis a mask is true: a rule in them is half of a diagnosis."""
    for axis, size in enumerate(mask.shape):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        name = places.names[axis]
        if name == "images" and places.windows > 1:
            yield from _windows(hit, size, places.windows)
        elif size == 1:
            continue
        elif len(hit) < size and places.has_grid(axis, size):
            yield f"{name}: {_tokens(hit, size, places)}"
        elif len(hit) < size and name == "channels" and (heads := _heads(hit, size, places)):
            yield f"{name}: {heads}"
        else:
            yield f"{name}: {_indices(hit, size)}"


def coordinates(places: Places, index: Sequence[int], shape: Sequence[int]) -> str:
    """One element: "image 0, grid row 2, column 5, channel 7"."""
    return ", ".join(
        part for axis, i in enumerate(index) for part in _coordinate(places, axis, i, shape[axis])
    )


def _coordinate(places: Places, axis: int, index: int, size: int) -> Iterator[str]:
    name = places.names[axis]
    one = SINGULAR.get(name, name.removesuffix("s"))
    if name == "images" and places.windows > 1:
        yield f"image {index // places.windows}, window {index % places.windows}"
    elif places.has_grid(axis, size) and places.grid != (1, 1):
        patch = index - (size - places.grid[0] * places.grid[1])
        row, column = divmod(patch, places.grid[1])
        word = "" if name in ("tokens", "patches") else f"{one} at "
        yield f"{word}the class token" if patch < 0 else f"{word}grid row {row}, column {column}"
    elif name == "channels" and places.heads > 1 and size % places.heads == 0:
        yield f"channel {index} (head {index // (size // places.heads)})"
    else:
        yield f"{one} {index}"


def _windows(hit: np.ndarray, size: int, windows: int) -> Iterator[str]:
    images = size // windows
    if images > 1:
        yield f"images: {_indices(np.unique(hit // windows), images)}"
    yield f"windows: {_indices(np.unique(hit % windows), windows)}"


def _heads(hit: np.ndarray, size: int, places: Places) -> str | None:
    """Channels that are whole heads."""
    if places.heads == 1 or size % places.heads:
        return None
    each = size // places.heads
    heads, counts = np.unique(hit // each, return_counts=True)
    if (counts < each).any():
        return None
    return f"those of head{'s' * (len(heads) > 1)} {_listed(heads)} (of {places.heads})"


def _tokens(hit: np.ndarray, size: int, places: Places) -> str:
    first = size - places.grid[0] * places.grid[1]
    on = np.zeros(places.grid, bool)
    on.flat[hit[hit >= first] - first] = True
    parts = ["the class token"] if (hit < first).any() else []
    if on.all():
        parts.append(f"all {on.size} patches")
    elif on.any():
        parts.append(f"{_cells(on)} (of {places.grid[0]} x {places.grid[1]})")
    return ", ".join(parts)


def _cells(on: np.ndarray) -> str:
    """Cells of a grid: whole rows and columns, a rectangle, or how many."""
    rows, columns = on.all(axis=1), on.all(axis=0)
    if np.array_equal(on, rows[:, None] | columns):
        lines = [
            _lines(word, line) for word, line in (("row", rows), ("column", columns)) if line.any()
        ]
        ends = [np.flatnonzero(line).tolist() == [0, len(line) - 1] for line in (rows, columns)]
        return "grid " + ", ".join(lines) + (": the border" if all(ends) else "")
    rows, columns = on.any(axis=1), on.any(axis=0)
    box = f"{_lines('row', rows)}, {_lines('column', columns)}"
    if np.array_equal(on, rows[:, None] & columns):
        return f"grid {box}"
    return f"{int(on.sum())} patches in grid {box}"


def _lines(word: str, mask: np.ndarray) -> str:
    numbers = np.flatnonzero(mask)
    return f"{word}{'s' * (len(numbers) > 1)} {_listed(numbers)}"


def _indices(hit: np.ndarray, size: int) -> str:
    if len(hit) == size:
        return f"all {size}"
    if len(hit) <= LISTED:
        return f"{' '.join(map(str, hit))} (of {size})"
    return f"{len(hit)} of {size}"


def _listed(numbers: np.ndarray) -> str:
    """3; 0 and 6; 0, 2 and 3; 4 to 17; 12 of 0 to 40."""
    numbers = [int(n) for n in numbers]
    whole = len(numbers) == numbers[-1] - numbers[0] + 1
    if whole and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    if len(numbers) > LISTED:
        return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} of them"
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last
