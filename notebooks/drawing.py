"""What the notebooks share: panels side by side, curves, source text, the check of an answer.

Nothing here computes anything about the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

DPI = 100
plt.rcParams.update(
    {
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
)
SIGNED = "PuOr"  # purple above 0, white at 0, orange below: safe for colour-blind readers
SIGNED_COARSE = plt.get_cmap("PuOr", 15)  # few colours make small files
GREY = plt.get_cmap("gray", 32)
INK = plt.get_cmap("Greys", 32)  # white at 0
# Okabe and Ito's colours, told apart by everybody
BLUE, ORANGE, GREEN, RED, PINK, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)


def draw_cells(
    *panels: tuple, between: Sequence[str] = "", cell: float = 0.42, gap: float = 0.45
) -> None:
    """A row of grids with their numbers: panels (title, values, frames to draw).

    A frame is (row, column, height, width); NaN is an empty place; cell and gap in inches.
    """
    limit = 2 * max(np.nanmax(np.abs(values)) for _, values, *_ in panels)
    heights = [cell * values.shape[0] for _, values, *_ in panels]
    widths = [cell * values.shape[1] for _, values, *_ in panels]
    height, width = max(heights) + 0.35, sum(widths) + gap * (len(panels) - 1)
    figure = plt.figure(figsize=(width, height))
    left = 0.0
    for k, (title, values, *frames) in enumerate(panels):
        bottom = (max(heights) - heights[k]) / 2
        box = (left / width, bottom / height, widths[k] / width, heights[k] / height)
        axis = figure.add_axes(box)
        _grid_of_numbers(axis, title, values, frames, limit)
        if between and k:
            x, y = (left - gap / 2) / width, 0.5 * max(heights) / height
            figure.text(x, y, between[k - 1], ha="center", va="center", size=15)
        left += widths[k] + gap
    plt.show()


def _grid_of_numbers(axis: Axes, title: str, values: np.ndarray, frames: list, limit: float):
    axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="0.75", lw=0.8)
            axis.add_patch(frame).set_clip_on(False)
            text = f"{value:g}".replace("-", "\N{MINUS SIGN}")
            axis.text(j, i, text, ha="center", va="center", size=9 if len(text) < 5 else 8)
    for i, j, rows, columns in frames:
        frame = Rectangle((j - 0.5, i - 0.5), columns, rows, fill=False, ec="black", lw=2.5)
        axis.add_patch(frame).set_clip_on(False)
    axis.set_axis_off()
    axis.set_title(title, size=10.5, pad=5)


def draw_pixels(*panels: tuple, zoom: int = 1, gap: int = 12, head: int = 24) -> None:
    """A row of pictures, zoom screen pixels a pixel: panels (title, values, colours, low, high,
    frames to draw).

    A frame is (row, column, height, width) in pixels of the picture; gap and head (the room for
    a title) in screen pixels.
    """
    shapes = [np.shape(values) for _, values, *_ in panels]
    width = zoom * sum(w for _, w in shapes) + gap * (len(panels) - 1)
    height = zoom * max(h for h, _ in shapes) + head
    figure = plt.figure(figsize=(width / DPI, height / DPI))
    left = 0
    for (title, values, cmap, low, high, *frames), (h, w) in zip(panels, shapes, strict=True):
        box = (left / width, 0, zoom * w / width, zoom * h / height)
        axis = figure.add_axes(box)
        axis.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        for i, j, rows, columns in frames:
            frame = Rectangle((j - 0.5, i - 0.5), columns, rows, fill=False, ec=RED, lw=2)
            axis.add_patch(frame).set_clip_on(False)
        axis.set_axis_off()
        axis.set_title(title, size=10.5, pad=5)
        left += zoom * w + gap
    plt.show()


def source(*functions: Any) -> Markdown:
    """The source text as it is in the package."""
    return Markdown("```python\n" + "\n\n".join(map(inspect.getsource, functions)) + "```")


def verdict(answer: Any, is_right: Callable[[np.ndarray], bool], hint: str) -> str:
    """What to say to the answer of an exercise; None is no answer yet."""
    if answer is None:
        return "Not answered yet: replace None in the cell above, run it, then this one."
    try:
        numbers = np.array(answer, float)
    except (TypeError, ValueError):
        return f"Not yet: {answer!r} is no number and no array of numbers."
    return "Right." if is_right(numbers) else f"Not yet. {hint}"
