"""Learning curves: the table while a run goes on, and the picture of its history."""

from __future__ import annotations

import csv
import os
import sys

import numpy as np
import pytest
from PIL import Image

from refimpl.conventions import ConfigError
from refimpl.report import curves
from refimpl.training import EpochResult, checkpoints, journal
from tests import oracles
from tests.training_runs import bars, recipe, train

TWO = recipe(activation_epochs=1, epochs=2)
COLUMNS = [
    "stage", "epoch", "epochs", "loss", "train_accuracy", "validation_accuracy", "learning_rate",
    "images_per_second", "elapsed", "validation_mean_iou",
]  # fmt: skip


def _rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _history(epochs: int, validation: bool = True) -> list[EpochResult]:
    return [
        EpochResult("activations" if i < 3 else "full", i + 1, 9, 2.0 / (i + 1), 1 - 0.5 / (i + 1),
                    1 - 0.6 / (i + 1) if validation else None, 1e-3, 200.0, 10.0 * i)
        for i in range(epochs)
    ]  # fmt: skip


def test_a_row_an_epoch(tmp_path) -> None:
    trained = train(tmp_path, TWO, curves=True, validation=bars(6))
    rows = _rows(tmp_path / "run.csv")
    assert list(rows[0]) == COLUMNS
    for row, result in zip(rows, trained.history, strict=True):
        assert row["stage"] == result.stage
        for name, value in result._asdict().items():
            expected = "" if value is None else value
            assert row[name] == str(expected)  # every digit


def test_no_validation_is_an_empty_cell_and_no_wish_no_table(tmp_path) -> None:
    train(tmp_path, name="with", curves=True)
    assert [row["validation_accuracy"] for row in _rows(tmp_path / "with.csv")] == ["", ""]
    train(tmp_path, name="without")
    assert not (tmp_path / "without.csv").exists()


def test_the_table_grows_with_the_epochs_and_a_resumed_run_keeps_it(tmp_path, monkeypatch) -> None:
    rows, save = [], checkpoints.save

    def spy(*arguments) -> None:
        if rows == [0, 0, 1]:  # rows that were there after each checkpoint
            raise KeyboardInterrupt
        save(*arguments)
        path = tmp_path / "run.csv"
        rows.append(len(_rows(path)) if path.exists() else 0)

    monkeypatch.setattr(journal.checkpoints, "save", spy)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, recipe(epochs=4), curves=True)
    monkeypatch.undo()
    assert [row["epoch"] for row in _rows(tmp_path / "run.csv")] == ["1", "2"]
    trained = train(tmp_path, recipe(epochs=4), curves=True, resume=True)
    assert [float(row["elapsed"]) for row in _rows(tmp_path / "run.csv")] == [
        result.elapsed for result in trained.history
    ]


def test_a_full_disk_leaves_the_table_of_the_epoch_before(tmp_path, monkeypatch) -> None:
    train(tmp_path, curves=True)
    before = (tmp_path / "run.csv").read_text()
    for name in ("run.json", "run.safetensors"):
        (tmp_path / name).unlink()

    def full(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        train(tmp_path, curves=True, overwrite=True)
    assert (tmp_path / "run.csv").read_text() == before
    assert os.listdir(tmp_path) == ["run.csv"]


# --------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("epochs", [1, 7])
def test_the_picture(tmp_path, epochs: int, validation: bool) -> None:
    oracles.require("matplotlib")
    curves.draw(_history(epochs, validation), tmp_path / "run.png")
    assert os.listdir(tmp_path) == ["run.png"]
    with Image.open(tmp_path / "run.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (800, 800))
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    blue, orange = [31, 119, 180], [255, 127, 14]
    assert blue in colours
    assert (orange in colours) == validation


def test_the_picture_shows_the_numbers(tmp_path, monkeypatch) -> None:
    figure_module = oracles.require("matplotlib", "matplotlib.figure")
    figures, subplots = [], figure_module.Figure.subplots
    monkeypatch.setattr(
        figure_module.Figure,
        "subplots",
        lambda self, *arguments, **options: (
            figures.append(self) or subplots(self, *arguments, **options)
        ),
    )
    history = _history(5)
    curves.draw(history, tmp_path / "run.png")
    loss, accuracy, rate = figures[0].axes
    assert loss.lines[0].get_ydata().tolist() == [result.loss for result in history]
    assert loss.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]
    percent = [line.get_ydata().tolist() for line in accuracy.lines[:2]]
    assert percent == [
        [100 * result.train_accuracy for result in history],
        [100 * result.validation_accuracy for result in history],
    ]
    assert rate.lines[0].get_ydata().tolist() == [1e-3] * 5
    for axes in (loss, accuracy, rate):  # the end of the first stage
        assert list(axes.lines[-1].get_xdata()) == [3.5, 3.5]


def test_the_picture_shows_the_mean_iou_of_a_segmenter(tmp_path) -> None:
    oracles.require("matplotlib")
    history = [result._replace(validation_mean_iou=0.3) for result in _history(2)]
    curves.draw(history, tmp_path / "run.png")
    colours = np.asarray(Image.open(tmp_path / "run.png").convert("RGB")).reshape(-1, 3)
    assert [44, 160, 44] in np.unique(colours, axis=0).tolist()  # the third line


def test_without_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    for call in (curves.require_matplotlib, lambda: curves.draw(_history(1), tmp_path / "x.png")):
        with pytest.raises(ConfigError, match="matplotlib") as caught:
            call()
        assert "\n" not in str(caught.value) and "refimpl[plots]" in str(caught.value)
    assert os.listdir(tmp_path) == []
