"""What a network costs against what it reaches: its score over packed bytes and over speed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from refimpl.report.curves import DOTS_PER_INCH, drawing, literally, write_png
from refimpl.training.ablation_table import Line

MARKERS = "os^vDPX*<>"


def draw(lines: Sequence[Line], speeds: Mapping[str, float], path: str | os.PathLike) -> None:
    """Write rows of an ablation to a PNG file, 1100 x 500 pixels; each of them has runs.

    A point is the mean top-1 or mean IoU of a row's runs, its bar the standard error where there is
    one. `speeds` are images a second by the row's name. Both horizontal axes are logarithmic.
    ConfigError without matplotlib, OSError from the disk.
    """
    with drawing(path):
        write_png(_figure(lines, speeds), path)


def _figure(lines: Sequence[Line], speeds: Mapping[str, float]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 5), dpi=DOTS_PER_INCH, layout="constrained")
    size, speed = figure.subplots(1, 2, sharey=True)
    for number, line in enumerate(lines):
        marker = MARKERS[number % len(MARKERS)]
        _point(size, line.packed_bytes / 1000, line, marker)
        _point(speed, speeds[line.row], line, marker)
    size.set_xlabel("packed size in kB")
    speed.set_xlabel("images a second by refimpl, one at a time on one thread")
    size.set_ylabel("top-1 in %" if lines[0].mean_iou is None else "mean IoU in %")
    for axes in (size, speed):
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="both", alpha=0.3)
    figure.legend(*size.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _point(axes: Any, x: float, line: Line, marker: str) -> None:
    error = None if line.error is None else 100 * line.error
    axes.errorbar(x, 100 * line.score, error, fmt=marker, capsize=3, label=literally(line.row))
