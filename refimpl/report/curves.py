"""Learning curves as pictures: those of one run, and those of the rows of an ablation."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.conventions import ConfigError, RefimplError
from refimpl.disk import write_atomically
from refimpl.training import EpochResult
from refimpl.training.ablation import Result

DOTS_PER_INCH = 100
VALIDATION = {
    "validation_accuracy": "validation",
    "validation_mean_iou": "validation, mean IoU",
}  # field of an epoch -> its name in the picture


def require_matplotlib() -> None:
    """Raise ConfigError where it is missing or does not start: before a run, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'pictures as PNG need matplotlib, found none: pip install "refimpl[plots]", '
            "or do without the picture"
        ) from error
    except Exception as error:  # of MPLBACKEND, or of a file of settings
        reason = " ".join(str(error).split())
        raise ConfigError(f"matplotlib, for pictures as PNG, does not start: {reason}") from None


@contextlib.contextmanager
def drawing(path: str | os.PathLike) -> Iterator[None]:
    """Draw in matplotlib's own style, whatever the user has set for figures of his own.

    ConfigError where it fails, with the name of the picture.
    """
    require_matplotlib()
    import matplotlib.style

    try:
        with matplotlib.style.context("default"):
            yield
    except (RefimplError, OSError):
        raise
    except Exception as error:  # whatever fonts and settings bring about
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be drawn: {reason}") from None


def draw(history: Sequence[EpochResult], path: str | os.PathLike) -> None:
    """Write the curves of a run of one epoch or more to a PNG file, 800 x 800 pixels.

    A dotted line stands between two stages. ConfigError without matplotlib, OSError from the disk.
    """
    with drawing(path):
        write_png(_figure(history), path)


def _figure(history: Sequence[EpochResult]) -> Any:
    # a figure of its own instead of pyplot: no window, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), dpi=DOTS_PER_INCH, layout="constrained")
    loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(2, 2, 1))
    epochs = range(1, len(history) + 1)
    _line(loss, epochs, [result.loss for result in history], "training")
    loss.set_ylabel("loss")
    _line(accuracy, epochs, [100 * result.train_accuracy for result in history], "training")
    for name, label in VALIDATION.items():
        scores = [getattr(result, name) for result in history]
        if None not in scores:
            _line(accuracy, epochs, [100 * score for score in scores], label)
    accuracy.set_ylabel("accuracy in %")
    accuracy.legend(loc="lower right")
    _line(rate, epochs, [result.learning_rate for result in history], "training")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.set_xlim(0.5, len(history) + 0.5)
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        _mark_stages(axes, history)
    loss.set_title(_title(history))
    return figure


def draw_rows(results: Sequence[Result], path: str | os.PathLike) -> None:
    """Write score over epochs of an ablation's runs to a PNG file, 900 x 600 pixels.

    Those of a row stand together in `results`, each with a curve. A line is the mean over the seeds
    of a row, its band reaches from the lowest to the highest. ConfigError without matplotlib,
    OSError from the disk.
    """
    with drawing(path):
        write_png(_rows_figure(results), path)


def _rows_figure(results: Sequence[Result]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for name, runs in itertools.groupby(results, key=lambda result: result.row):
        scores = 100 * np.array([run.curve for run in runs])
        epochs = range(1, scores.shape[1] + 1)
        seeds = "1 seed" if len(scores) == 1 else f"{len(scores)} seeds"
        _line(axes, epochs, scores.mean(axis=0), f"{literally(name)}, {seeds}")
        axes.fill_between(epochs, scores.min(axis=0), scores.max(axis=0), alpha=0.2)
    what = "top-1" if results[0].mean_iou is None else "mean IoU"
    axes.set_ylabel(f"{what} in % of images held out")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def write_png(figure: Any, path: str | os.PathLike) -> None:
    """Write a matplotlib Figure, whole or not at all; OSError from the disk."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, buffer.getvalue())


def literally(name: str) -> str:
    """Write a name that matplotlib would read as a formula, where it has two dollars."""
    return name.replace("$", r"\$")


def _line(axes: Any, epochs: Sequence[int], values: Sequence[float], label: str) -> None:
    axes.plot(epochs, values, marker="o", markersize=3, label=label)


def _mark_stages(axes: Any, history: Sequence[EpochResult]) -> None:
    for epoch in range(1, len(history)):
        if history[epoch].stage != history[epoch - 1].stage:
            axes.axvline(epoch + 0.5, linestyle=":", color="black")


def _title(history: Sequence[EpochResult]) -> str:
    stages = list(dict.fromkeys(result.stage for result in history))
    return " → ".join(stages)
