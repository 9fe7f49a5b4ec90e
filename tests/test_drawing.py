"""Pictures by matplotlib, whatever the user has set for figures of his own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from refimpl.conventions import ConfigError
from refimpl.report import curves, segmentation
from refimpl.training import EpochResult
from tests import oracles
from tests.command_line import assert_one_line, run, save_segmenter

HISTORY = [EpochResult("full", n, 2, 1 / n, n / 4, None, 0.1, 10.0, float(n)) for n in (1, 2)]


@pytest.fixture(autouse=True)
def matplotlib():
    return oracles.require("matplotlib")


def test_settings_of_the_user_change_nothing(tmp_path, matplotlib) -> None:
    curves.draw(HISTORY, tmp_path / "plain.png")
    settings = {"text.usetex": True, "figure.facecolor": "red", "font.size": 30}
    with matplotlib.rc_context(settings):
        curves.draw(HISTORY, tmp_path / "set.png")
        segmentation.draw_confusion(np.eye(2), ["a", "$"], tmp_path / "confusion.png")
        assert matplotlib.rcParams["text.usetex"]  # the user has his own again
    assert (tmp_path / "set.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


@pytest.mark.parametrize("backend", ["module://none", "nonsense"])
def test_a_backend_that_is_missing_is_one_line(tmp_path, backend) -> None:
    """A kernel of Jupyter sets MPLBACKEND to one that other environments do not have."""
    code = (
        "import sys; from refimpl.conventions import ConfigError\n"
        "from refimpl.report import curves\n"
        "try: curves.require_matplotlib()\n"
        "except ConfigError as error: print(error); sys.exit()\n"
        "from tests.test_drawing import HISTORY\n"
        f"curves.draw(HISTORY, {str(tmp_path / 'x.png')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if not (tmp_path / "x.png").exists():
        assert "does not start" in done.stdout and backend in done.stdout
        assert done.stdout.count("\n") == 1


def test_names_are_no_formulas(tmp_path) -> None:
    segmentation.draw_confusion(np.eye(2), ["a", r"$\unknown$"], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_what_cannot_be_drawn_is_named(tmp_path, monkeypatch, matplotlib) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(matplotlib.figure.Figure, "draw", fail)
    with pytest.raises(ConfigError, match=r"^.*x\.png: cannot be drawn: no font at all$"):
        segmentation.draw_confusion(np.eye(2), ["a", "b"], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_figures_come_before_the_drawing(tmp_path, monkeypatch) -> None:
    """Hours of work were lost where the picture failed."""
    from refimpl.data import bundled, scenes

    model = save_segmenter(tmp_path / "segmenter.safetensors")
    scenes.write(bundled.mnist() / "small", tmp_path / "scenes", {"train": 1, "test": 2})

    def fail(*arguments: object) -> None:
        raise ConfigError("x.png: cannot be drawn")

    monkeypatch.setattr(segmentation, "draw_confusion", fail)
    outputs = [word for name in ("x.png", "x.csv") for word in ("--confusion", tmp_path / name)]
    arguments = ("evaluate", "--data", tmp_path / "scenes", "--model", model, *outputs, "--record")
    done = run(*arguments)
    assert done.status == 2
    assert "mean IoU" in done.out
    assert done.err.splitlines()[0].startswith("recorded in ")
    assert done.err.splitlines()[1] == "refimpl: x.png: cannot be drawn"
    assert (tmp_path / "x.csv").exists()
    assert_one_line(run(*arguments), "x.csv: exists")
